"""Real drives on record: what the agent saw as latents, how it acted, and what that paid."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from wm_env.dream import ACTION_HIGH, ACTION_LOW
from wm_env.episodes import LANES, act, filled, keys_of
from wm_env.fidelity.policy_suite import Suite, drive_variant
from wm_env.progress import Bar, progress_bar
from wm_env.real import make_real_vector
from wm_env.reward import TRACK_REWARD, is_off_field, paid_for_tiles, recover_track_tiles
from wm_env.world_model import WorldModel


@dataclass(frozen=True, eq=False)
class Drive:
    """One real episode of `length` frames; frame t is what the agent saw when it took action t."""

    policy: str
    seed: int
    z: np.ndarray  # float32 [length + 1, z]
    actions: np.ndarray  # float32 [length, 3], clipped: those that were taken
    rewards: np.ndarray  # float64 [length]
    images: dict[int, np.ndarray]  # uint8 [64, 64, 3] of the frames that were asked for

    @property
    def length(self) -> int:
        """Frames driven."""
        return len(self.rewards)

    @property
    def ret(self) -> float:
        """Return."""
        return float(np.sum(self.rewards))

    @property
    def off_field(self) -> bool:
        """Whether it ended off the playing field."""
        return bool(is_off_field(self.rewards[-1]))

    @property
    def tiles(self) -> np.ndarray:
        """Tiles hit during each step, float64 [length]."""
        track_tiles = recover_track_tiles(self.rewards)
        return np.rint(paid_for_tiles(self.rewards) * track_tiles / TRACK_REWARD)


def record_drives(
    world: WorldModel,
    suite: Suite,
    seeds: Iterable[int],
    *,
    backend: str,
    steps: int = 1000,
    moments: Iterable[int] = (),
    show: bool = True,
) -> list[Drive]:
    """Drive each policy on the tracks of all seeds.

    Args:
        world: whose V and M see for the policies.
        suite: the policies.
        seeds: one episode each.
        backend: "gymnasium" (one core) or "envpool".
        steps: an episode's time limit.
        moments: times at which images are kept.
        show: whether a bar goes to stderr.
    """
    jobs = [(name, seed) for name in suite for seed in seeds]
    drives: list[Drive] = []
    with progress_bar("driving real", total=len(jobs), unit="episodes", show=show) as bar:
        for first in range(0, len(jobs), LANES):
            group = jobs[first : first + LANES]
            frames = _frames(world, suite, filled(group, LANES), backend, steps)
            drives += _drives(group, frames, set(moments), world.latent_size, bar)
            bar.advance(len(group))
    return drives


def stacked(drives: Sequence[Drive], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """z [n, steps + 1, z] and actions [n, steps, 3] of drives, padded with zeros."""
    z = np.zeros((len(drives), steps + 1, drives[0].z.shape[1]), np.float32)
    actions = np.zeros((len(drives), steps, 3), np.float32)
    for row, drive in enumerate(drives):
        z[row, : drive.length + 1] = drive.z
        actions[row, : drive.length] = drive.actions
    return z, actions


@dataclass(frozen=True, eq=False)
class _Frame:
    """All lanes at one moment, and the action and outcome of the step that led to it."""

    seen: np.ndarray
    images: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    over: np.ndarray


def _frames(
    world: WorldModel, suite: Suite, jobs: list[tuple[str, int]], backend: str, steps: int
) -> Iterator[_Frame]:
    seeds = [seed for _, seed in jobs]
    keys = keys_of(seeds)
    variants = jax.tree.map(lambda *leaves: np.stack(leaves), *[suite[name] for name, _ in jobs])
    with closing(make_real_vector(LANES, world, backend=backend, max_episode_steps=steps)) as env:
        seen, infos = env.reset(seed=seeds)  # pyright: ignore[reportArgumentType]
        nothing = np.zeros(LANES)
        yield _Frame(seen, infos["image"], np.zeros((LANES, 3)), nothing, nothing > 0)
        for step in range(steps):
            actions = act(_own_variant, None, (variants, seen), keys, np.asarray(step))
            seen, rewards, terminated, truncated, infos = env.step(actions)
            taken = np.clip(actions, ACTION_LOW, ACTION_HIGH)
            yield _Frame(seen, infos["image"], taken, rewards, terminated | truncated)


def _own_variant(_: None, lane: tuple[Any, Any], key: Any) -> Any:
    return drive_variant(*lane, key)


def _drives(
    jobs: list[tuple[str, int]],
    frames: Iterator[_Frame],
    moments: set[int],
    latent_size: int,
    bar: Bar,
) -> list[Drive]:
    lengths, record = np.zeros(len(jobs), int), []
    images: dict[int, np.ndarray] = {}
    for time, frame in enumerate(frames):
        record.append((frame.seen[:, :latent_size], frame.actions, frame.rewards))
        if time in moments:
            images[time] = frame.images
        lengths[(lengths == 0) & frame.over[: len(jobs)]] = time
        bar.advance(0, frames=len(jobs) if time else 0)
        if lengths.all():
            break
    z, actions, rewards = (np.stack(rows, axis=1) for rows in zip(*record, strict=True))
    return [
        Drive(
            policy=name,
            seed=seed,
            z=z[lane, : length + 1],
            actions=actions[lane, 1 : length + 1].astype(np.float32),
            rewards=rewards[lane, 1 : length + 1],
            images={time: rows[lane] for time, rows in images.items() if time <= length},
        )
        for lane, ((name, seed), length) in enumerate(zip(jobs, lengths.tolist(), strict=True))
    ]
