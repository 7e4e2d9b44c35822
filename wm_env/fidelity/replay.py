"""Closed-loop replay of failures: from shortly before one, the same policy drives on in the dream.

A dream can be right with the real actions and still obey whoever drives in it; this finds out. A
failure is chosen for how it ended, and a dream may rightly end otherwise now and then, so ordinary
moments of the same drives are replayed too: the dream should tell the two apart as reality does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.fidelity.driven_dream import DrivenDream, DrivenParams, remembering
from wm_env.fidelity.drives import Drive
from wm_env.fidelity.estimates import Estimate
from wm_env.fidelity.moments import Moment, burned_in, groups
from wm_env.fidelity.policy_suite import Suite, Variant, drive_variant
from wm_env.mdn_rnn import Carry
from wm_env.progress import progress_bar
from wm_env.rollouts import rollout

ORDINARY = "ordinary driving"


@dataclass(frozen=True)
class ReplayConfig:
    """What counts as a failure, from where it is replayed, and how often."""

    quiet: int = 100  # steps without a tile, of a car that had hit some
    least_tiles: int = 5  # hit before them
    leads: tuple[int, ...] = (10, 20, 40)  # steps before the last tile
    steps: int = 100  # dreamt and compared
    moments: int = 64  # at most, for each lead
    dreams: int = 8  # from each moment


@dataclass(frozen=True)
class Replay:
    """Tiles in the next steps: what the car really hit, and what dreams paid."""

    name: str
    real: Estimate
    dreamt: Estimate  # of moments, each the mean of its dreams


def before_failures(lead: int) -> str:
    """The name of the replay that begins `lead` steps before failures."""
    return f"{lead} steps before"


def find_failures(drive: Drive, config: ReplayConfig) -> list[int]:
    """Steps of the last tile before the car hit none for long, or before it left the field."""
    hits = np.flatnonzero(drive.tiles)
    ends = [*hits[1:].tolist(), drive.length + (drive.off_field * config.quiet)]
    enough = np.cumsum(drive.tiles)[hits] >= config.least_tiles
    pairs = zip(hits.tolist(), ends, enough.tolist(), strict=True) if len(hits) else ()
    return [hit for hit, end, driving in pairs if driving and end - hit > config.quiet]


def find_ordinary(drive: Drive, config: ReplayConfig) -> list[int]:
    """Frames of a moving car whose next steps no failure touches."""
    failures = find_failures(drive, config)
    last = drive.length - config.steps
    return [
        time
        for time in range(config.quiet, last + 1, config.steps)
        if drive.tiles[time - config.quiet : time].sum() >= config.least_tiles
        and not any(
            time + config.steps > step - max(config.leads) and time < step + config.quiet
            for step in failures
        )
    ]


def replay(
    members: Sequence[DrivenParams],
    suite: Suite,
    drives: Sequence[Drive],
    config: ReplayConfig,
    *,
    steps: int,
    seed: int = 0,
    show: bool = True,
) -> list[Replay]:
    """Replay each lead's moments, and ordinary ones, of drives of at most `steps` frames.

    Dream i from a moment is of member i % K of the K worlds.
    """
    failures = [Moment(drive, time) for drive in drives for time in find_failures(drive, config)]
    failures = [moment for moment in failures if moment.time >= max(config.leads)]
    chosen = {
        before_failures(lead): [
            Moment(drive, time - lead) for drive, time in _spread(failures, config.moments)
        ]
        for lead in config.leads
    }
    ordinary = [Moment(drive, time) for drive in drives for time in find_ordinary(drive, config)]
    chosen[ORDINARY] = _spread(ordinary, config.moments)
    key, results = jax.random.key(seed), []
    with progress_bar("replaying", total=len(chosen), unit="kinds", show=show) as bar:
        for name, moments in chosen.items():
            dreamt = _dreamt_tiles(members, suite, moments, config, steps, key)
            real = [drive.tiles[time : time + config.steps].sum() for drive, time in moments]
            results.append(Replay(name, Estimate.of(real), Estimate.of(dreamt)))
            bar.advance(1)
    return results


def _spread(moments: list[Moment], count: int) -> list[Moment]:
    """At most `count` of them, evenly over policies and tracks."""
    if len(moments) <= count:
        return moments
    return [moments[index] for index in np.linspace(0, len(moments) - 1, count).astype(int)]


def _dreamt_tiles(
    members: Sequence[DrivenParams],
    suite: Suite,
    moments: list[Moment],
    config: ReplayConfig,
    steps: int,
    key: Array,
) -> np.ndarray:
    """Mean tiles of each moment's dreams, [moments]."""
    tiles = [np.zeros(0)]
    for index, group in enumerate(groups(moments)):
        variants = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *[suite[drive.policy] for drive, _ in group]
        )
        z = jnp.stack([moment.z for moment in group])
        keys = jax.random.split(jax.random.fold_in(key, index), (len(group), config.dreams))
        dreamt = []
        for member, params in enumerate(members):
            own = keys[:, member :: len(members)]
            carries = burned_in(params.world_model.mdn_rnn, group, steps)
            memories = burned_in(params.driver, group, steps)
            dream = _dream_on(params, variants, z, carries, memories, own, config.steps)
            dreamt.append(np.asarray(dream))
        tiles.append(np.concatenate(dreamt, axis=1).mean(axis=1))
    return np.concatenate(tiles)[: len(moments)]


@eqx.filter_jit
def _dream_on(
    params: DrivenParams,
    variants: Variant,
    z: Array,
    carries: Carry,
    memories: Carry,
    keys: Array,
    steps: int,
) -> Float[Array, "n dreams"]:
    env = DrivenDream()

    def one(variant: Variant, z: Array, carry: Carry, memory: Carry, key: Array) -> Array:
        key_state, key_drive = jax.random.split(key)
        state = remembering(env.state_at(key_state, z, carry, params), memory)
        drive = rollout(env, params, drive_variant, variant, key_drive, steps=steps, state=state)
        return drive.tiles

    each_dream = jax.vmap(one, in_axes=(None, None, None, None, 0))
    return jax.vmap(each_dream)(variants, z, carries, memories, keys)
