"""What M expects along real episodes: step by step beside them, and alone in dreams."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from training.latents import EpisodeLatents
from wm_env.foresight import Foresight, dream_on, foresee
from wm_env.mdn_rnn import MDNRNN
from wm_env.task import CAR_RACING, Task
from wm_env.vae import VAE
from wm_env.world_model import StartStates, WorldModel

_LANES, _STEPS = 8, 1000  # of one compiled program; 1000 is CarRacing's time limit


@dataclass(frozen=True)
class Dreams:
    """Open-loop dreams of n steps from frame `alone` of an episode on, with its actions.

    z [dreams, watched + 1 + n, z] begins with the real frames that M watched, up to `alone`; tiles
    [dreams, n] are what M expects of each step after.
    """

    alone: int
    z: np.ndarray
    tiles: np.ndarray


def world_of(vae: VAE, mdn_rnn: MDNRNN, task: Task = CAR_RACING) -> WorldModel:
    """V and M as a world that starts at the origin, for those who only follow real episodes."""
    z, h = jnp.zeros((1, mdn_rnn.config.latent_size)), jnp.zeros((1, mdn_rnn.config.hidden_size))
    return WorldModel(vae, mdn_rnn, StartStates(first_z=z, z=z, h=h, c=h), task=task)


def foretell(world: WorldModel, episodes: Sequence[EpisodeLatents]) -> list[Foresight]:
    """M's expectations along whole episodes, on the host."""
    steps = max(_STEPS, *(len(episode.actions) for episode in episodes))
    foretold = []
    for first in range(0, len(episodes), _LANES):
        group = episodes[first : first + _LANES]
        lanes = [_window(episode, 0, steps) for episode in group]
        lanes += lanes[:1] * (_LANES - len(group))
        z, actions = map(np.stack, zip(*lanes, strict=True))
        foresight = jax.device_get(_foretell(world, z, actions))
        for lane, episode in enumerate(group):
            own = np.s_[lane, : len(episode.actions)]
            foretold.append(jax.tree.map(lambda array, own=own: array[own], foresight))
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
    keys = jax.random.split(jax.random.key(seed), len(temperatures))
    tau = np.asarray(temperatures, np.float32)
    dreamt, tiles = jax.device_get(_dream(world, z[: watch + 1], actions, keys, tau))
    length = min(steps, len(episode.actions) - begin - watch)
    return Dreams(begin + watch, dreamt[:, : watch + 1 + length], tiles[:, :length])


def _window(episode: EpisodeLatents, begin: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents float32 [steps + 1, z] and actions [steps, a] from `begin` on, zeros after the end.

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
    world: WorldModel, z: Array, actions: Array, keys: Array, temperatures: Array
) -> tuple[Array, Array]:
    """Latents z and what follows, and the tiles of what follows, for each key and temperature."""
    watched = len(z) - 1
    carry = world.burn_in(z, actions[:watched])

    def one(key: Array, temperature: Array) -> tuple[Array, Array]:
        alone = z[-1], carry, actions[watched:]
        dreamt = dream_on(world, *alone, key=key, temperature=temperature)
        return jnp.concatenate([z, dreamt.z]), dreamt.tiles

    return jax.vmap(one)(keys, temperatures)
