"""Moments of real drives from which a dream may go on, with the carry that M has there."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from wm_env.episodes import filled
from wm_env.fidelity.drives import Drive, stacked
from wm_env.mdn_rnn import MDNRNN, Carry

# Moments at once. Always as many, as for the lanes of an evaluation.
GROUP = 32


class Moment(NamedTuple):
    """Frame `time` of a drive."""

    drive: Drive
    time: int

    @property
    def z(self) -> np.ndarray:
        """The latent that the agent saw, float32 [z]."""
        return self.drive.z[self.time]


def groups(moments: Sequence[Moment]) -> list[list[Moment]]:
    """Groups of GROUP moments, the last one filled up with its last."""
    firsts = range(0, len(moments), GROUP)
    return [filled(moments[first : first + GROUP], GROUP) for first in firsts]


def burned_in(m: MDNRNN, moments: Sequence[Moment], steps: int) -> Carry:
    """M's carries, h and c [n, h], on arriving at moments of drives of at most `steps` frames."""
    z, actions = stacked([moment.drive for moment in moments], steps)
    times = jnp.array([moment.time for moment in moments], jnp.int32)
    return _burn_in(m, jnp.asarray(z), jnp.asarray(actions), times)


@eqx.filter_jit
def _burn_in(
    m: MDNRNN,
    z: Float[Array, "n t1 z"],
    actions: Float[Array, "n t a"],
    times: Int[Array, "n"],
) -> Carry:
    def one(z: Array, actions: Array, time: Array) -> Carry:
        def at(first: Array, after: Array) -> Array:
            return jnp.where(time > 0, after[time - 1], first)

        return jax.tree.map(at, m.initial_carry(), m.unroll(z[:-1], actions))

    return jax.vmap(one)(z, actions, times)
