"""CMA-ES of the linear controller from zeros, in the dream or on the real car.

The search is that of README's "your own driver": ten generations of episodes of 600 frames, then
whole laps of 1,000, in smaller steps. In the dream each candidate has 8 episodes, the later ones by
what a lap would pay and with a price on being lost; on the real car one, by its return, on a track
that all of its generation share. Dreamt frames count as if no dream ended early.
"""

import itertools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import CMA_ES
from gymnasium.vector import VectorEnv

from agents.cma_es import CMAESConfig, Evolution
from agents.dream_mix import DreamMix
from agents.linear import LinearController, linear_policy
from wm_env.dream import DreamParams
from wm_env.rollouts import Policy
from wm_env.world_model import WorldModel

_BEGINNING = 10  # generations
_BY_RETURN = CMAESConfig(dreams=8, steps=600, sigma=0.1)
_BY_LAPS = CMAESConfig(dreams=8, steps=1000, sigma=0.05, fitness="lap", straying=2000.0)
_FIRST_TRACK = 50_000  # one a generation: far from those that choose or judge

# Is told after each generation: frames so far, and the policy with its parameters.
Tell = Callable[[int, Policy, LinearController], None]


def learn_in_dreams(world: WorldModel, seed: int, tell: Tell) -> None:
    """Search until `tell` raises."""
    frames, controller = 0, LinearController.zeros(world.latent_size + world.hidden_size)
    for part, (search, generations) in enumerate(_parts()):
        params = DreamParams(world_model=world, start_middle=0.3, max_steps_in_episode=search.steps)
        evolution, key = Evolution(controller, linear_policy, search), jax.random.key(seed)
        state, mix = evolution.init(key), DreamMix(params)
        for number in generations:
            state, _ = evolution.advance(state, mix, jax.random.fold_in(key, 1000 * part + number))
            controller = evolution.controller(state)
            frames += search.population * search.dreams * search.steps
            tell(frames, linear_policy, controller)


def learn_on_the_road(envs: VectorEnv, seed: int, tell: Tell) -> None:
    """Search until `tell` raises; the lanes drive the candidates of a generation by turns."""
    frames, controller = 0, LinearController.zeros(envs.single_observation_space.shape[0])
    tracks = itertools.count(_FIRST_TRACK + 1000 * seed)
    for part, (search, generations) in enumerate(_parts()):
        strategy = CMA_ES(population_size=search.population, solution=controller)
        key, defaults = jax.random.key(seed), strategy.default_params
        params = defaults.replace(std_init=jnp.float32(search.sigma))
        state = strategy.init(key, controller, params)
        for number in generations:
            key_ask, key_tell = jax.random.split(jax.random.fold_in(key, 1000 * part + number))
            population, state = strategy.ask(key_ask, state, defaults)
            returns, driven = _drive(population, envs, next(tracks), search.steps)
            state, _ = strategy.tell(key_tell, population, -returns, state, defaults)
            controller, frames = strategy.get_mean(state), frames + driven
            tell(frames, linear_policy, controller)


def _parts() -> tuple[tuple[CMAESConfig, Iterable[int]], ...]:
    return (_BY_RETURN, range(_BEGINNING)), (_BY_LAPS, itertools.count())


def _drive(
    population: LinearController, envs: VectorEnv, track: int, steps: int
) -> tuple[jax.Array, int]:
    """Each candidate's return on a track, and the frames of all."""
    lanes, returns, frames = envs.num_envs, [], 0
    for first in range(0, len(population.bias), lanes):
        group = jax.tree.map(lambda leaf, first=first: leaf[first : first + lanes], population)
        seen, _ = envs.reset(seed=[track] * lanes)  # pyright: ignore[reportArgumentType]
        running, total = np.ones(lanes, bool), np.zeros(lanes)
        for _ in range(steps):
            seen, rewards, terminated, truncated, _ = envs.step(np.asarray(_act(group, seen)))
            total += running * rewards
            frames += int(running.sum())
            running &= ~(terminated | truncated)
            if not running.any():
                break
        returns.append(total)
    return jnp.asarray(np.concatenate(returns), jnp.float32), frames


@jax.jit
def _act(controllers: LinearController, seen: jax.Array) -> jax.Array:
    return jax.vmap(lambda controller, one: controller(one))(controllers, seen)
