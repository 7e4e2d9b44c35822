"""The linear controller of Ha & Schmidhuber (2018): 867 numbers that drive on what M knows."""

import os
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.linear import check_linear, linear_action
from wm_env.task import CAR_RACING, Task, marked
from wm_env.weights import WeightsError, controller_name, load_controller, save_controller

FEATURES = 288  # [z, h] of the shipped sizes, 32 and 256


class LinearController(eqx.Module):
    """tanh of a linear map of the features [z, h]; each output uses its action's full range.

    Source: Ha & Schmidhuber (2018), section 2.3 and A.3.
    """

    weight: Float[Array, "a f"]
    bias: Float[Array, "a"]
    task: Task = eqx.field(static=True, default=CAR_RACING)

    @classmethod
    def zeros(cls, features: int = FEATURES, task: Task = CAR_RACING) -> "LinearController":
        """The controller to begin a search from: straight on at half gas."""
        size = task.action_size
        return cls(weight=jnp.zeros((size, features)), bias=jnp.zeros(size), task=task)

    def __call__(self, features: Float[Array, "f"]) -> Float[Array, "a"]:
        """Steer in [-1, 1], gas in [0, 1], brake in [0, 1] for the features [z, h]."""
        return linear_action(self.weight, self.bias, features, self.task)


def linear_policy(
    controller: LinearController, observation: Float[Array, "f"], key: Any
) -> Float[Array, "a"]:
    """`LinearController` as a policy; deterministic, so the key is not used."""
    return controller(observation)


def save_linear(
    controller: LinearController,
    path: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a controller atomically, with JSON-able `metadata` (how it was trained, its scores).

    Raises:
        WeightsError: its arrays are not of a controller's shapes, or not finite.
    """
    arrays = {"weight": np.asarray(controller.weight), "bias": np.asarray(controller.bias)}
    check_linear(arrays, "the controller to save", None, controller.task)
    save_controller(arrays, path, {**(metadata or {}), **controller.task.mark})


def load_linear(
    path_or_shipped_name: str | os.PathLike | None = None,
    *,
    features: int | None = None,
    task: Task | None = None,
) -> tuple[LinearController, dict[str, Any]]:
    """Read a controller and its metadata from a file, or a shipped one by its name.

    Args:
        path_or_shipped_name: a file of `save_linear`, or the name of a shipped controller; None is
            the task's shipped one.
        features: how many features the world it shall drive in gives; None takes any number.
        task: of that world; None takes any, and ships CarRacing's.

    Raises:
        WeightsError: as for `wm_env.weights.load_world`, or not a linear controller's shapes, or it
            is of another task.
    """
    name = controller_name(task or CAR_RACING, path_or_shipped_name)
    arrays, metadata = load_controller(name)
    of_file = marked(metadata)
    if task is not None and of_file != task:
        raise WeightsError(
            f"the controller {name} is of {of_file.id}; expected one of {task.id}. Evolve one in "
            "that world (python -m agents evolve)."
        )
    check_linear(arrays, str(name), features, of_file)
    leaves = {leaf: jnp.asarray(arrays[leaf]) for leaf in arrays}
    return LinearController(**leaves, task=of_file), metadata
