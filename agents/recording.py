"""A real episode kept whole: what the driver saw, did and got, and what M makes of it."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wm_env.progress import progress_bar
from wm_env.real import make_real
from wm_env.reward import TYPICAL_TRACK_TILES, recover_track_tiles
from wm_env.rollouts import Policy
from wm_env.world_model import WorldModel

FPS = 50  # frames a second, of CarRacing-v3 and of the dream


@dataclass(frozen=True)
class Recording:
    """One episode of Gymnasium's CarRacing-v3, T steps: frame t was seen before action t.

    images uint8 [T + 1, 64, 64, 3], as V sees them; z [T + 1, z] and h [T + 1, h], as the driver
    saw them; actions [T, 3], clipped to their ranges; rewards [T]; tiles [T] hit in each step.
    """

    seed: int
    images: np.ndarray
    z: np.ndarray
    h: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    tiles: np.ndarray
    lap_finished: bool
    off_field: bool

    @property
    def ret(self) -> float:
        """The episode's return."""
        return float(self.rewards.sum())

    @property
    def length(self) -> int:
        """T."""
        return len(self.actions)

    @property
    def track_tiles(self) -> int:
        """N as the rewards tell it, or that of a typical track where they do not."""
        return recover_track_tiles(self.rewards) or TYPICAL_TRACK_TILES

    @property
    def end(self) -> str:
        """How it ended, in words."""
        if self.lap_finished:
            return "lap finished"
        return "off the field" if self.off_field else "time limit"


def record(
    policy: Policy,
    policy_params: Any,
    world: WorldModel,
    *,
    seed: int,
    max_steps: int = 1000,
    progress: bool = True,
) -> Recording:
    """Drive the real car on the track of `seed`, for at most `max_steps` frames, and keep all."""
    act = jax.jit(policy)
    env = make_real(world, max_episode_steps=max_steps)
    key = jax.random.key(seed)
    try:
        seen, info = env.reset(seed=seed)
        images, features, tiles = [info["image"]], [seen], [0.0]
        actions, rewards, over = [], [], False
        with progress_bar(f"recording seed {seed}", total=max_steps, show=progress) as bar:
            while not over:
                action = act(policy_params, seen, jax.random.fold_in(key, len(actions)))
                actions.append(np.clip(action, [-1.0, 0.0, 0.0], 1.0).astype(np.float32))
                seen, reward, terminated, truncated, info = env.step(actions[-1])
                over = terminated or truncated
                images.append(info["image"])
                features.append(seen)
                tiles.append(info["tiles"])
                rewards.append(reward)
                bar.advance(1, frames=1)
    finally:
        env.close()
    z, h = np.split(np.stack(features), [world.latent_size], axis=1)
    return Recording(
        seed=seed,
        images=np.stack(images),
        z=z,
        h=h,
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        tiles=np.diff(tiles).astype(np.float32),
        lap_finished=bool(info["lap_finished"]),
        off_field=bool(info["off_field"]),
    )


class Dreamt(eqx.Module):
    """An open-loop dream beside a recording: its latents, and how long each was dreamt alone."""

    z: Float[Array, "t z"]
    alone: Int[Array, "t"]  # steps since the last real frame; 0 where the real frame was seen


@dataclass(frozen=True)
class Syncing:
    """When the dream looks at the real road: all through `watch` frames, then every `every`."""

    watch: int = 50  # the first second, in which CarRacing zooms in
    every: int = 5 * FPS

    def looks(self, frames: int) -> np.ndarray:
        """bool [frames]: whether the dream sees the real frame and the real carry there."""
        time = np.arange(frames)
        return (time < self.watch) | ((time - self.watch) % self.every == 0)

    def first_dream(self, frames: int) -> tuple[int, int]:
        """The frame from which the dream is first alone, and the last frame of that dream."""
        begin = min(self.watch, frames - 1)
        return begin, min(begin + self.every, frames) - 1


@jax.jit
def dream_along(
    world: WorldModel,
    z: Array,
    actions: Array,
    looks: Bool[Array, "t"],
    key: PRNGKeyArray,
    temperature: float = 1.0,
) -> Dreamt:
    """Dream with the real actions [T, 3] and without the real latents z [T + 1, z].

    Where `looks` [T + 1] the dream takes over the real latent, and the carry that M has after
    watching up to there.
    """

    def step(now: tuple, frame: tuple) -> tuple[tuple, tuple[Array, Array]]:
        (z, carry, alone), (action, key, looks, *real) = now, frame
        dreamt = world.advance(z, action, carry, key=key, temperature=temperature)
        now = dreamt.z, dreamt.carry, alone + 1
        now = jax.tree.map(lambda a, b: jnp.where(looks, a, b), (*real, 0), now)
        return now, (now[0], now[2])

    m = world.mdn_rnn
    keys = jax.random.split(key, len(actions))
    frames = actions, keys, looks[1:], z[1:], m.unroll(z[:-1], actions)
    begin = z[0], m.initial_carry(), jnp.int32(0)
    _, (dreamt, alone) = jax.lax.scan(step, begin, frames)
    return Dreamt(
        z=jnp.concatenate([z[:1], dreamt]),
        alone=jnp.concatenate([jnp.zeros(1, jnp.int32), alone]),
    )


def decode(world: WorldModel, z: np.ndarray | Array, *, batch: int = 128) -> np.ndarray:
    """Images uint8 [n, 64, 64, 3] of latents [n, z], `batch` of them at a time."""
    z = np.asarray(z)
    padded = np.zeros((-(-len(z) // batch) * batch, z.shape[1]), np.float32)
    padded[: len(z)] = z
    images = [_decode(world, part) for part in padded.reshape(-1, batch, z.shape[1])]
    return np.concatenate(images)[: len(z)]


@jax.jit
def _decode(world: WorldModel, z: Array) -> Array:
    return jax.vmap(world.decode)(z)
