"""The dreams of a suite of policies: many of each, in groups that share one compiled program."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.episodes import filled
from wm_env.fidelity.driven_dream import DrivenDream, DrivenParams
from wm_env.fidelity.policy_suite import Suite, Variant, drive_variant
from wm_env.progress import progress_bar
from wm_env.rollouts import rollout

# Episodes at once; always as many, as for the lanes of an evaluation.
LANES = 128


def dream_returns(
    members: Sequence[DrivenParams], suite: Suite, dreams: int, *, steps: int, show: bool = True
) -> dict[str, tuple[float, ...]]:
    """Returns of `dreams` dreams of each policy, of at most `steps` frames.

    Dream i has seed i, whoever drives; it is of member i % K of the K worlds.
    """
    variants = jax.tree.map(lambda *leaves: jnp.stack(leaves), *suite.values())
    returns = np.zeros((len(suite), dreams))
    with progress_bar("driving dreams", total=returns.size, unit="dreams", show=show) as bar:
        for index, params in enumerate(members):
            own = range(index, dreams, len(members))
            jobs = [(row, seed) for row in range(len(suite)) for seed in own]
            for first in range(0, len(jobs), LANES):
                group = jobs[first : first + LANES]
                rows, seeds = np.array(filled(group, LANES)).T
                got = np.asarray(_drive(params, variants, rows, seeds.astype(np.uint32), steps))
                returns[tuple(np.array(group).T)] = got[: len(group)]
                bar.advance(len(group), frames=len(group) * steps)
    return {
        name: tuple(round(ret, 4) for ret in row)
        for name, row in zip(suite, returns.tolist(), strict=True)
    }


@eqx.filter_jit
def _drive(
    params: DrivenParams, variants: Variant, rows: Array, seeds: Array, steps: int
) -> Float[Array, "n"]:
    env = DrivenDream()

    def one(row: Array, seed: Array) -> Array:
        variant = jax.tree.map(lambda leaf: leaf[row], variants)
        return rollout(env, params, drive_variant, variant, jax.random.key(seed), steps=steps).ret

    return jax.vmap(one)(rows, seeds)
