"""evosax in the dream: one line changes the algorithm.

`python -m agents.third_party.evosax_strategies --strategy PGPE`. The project's own search,
`python -m agents evolve`, adds real validation, resuming and more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import evosax.algorithms
import gymnax
import jax
import optax
import tyro

import wm_env
from agents.linear import LinearController, linear_policy

STRATEGIES: dict[str, Callable[..., Any]] = {
    "OpenES": lambda **search: evosax.algorithms.Open_ES(
        **search, optimizer=optax.adam(0.1), std_schedule=optax.constant_schedule(0.1)
    ),
    "SepCMAES": evosax.algorithms.Sep_CMA_ES,
    "PGPE": lambda **search: evosax.algorithms.PGPE(**search, optimizer=optax.adam(0.1)),
    "CMAES": evosax.algorithms.CMA_ES,
}


@dataclass(frozen=True)
class Config:
    """Evolve a linear controller in the dream, then drive real tracks with the search's mean."""

    world: str = "carracing"  # to dream in: file or shipped name
    strategy: Literal["OpenES", "SepCMAES", "PGPE", "CMAES"] = "OpenES"
    generations: int = 50
    population: int = 64
    dreams: int = 8  # of each candidate, the same for all
    frames: int = 600  # of a dream
    seed: int = 0
    episodes: int = 4  # real tracks driven at the end, seeds 0, 1, ...


def train(config: Config) -> LinearController:
    """Evolve in the dream; gives the mean of the last generation."""
    env, params = gymnax.make("DreamCarRacing-v0", world_model=config.world)
    zeros = LinearController.zeros(env.observation_space(params).shape[0])
    strategy = STRATEGIES[config.strategy](population_size=config.population, solution=zeros)
    settings = strategy.default_params
    if hasattr(settings, "std_init"):  # OpenES has a schedule instead
        settings = settings.replace(std_init=0.1)

    @jax.jit
    def generation(state: Any, params: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        key_ask, key_dreams, key_tell = jax.random.split(key, 3)
        keys = jax.random.split(key_dreams, config.dreams)
        population, state = strategy.ask(key_ask, state, settings)

        def dreamt(controller: LinearController, key: jax.Array) -> jax.Array:
            return wm_env.rollout(
                env, params, linear_policy, controller, key, steps=config.frames
            ).ret

        returns = jax.vmap(jax.vmap(dreamt, (None, 0)), (0, None))(population, keys).mean(axis=1)
        state, _ = strategy.tell(key_tell, population, -returns, state, settings)  # it minimises
        return state, returns.mean()

    key_init, key = jax.random.split(jax.random.key(config.seed))
    state = strategy.init(key_init, zeros, settings)
    for number in range(1, config.generations + 1):
        state, mean = generation(state, params, jax.random.fold_in(key, number))
        print(f"generation {number}: mean dreamt return {float(mean):.1f}", flush=True)
    return strategy.get_mean(state)


if __name__ == "__main__":
    config = tyro.cli(Config)
    found, seeds = train(config), range(config.episodes)
    print(wm_env.evaluate(linear_policy, found, seeds=seeds, world_model=config.world).summary())
