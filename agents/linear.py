"""The linear controller of Ha & Schmidhuber (2018): 867 numbers that drive on what M knows."""

import os
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.linear import ACTIONS, check_linear, linear_action
from wm_env.weights import load_controller, save_controller

FEATURES = 288  # [z, h] of the shipped sizes, 32 and 256


class LinearController(eqx.Module):
    """tanh of a linear map of the features [z, h]; each output uses its action's full range.

    Source: Ha & Schmidhuber (2018), section 2.3 and A.3.
    """

    weight: Float[Array, "a f"]
    bias: Float[Array, "a"]

    @classmethod
    def zeros(cls, features: int = FEATURES) -> "LinearController":
        """The controller to begin a search from: straight on at half gas."""
        return cls(weight=jnp.zeros((ACTIONS, features)), bias=jnp.zeros(ACTIONS))

    def __call__(self, features: Float[Array, "f"]) -> Float[Array, "a"]:
        """Steer in [-1, 1], gas in [0, 1], brake in [0, 1] for the features [z, h]."""
        return linear_action(self.weight, self.bias, features)


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
    check_linear(arrays, "the controller to save", None)
    save_controller(arrays, path, metadata)


def load_linear(
    path_or_shipped_name: str | os.PathLike = "carracing_controller",
    *,
    features: int | None = None,
) -> tuple[LinearController, dict[str, Any]]:
    """Read a controller and its metadata from a file, or a shipped one by its name.

    Args:
        path_or_shipped_name: a file of `save_linear`, or the name of a shipped controller.
        features: how many features the world it shall drive in gives; None takes any number.

    Raises:
        WeightsError: as for `wm_env.weights.load_world`, or not a linear controller's shapes.
    """
    arrays, metadata = load_controller(path_or_shipped_name)
    check_linear(arrays, str(path_or_shipped_name), features)
    return LinearController(**{name: jnp.asarray(arrays[name]) for name in arrays}), metadata
