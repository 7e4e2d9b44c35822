"""A linear controller's arrays: what they must be, and what they do.

Source: Ha & Schmidhuber (2018), "World models", section 2.3 and A.3.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.task import CAR_RACING, Control, Task
from wm_env.weights import WeightsError


def linear_action(
    weight: Float[Array, "a f"],
    bias: Float[Array, "a"],
    features: Float[Array | np.ndarray, "f"],
    task: Task = CAR_RACING,
) -> Float[Array, "a"]:
    """Steer in [-1, 1], gas in [0, 1], brake in [0, 1]: tanh of a linear map, to full ranges."""
    outputs = jnp.tanh(weight @ features + bias)
    return jnp.stack([_spread(*pair) for pair in zip(outputs, task.controls, strict=True)])


def _spread(output: Float[Array, ""], control: Control) -> Float[Array, ""]:
    """An output in [-1, 1] over the control's range."""
    if (control.low, control.high) == (-1.0, 1.0):
        return output
    share = jnp.maximum(output, 0.0) if control.rests else 0.5 * (output + 1.0)
    if (control.low, control.high) == (0.0, 1.0):
        return share
    return control.low + (control.high - control.low) * share


def spoil(controller: Any, noise: float, *, seed: int) -> Any:
    """A module with normal noise on its `weight`, `noise` root mean squares of that large."""
    weight = np.asarray(controller.weight)
    spread = noise * np.sqrt(np.mean(weight**2))
    drawn = np.random.default_rng(seed).normal(0.0, spread, weight.shape).astype(np.float32)
    return eqx.tree_at(lambda one: one.weight, controller, jnp.asarray(weight + drawn))


def check_linear(
    arrays: Mapping[str, np.ndarray], origin: str, features: int | None, task: Task = CAR_RACING
) -> None:
    """Refuse arrays that are not a linear controller's of so many features; None is any number.

    Raises:
        WeightsError: names `origin`, what it has and what is expected.
    """
    found = {name: array.shape for name, array in sorted(arrays.items())}
    weight, size = found.get("weight", ()), task.action_size
    fits = set(found) == {"weight", "bias"} and len(weight) == 2 and weight[0] == size
    if not (fits and found["bias"] == (size,) and features in (None, weight[1])):
        raise WeightsError(
            f"{origin}: has arrays {found}; expected a linear controller's weight "
            f"({size}, {features or 'features'}) and bias ({size},), where features = latent "
            "+ hidden size of its world (288 for the shipped one). Give a file written by "
            "save_linear for this world, or evolve one (python -m agents evolve)."
        )
