"""What controllers are evolved in: dreams of one world or of several, each as wild as it draws."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wm_env.dream import DreamParams
from wm_env.fidelity.driven_dream import check_same_v
from wm_env.weights import load_world
from wm_env.world_model import WorldModel

Range = tuple[float, float]  # least and greatest


class DreamMix(eqx.Module):
    """Dreams with the numbers of `params`, spread evenly over its world and `more` alike ones.

    Each dream draws its own temperature and dropout uniformly from the ranges, where such are
    given. All of it is arrays: another mix of as many worlds compiles nothing.
    """

    params: DreamParams  # the leaves of its world_model have an axis of worlds first
    temperature: Float[Array, "2"]
    dropout: Float[Array, "2"]

    def __init__(
        self,
        params: DreamParams,
        more: Sequence[WorldModel] = (),
        *,
        temperature: Range | None = None,
        dropout: Range | None = None,
    ):
        worlds = (params.world_model, *more)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)
        self.params = jax.tree.map(jnp.asarray, replace(params, world_model=stacked))
        self.temperature = jnp.asarray(temperature or (params.temperature,) * 2, jnp.float32)
        self.dropout = jnp.asarray(dropout or (params.dropout,) * 2, jnp.float32)

    @property
    def plain(self) -> DreamParams:
        """Dreams of the first world, with the temperature and dropout of `params`."""
        first = jax.tree.map(lambda leaf: leaf[0], self.params.world_model)
        return replace(self.params, world_model=first)

    @property
    def worlds(self) -> int:
        """How many there are."""
        return len(self.params.world_model.starts.z)

    def each(self, dream: Callable[[DreamParams, Array], Any], key: Array, count: int) -> Any:
        """What `dream(params, key)` gives for `count` dreams, with axes of worlds and dreams first.

        The same key gives the same dreams, whoever drives. `count` is a multiple of the worlds.
        """
        shape = self.worlds, count // self.worlds
        keys = jax.random.split(key, count).reshape(shape)
        # A key of the same family that no dream has.
        wildness = jax.random.uniform(jax.random.fold_in(key, count), (*shape, 2))

        def one(world: WorldModel, key: Array, draw: Array) -> Any:
            params = replace(
                self.params,
                world_model=world,
                temperature=_between(self.temperature, draw[0]),
                dropout=_between(self.dropout, draw[1]),
            )
            return dream(params, key)

        in_world = jax.vmap(one, in_axes=(None, 0, 0))
        return jax.vmap(in_world)(self.params.world_model, keys, wildness)


def load_worlds(names: Sequence[str]) -> list[WorldModel]:
    """Read worlds that can be dreamt together, by file or shipped name.

    Raises:
        WeightsError: as for `wm_env.weights.load_world`.
        ValueError: one has another V than the first, or other sizes; the message names it.
    """
    first, *others = worlds = [load_world(name) for name in names]
    for name, world in zip(names[1:], others, strict=True):
        check_same_v(world, first.vae, name)
        found, expected = _sizes(world), _sizes(first)
        differences = [
            f"{what} {found[what]}, not {expected[what]}"
            for what in expected
            if found[what] != expected[what]
        ]
        if differences:
            raise ValueError(
                f"{name} has {'; '.join(differences)} as {names[0]} has; expected worlds of one "
                "kind and size, for they are dreamt at once. Fit M in all of them with the same "
                "configuration and as many start states."
            )
    return worlds


def _sizes(world: WorldModel) -> dict[str, Any]:
    starts = world.starts
    return {
        "task": world.task.id,
        "M": world.mdn_rnn.config,
        "first start states": len(starts.first_z),
        "middle start states": len(starts.z),
    }


def _between(ends: Array, share: Array) -> Array:
    return ends[0] + share * (ends[1] - ends[0])
