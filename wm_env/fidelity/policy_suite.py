"""Policies from bad to good, all of one shape: a linear controller, altered in one way each.

One shape means one compiled program for all of them, and lanes that each have their own.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wm_env.linear import check_linear, linear_action, spoil
from wm_env.weights import WeightsError, load_controller

_CONSTANTS = {
    "nothing": (0.0, 0.0, 0.0),
    "full brake": (0.0, 0.0, 1.0),
    "straight, gas 0.1": (0.0, 0.1, 0.0),
    "straight, gas 0.5": (0.0, 0.5, 0.0),
    "straight, gas 1": (0.0, 1.0, 0.0),
    "left, gas 0.3": (-0.2, 0.3, 0.0),
    "right, gas 0.3": (0.2, 0.3, 0.0),
}
_WEIGHT_NOISE = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.5)  # in root mean squares of the weights
_STEER_GAINS = (-1.0, 0.1, 0.2, 0.4)
_GAS_GAINS = (0.3, 0.4, 0.6, 0.8, 1.25)
_IDLE_SHARES = (0.15, 0.3, 0.45, 0.6, 0.8)
_STEER_OFFSETS = (-0.5, 0.3, 0.8)
_BRAKE_OFFSETS = (0.05, 0.1, 0.2)


class Variant(eqx.Module):
    """A linear controller of the features [z, h], and how its actions are altered."""

    weight: Float[Array, "a f"]
    bias: Float[Array, "a"]
    gain: Float[Array, "a"]  # of steer, gas and brake; 0 takes the controller out of it
    offset: Float[Array, "a"]  # what is added then; environments clip the sum
    idle: Float[Array, ""]  # share of frames, drawn at random, in which it does nothing


Suite = dict[str, Variant]  # by name, in the order in which they are told


def drive_variant(variant: Variant, observation: Float[Array, "f"], key: Any) -> Float[Array, "a"]:
    """The policy: `variant`'s steer, gas and brake, as yet unclipped."""
    controls = linear_action(variant.weight, variant.bias, observation)
    action = variant.gain * controls + variant.offset
    return jnp.where(jax.random.uniform(key) < variant.idle, 0.0, action)


def policy_suite(controller: Variant) -> Suite:
    """Constant actions and a controller, spoilt in several ways to several degrees."""
    suite = {
        name: eqx.tree_at(lambda v: (v.gain, v.offset), controller, (jnp.zeros(3), jnp.array(at)))
        for name, at in _CONSTANTS.items()
    }
    suite["controller"] = controller
    for index, level in enumerate(_WEIGHT_NOISE):
        suite[f"weights + {level:g} noise"] = spoil(controller, level, seed=index)
    for gain in _STEER_GAINS:
        suite[f"steering x {gain:g}"] = _with(controller, "gain", 0, gain)
    for gain in _GAS_GAINS:
        suite[f"gas x {gain:g}"] = _with(controller, "gain", 1, gain)
    suite["no brake"] = _with(controller, "gain", 2, 0.0)
    for offset in _STEER_OFFSETS:
        suite[f"steering {offset:+g}"] = _with(controller, "offset", 0, offset)
    for offset in _BRAKE_OFFSETS:
        suite[f"brake {offset:+g}"] = _with(controller, "offset", 2, offset)
    for share in _IDLE_SHARES:
        suite[f"idle {share:.0%}"] = eqx.tree_at(lambda v: v.idle, controller, jnp.float32(share))
    return suite


def load_variant(path_or_shipped_name: str | os.PathLike, *, features: int) -> Variant:
    """A controller as it is, from a file or a shipped one by its name.

    Raises:
        WeightsError: as for `wm_env.weights.load_world`, or it does not fit `features`.
    """
    arrays, _ = load_controller(path_or_shipped_name)
    check_linear(arrays, str(path_or_shipped_name), features)
    return Variant(
        weight=jnp.asarray(arrays["weight"]),
        bias=jnp.asarray(arrays["bias"]),
        gain=jnp.ones(3),
        offset=jnp.zeros(3),
        idle=jnp.float32(0.0),
    )


def load_variants(files: Iterable[str | os.PathLike], *, features: int) -> Suite:
    """Controllers of files by `FOLDER/NAME`, as those saved during evolution.

    Raises:
        WeightsError: as for `load_variant`, or two files have the same folder's and own name.
    """
    suite: Suite = {}
    for file in files:
        path = Path(file)
        name = f"{path.parent.name}/{path.stem}".lstrip("/")
        if name in suite:
            raise WeightsError(
                f"two controllers are called {name!r}, the second is {file}; expected different "
                "names. Give each file once, or copy one into a folder of another name."
            )
        suite[name] = load_variant(file, features=features)
    return suite


def _with(controller: Variant, field: str, place: int, value: float) -> Variant:
    changed = getattr(controller, field).at[place].set(value)
    return eqx.tree_at(lambda v: getattr(v, field), controller, changed)
