"""A dream whose driver remembers with an M of its own, so that any world can be driven alike.

A controller of [z, h] is at home in one M only: another M, or the same one fitted on, has another
h. Drivers who bring their M along see the same features in every world of the same V.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from wm_env.dream import DreamCarRacing, DreamParams, DreamState
from wm_env.mdn_rnn import MDNRNN, Carry
from wm_env.vae import VAE
from wm_env.world_model import WorldModel

_DREAM = DreamCarRacing()


@struct.dataclass
class DrivenState(DreamState):
    """The dream at one moment, and what its driver remembers."""

    memory: Carry


@struct.dataclass(kw_only=True)
class DrivenParams(DreamParams):
    """What can change without compiling anything; `driver` is the M that the driver brings."""

    driver: MDNRNN


class DrivenDream(DreamCarRacing):
    """`DreamCarRacing` that shows [z, h of the driver's M], float32 [z + h].

    Episodes begin at first frames, where the driver remembers nothing yet: `start_middle` is 0.
    The dream's dropout is not the driver's.
    """

    def __init__(self):
        super().__init__()  # features and continuous actions, and nothing else

    def reset_env(self, key: jax.Array, params: DrivenParams) -> tuple[Any, DrivenState]:
        """Begin at a real first frame."""
        _, dream = _DREAM.reset_env(key, params)
        state = remembering(dream, params.driver.initial_carry())
        return self.observe(key, state, None, params), state

    def step_env(
        self, key: jax.Array, state: DrivenState, action: Any, params: DrivenParams
    ) -> tuple[Any, DrivenState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One dreamt frame, of which the driver's M takes in (z_t, a_t) as the dream's does."""
        _, dream, reward, terminated, info = _DREAM.step_env(key, state, action, params)
        memory = params.driver.advance_carry(state.z, self._clipped(action), state.memory)
        after = remembering(dream, memory)
        return self.observe(key, after, action, params), after, reward, terminated, info

    def observe(
        self, key: jax.Array, state: DrivenState, action: Any, params: DrivenParams
    ) -> jax.Array:
        """What the driver sees, float32 [z + h]."""
        return params.world_model.features(state.z, state.memory.h)


def remembering(dream: DreamState, memory: Carry) -> DrivenState:
    """A moment of a plain dream with what the driver remembers there."""
    return DrivenState(**vars(dream), memory=memory)


def driven_by(
    driver: WorldModel,
    worlds: Sequence[WorldModel],
    *,
    steps: int = 1000,
    temperature: float = 1.0,
    persistence: float = 0.0,
    dropout: float = 0.0,
) -> list[DrivenParams]:
    """Parameters of each world's dream of at most `steps` frames, for who drives with `driver`'s M.

    Raises:
        ValueError: the worlds do not share the driver's V.
    """
    for place, world in enumerate(worlds):
        check_same_v(world, driver.vae, f"world {place + 1} of {len(worlds)}")
    return [
        DrivenParams(
            world_model=world,
            driver=driver.mdn_rnn,
            temperature=jnp.float32(temperature),
            persistence=jnp.float32(persistence),
            dropout=jnp.float32(dropout),
            max_steps_in_episode=jnp.int32(steps),
        )
        for world in worlds
    ]


def check_same_v(world: WorldModel, vae: VAE, name: str) -> None:
    """Look whether a world, called `name`, has this V; files may round weights to float16.

    Raises:
        ValueError: it has another.
    """
    if world.vae.config == vae.config:
        pairs = zip(jax.tree.leaves(world.vae), jax.tree.leaves(vae), strict=True)
        gaps = [
            float(jnp.max(jnp.abs(a.astype(jnp.float16) - b.astype(jnp.float16)))) for a, b in pairs
        ]
        if not any(gaps):
            return
        found = f"has weights of V that differ by up to {max(gaps):.3g}"
    else:
        found = f"has V {world.vae.config}, not {vae.config}"
    raise ValueError(
        f"{name} {found}; expected the same V, for drivers see its latents in both. Compare "
        "worlds that were fitted on one V, with a driver of that V."
    )
