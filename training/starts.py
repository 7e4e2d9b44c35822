"""Start states, real moments from which dreams begin; and the world that they, V and M make."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from agents.laps import LOST_FRAMES
from training.latents import EpisodeLatents, LatentShard
from training.trouble import losses
from wm_env.mdn_rnn import MDNRNN
from wm_env.task import Task
from wm_env.vae import VAE
from wm_env.world_model import Metadata, StartStates, WorldModel

BURN_IN = (
    120  # steps before a moment in the middle; from there on h depends on little that came earlier
)
_Middle = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # latents, actions, motion up to it

# A hard moment: more than so many tiles in the 40 frames before, and from 20 to 60 frames on the
# road is lost, or the steering of half a second has that mean, which is that of a hairpin.
_FAST, _SOON, _HAIRPIN = 8, (20, 60), 0.35


def start_states(
    mdn_rnn: MDNRNN,
    shards: list[LatentShard],
    *,
    first: int = 256,
    middle: int = 512,
    hard: float = 0.0,
    seed: int = 0,
) -> StartStates:
    """Draw first frames, and moments on the road in mid-episode with the carry burned in.

    So many as the share `hard` of `middle`, where there are, are of fast cars shortly before a
    hairpin or the road's loss: trouble is rare among others. Episodes of a task without tiles may
    be short: then half of a typical one burns in.

    Raises:
        ValueError: `hard` is not a share, or the task has no road.
    """
    task, burn_in = shards[0].task, BURN_IN
    check_hard(hard, task)
    if not task.pays_tiles:
        lengths = [row.length for shard in shards for row in shard.rows]
        burn_in = min(BURN_IN, max(1, int(np.median(lengths)) // 2))
    random = np.random.default_rng(seed)
    firsts: list[np.ndarray] = []
    middles: list[_Middle] = []
    troubled: list[_Middle] = []
    order = random.permutation(len(shards))
    per_shard = -(-middle // len(shards)) * 2
    for index in order:
        episodes = list(shards[index].episodes(mirrored=lambda: bool(random.random() < 0.5)))
        firsts += [
            episode.mu[0].copy() for episode in episodes
        ]  # of their arrays nothing else stays
        moments = [(episode, at) for episode in episodes for at in _moments(episode, task, burn_in)]
        middles += _draw(moments, per_shard, burn_in, random)
        if hard:
            moments = [(episode, at) for episode in episodes for at in _hard_moments(episode)]
            troubled += _draw(moments, per_shard, burn_in, random)
    if not middles:  # a tiny or hopeless set: begin in the middle where others begin an episode
        still = np.zeros((burn_in, task.action_size), np.float32)
        middles = [(np.repeat(firsts[0][None], burn_in + 1, 0), still, None)]
    first_rows = random.permutation(len(firsts))[:first]
    middle_rows = random.permutation(len(middles))[:middle]
    hard_rows = random.permutation(len(troubled))[: round(hard * middle)]
    drawn = [middles[row] for row in middle_rows[: middle - len(hard_rows)]]
    drawn += [troubled[row] for row in hard_rows]
    z, actions, motion = jax.tree.map(
        lambda *rows: jnp.asarray(np.stack(rows), jnp.float32),
        *drawn,
    )
    carries = _burn_in(mdn_rnn, z[:, :-1], actions, motion)
    last = jax.tree.map(lambda leaf: leaf[:, -1], carries)
    return StartStates(
        first_z=jnp.asarray(np.stack([firsts[row] for row in first_rows]), jnp.float32),
        z=z[:, -1],
        h=last.h,
        c=last.c,
        motion=last.motion,
    )


def assemble_world(
    vae: VAE,
    mdn_rnn: MDNRNN,
    shards: list[LatentShard],
    metadata: dict[str, Any],
    *,
    hard: float = 0.0,
    seed: int = 0,
) -> WorldModel:
    """V, M and start states drawn from the data, as one world."""
    starts = start_states(mdn_rnn, shards, hard=hard, seed=seed)
    return WorldModel(vae, mdn_rnn, starts, Metadata(metadata), shards[0].task)


@eqx.filter_jit
def _burn_in(mdn_rnn: MDNRNN, z: jax.Array, actions: jax.Array, motion: jax.Array | None):
    return jax.vmap(mdn_rnn.unroll)(z, actions, told=motion)


def _draw(
    moments: list[tuple[EpisodeLatents, int]], most: int, burn_in: int, random: np.random.Generator
) -> list[_Middle]:
    """Some of the moments, each with what led there."""
    drawn = []
    for chosen in random.permutation(len(moments))[:most]:
        episode, at = moments[chosen]
        moved = episode.motion
        drawn.append(
            (
                episode.mu[at - burn_in : at + 1].copy(),
                episode.actions[at - burn_in : at].copy(),
                None if moved is None else moved[at - burn_in + 1 : at + 1].copy(),
            )
        )
    return drawn


def _moments(episode: EpisodeLatents, task: Task, burn_in: int) -> np.ndarray:
    """Steps at which tiles were hit both shortly before and shortly after; without tiles, any."""
    if not task.pays_tiles:
        return np.arange(burn_in, len(episode.tiles), 10)
    hit = np.concatenate([[0.0], np.cumsum(episode.tiles > 0)])
    steps = np.arange(BURN_IN, len(episode.tiles) - 60, 10)
    if not len(steps):
        return steps
    return steps[(hit[steps] > hit[steps - 20]) & (hit[steps + 20] > hit[steps])]


def _hard_moments(episode: EpisodeLatents) -> np.ndarray:
    """Steps of a fast car at which a hairpin is near, or the road's loss."""
    hit = np.concatenate([[0.0], np.cumsum(episode.tiles > 0)])
    steered = np.concatenate([[0.0], np.cumsum(episode.actions[:, 0])])
    lost = np.zeros(len(hit), bool)
    lost[losses(episode.tiles)] = True
    steps = np.arange(BURN_IN, len(episode.tiles) - _SOON[1] - LOST_FRAMES, 10)
    begins = steps[:, None] + np.arange(*_SOON)
    bends = abs(steered[begins + LOST_FRAMES] - steered[begins]) > _HAIRPIN * LOST_FRAMES
    return steps[(hit[steps] - hit[steps - 40] > _FAST) & (lost[begins] | bends).any(axis=1)]


def check_hard(hard: float, task: Task) -> None:
    """Look whether a share of hard moments can be.

    Raises:
        ValueError: it is not a share, or the task has no road.
    """
    if not 0.0 <= hard <= 1.0:
        raise ValueError(f"hard_starts is {hard}; expected a share of the moments, 0 to 1.")
    if hard and not task.pays_tiles:
        raise ValueError(
            f"hard_starts is {hard}, but {task.id} has no road whose bends could be hard; "
            "expected 0."
        )
