"""A small multilayer perceptron that drives on [z, h]: the linear controller with hidden layers."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.linear import linear_action
from wm_env.task import CAR_RACING
from wm_env.weights import WeightsError, load_controller, save_controller

ACTIONS = CAR_RACING.action_size


class MLPController(eqx.Module):
    """Layers of tanh units, then the linear controller's map to full action ranges."""

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, "out"], ...]

    @classmethod
    def init(cls, features: int, hidden: Sequence[int], *, key: Array) -> "MLPController":
        """Random hidden layers under an output of zeros: straight on at half gas, as a linear one.

        Source of the scale: LeCun et al. (1998), "Efficient BackProp", section 4.6.

        Raises:
            ValueError: a size below 1.
        """
        if min((features, *hidden)) < 1:
            raise ValueError(
                f"features are {features} and hidden is {tuple(hidden)}; expected sizes of 1 or "
                "more. No hidden layer at all is (), which is linear."
            )
        sizes = (features, *hidden)
        keys = jax.random.split(key, len(sizes))
        weights = [
            jax.random.normal(key, (after, before)) * before**-0.5
            for key, before, after in zip(keys, sizes, sizes[1:], strict=False)
        ]
        return cls(
            weights=(*weights, jnp.zeros((ACTIONS, sizes[-1]))),
            biases=tuple(jnp.zeros(size) for size in (*hidden, ACTIONS)),
        )

    @property
    def hidden(self) -> tuple[int, ...]:
        """Sizes of the hidden layers."""
        return tuple(len(bias) for bias in self.biases[:-1])

    def __call__(self, features: Float[Array, "f"]) -> Float[Array, "a"]:
        """Steer in [-1, 1], gas in [0, 1], brake in [0, 1] for the features [z, h]."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            features = jnp.tanh(weight @ features + bias)
        return linear_action(self.weights[-1], self.biases[-1], features)


def mlp_policy(
    controller: MLPController, observation: Float[Array, "f"], key: Any
) -> Float[Array, "a"]:
    """`MLPController` as a policy; deterministic, so the key is not used."""
    return controller(observation)


def save_mlp(
    controller: MLPController,
    path: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a controller atomically, with JSON-able `metadata` (how it was trained, its scores).

    Raises:
        WeightsError: its arrays do not follow one another, or are not finite.
    """
    layers = zip(controller.weights, controller.biases, strict=True)
    arrays = {
        f"{name}_{index}": np.asarray(array)
        for index, layer in enumerate(layers)
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    check_mlp(arrays, "the controller to save", None)
    save_controller(arrays, path, metadata)


def load_mlp(
    path_or_shipped_name: str | os.PathLike, *, features: int | None = None
) -> tuple[MLPController, dict[str, Any]]:
    """Read a controller and its metadata from a file of `save_mlp`.

    Raises:
        WeightsError: as for `wm_env.weights.load_world`, or layers that do not follow one another
            from `features` (None takes any number) to the actions.
    """
    arrays, metadata = load_controller(path_or_shipped_name)
    check_mlp(arrays, str(path_or_shipped_name), features)
    layers = range(len(arrays) // 2)
    controller = MLPController(
        weights=tuple(jnp.asarray(arrays[f"weight_{index}"]) for index in layers),
        biases=tuple(jnp.asarray(arrays[f"bias_{index}"]) for index in layers),
    )
    return controller, metadata


def check_mlp(arrays: Mapping[str, np.ndarray], origin: str, features: int | None) -> None:
    """Refuse arrays that are not layers from so many features (None is any number) to the actions.

    Raises:
        WeightsError: names `origin`, what it has and what is expected.
    """
    found = {name: array.shape for name, array in sorted(arrays.items())}
    layers = len(found) // 2
    hidden = [(found.get(f"bias_{index}") or (0,))[0] for index in range(layers - 1)]
    inputs = [features or (found.get("weight_0") or (0,))[-1], *hidden]
    outputs = [*hidden, ACTIONS]
    expected = {f"bias_{index}": (out,) for index, out in enumerate(outputs)}
    expected |= {f"weight_{index}": (out, inputs[index]) for index, out in enumerate(outputs)}
    if layers < 2 or found != expected:
        raise WeightsError(
            f"{origin}: has arrays {found}; expected weight_0 (hidden, {features or 'features'}), "
            f"bias_0 (hidden,), and so on to {ACTIONS} actions, where features = latent + hidden "
            "size of its world (288 for the shipped one). Give a file written by save_mlp for this "
            "world, or train one (python -m agents analytic --hidden 32)."
        )
