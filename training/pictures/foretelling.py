"""What M expects along real episodes: step by step beside them, and alone in dreams."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from agents.recording import dream_along, foresee
from training.latents import EpisodeLatents
from wm_env.mdn_rnn import MDNRNN
from wm_env.vae import VAE
from wm_env.world_model import StartStates, WorldModel

_LANES, _STEPS = 8, 1000  # of one compiled program; 1000 is CarRacing's time limit


@dataclass(frozen=True)
class Foretold:
    """M's expectation of each of T real steps, teacher-forced: every real latent was seen before.

    next_z [T, z] is the mean of z_{t+1}; tiles [T] the expected number hit, off_field [T] the
    probability; surprise [T] is -log p(z_{t+1}) in nats, summed over z.
    """

    next_z: np.ndarray
    tiles: np.ndarray
    off_field: np.ndarray
    surprise: np.ndarray


@dataclass(frozen=True)
class Dreams:
    """Open-loop dreams beside frames `begin` to `begin + n` of an episode, with its actions.

    M sees the frames up to `alone`, none after. z [dreams, n + 1, z], real up to `alone`; tiles
    [dreams, n] are what M expects of each step.
    """

    begin: int
    alone: int
    z: np.ndarray
    tiles: np.ndarray


def world_of(vae: VAE, mdn_rnn: MDNRNN) -> WorldModel:
    """V and M as a world that starts at the origin, for those who only follow real episodes."""
    z, h = jnp.zeros((1, mdn_rnn.config.latent_size)), jnp.zeros((1, mdn_rnn.config.hidden_size))
    return WorldModel(vae, mdn_rnn, StartStates(first_z=z, z=z, h=h, c=h))


def foretell(world: WorldModel, episodes: Sequence[EpisodeLatents]) -> list[Foretold]:
    """M's expectations along whole episodes."""
    steps = max(_STEPS, *(len(episode.actions) for episode in episodes))
    foretold = []
    for first in range(0, len(episodes), _LANES):
        group = episodes[first : first + _LANES]
        lanes = [_window(episode, 0, steps) for episode in group]
        lanes += lanes[:1] * (_LANES - len(group))
        z, actions = map(np.stack, zip(*lanes, strict=True))
        foresight = jax.device_get(_foretell(world, z, actions))
        arrays = foresight.z, foresight.tiles, foresight.off_field, foresight.surprise
        foretold += [
            Foretold(*(array[lane, : len(episode.actions)] for array in arrays))
            for lane, episode in enumerate(group)
        ]
    return foretold


def dream(
    world: WorldModel,
    episode: EpisodeLatents,
    *,
    begin: int,
    watch: int,
    steps: int,
    temperatures: Sequence[float],
    seed: int = 0,
) -> Dreams:
    """A dream at each of `temperatures`, from frame `begin + watch` on for at most `steps`.

    `watch` frames before it are seen, with a carry of zeros in frame `begin`. A dream lasts to the
    episode's end at the latest.
    """
    z, actions = _window(episode, begin, watch + steps)
    looks = np.arange(len(z)) <= watch
    keys = jax.random.split(jax.random.key(seed), len(temperatures))
    tau = np.asarray(temperatures, np.float32)
    dreamt, tiles = jax.device_get(_dream(world, z, actions, looks, keys, tau))
    length = min(watch + steps, len(episode.actions) - begin)
    return Dreams(begin, begin + watch, dreamt[:, : length + 1], tiles[:, :length])


def _window(episode: EpisodeLatents, begin: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents float32 [steps + 1, z] and actions [steps, 3] from `begin` on, zeros after the end.

    One length for all compiles once; what comes later changes nothing that M expects before.
    """
    z = np.zeros((steps + 1, episode.mu.shape[1]), np.float32)
    actions = np.zeros((steps, episode.actions.shape[1]), np.float32)
    for whole, part in ((z, episode.mu[begin:]), (actions, episode.actions[begin:])):
        whole[: len(part)] = part[: len(whole)]
    return z, actions


_foretell = jax.jit(jax.vmap(foresee, in_axes=(None, 0, 0)))


@jax.jit
def _dream(
    world: WorldModel, z: Array, actions: Array, looks: Array, keys: Array, temperatures: Array
) -> tuple[Array, Array]:
    def one(key: Array, temperature: Array) -> tuple[Array, Array]:
        dreamt = dream_along(world, z, actions, looks, key, temperature).z
        # Along the dreamt latents M's carry is the dream's own: these are the tiles that it pays.
        return dreamt, foresee(world, dreamt, actions).tiles

    return jax.vmap(one)(keys, temperatures)
