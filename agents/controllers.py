"""Files of controllers of any kind: a file's arrays tell which policy drives by them."""

import os
from collections.abc import Mapping
from typing import Any

from agents.linear import LinearController, linear_policy, load_linear, save_linear
from agents.mlp import MLPController, load_mlp, mlp_policy, save_mlp
from wm_env.rollouts import Policy
from wm_env.task import CAR_RACING, Task
from wm_env.weights import load_controller

Controller = LinearController | MLPController


def policy_of(controller: Controller) -> Policy:
    """The function `policy(controller, features, key) -> action` that drives by a controller."""
    return linear_policy if isinstance(controller, LinearController) else mlp_policy


def load_controller_policy(
    path_or_shipped_name: str | os.PathLike = "carracing_controller",
    *,
    features: int | None = None,
    task: Task | None = None,
) -> tuple[Policy, Any, dict[str, Any]]:
    """Read a controller: its policy, the parameters that the policy takes, and its metadata.

    Args:
        path_or_shipped_name: a file of `save_any`, or the name of a shipped controller.
        features: how many features the world it shall drive in gives; None takes any number.
        task: of that world; None takes any. Layers are CarRacing's.

    Raises:
        WeightsError: as for `wm_env.weights.load_world`, or the controller takes other features, or
            is of another task.
    """
    arrays, _ = load_controller(path_or_shipped_name)
    if "weight_0" in arrays and task in (None, CAR_RACING):
        controller, metadata = load_mlp(path_or_shipped_name, features=features)
    else:
        controller, metadata = load_linear(path_or_shipped_name, features=features, task=task)
    return policy_of(controller), controller, metadata


def save_any(
    controller: Controller, path: str | os.PathLike, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a controller of any kind, for `load_controller_policy`.

    Raises:
        WeightsError: its arrays do not fit one another, or are not finite.
    """
    save = save_linear if isinstance(controller, LinearController) else save_mlp
    save(controller, path, metadata)  # pyright: ignore[reportArgumentType]
