"""CMA-ES over controllers in the dream: one generation is one compiled program.

Source: Hansen (2016), "The CMA Evolution Strategy: A Tutorial", as evosax implements it; Ha &
Schmidhuber (2018), A.4.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from evosax.algorithms import CMA_ES
from jaxtyping import Array, Float

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import Policy, Rollout, rollout


@dataclass(frozen=True)
class CMAESConfig:
    """Size of the search.

    Every candidate of a generation dreams the same `dreams` dreams (starts and noise), so that
    luck does not choose; `steps` is the horizon in frames, 50 a second.
    """

    population: int = 64  # Ha & Schmidhuber (2018)
    dreams: int = 16  # Ha & Schmidhuber (2018)
    steps: int = 600
    sigma: float = 0.1


class Generation(NamedTuple):
    """How a generation went: returns in all its dreams, the mean controller's in fixed ones."""

    mean_return: Float[Array, ""]
    best_return: Float[Array, ""]
    fixed_return: Float[Array, ""]


class Evolution:
    """A search from `controller` on.

    `state = init(key)`, then `state, generation = advance(state, params, key)`, again and again.
    The solution is `controller(state)`, the distribution's mean: the luckiest sample is never kept.
    """

    def __init__(self, controller: Any, policy: Policy, config: CMAESConfig):
        self.config = config
        self._policy = policy
        self._template = controller
        self._strategy = CMA_ES(population_size=config.population, solution=controller)
        self._env = DreamCarRacing()
        leaves, structure = jax.tree.flatten(controller)
        self._kind = (policy, config, structure, *((leaf.shape, leaf.dtype) for leaf in leaves))

    # Searches are static arguments of `advance`: alike ones share its compiled program.
    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._kind == other._kind

    def __hash__(self) -> int:
        return hash(self._kind)

    def init(self, key: Array) -> Any:
        """The state of a search that begins at the controller with step size sigma."""
        params = self._strategy.default_params.replace(std_init=jnp.float32(self.config.sigma))
        state = self._strategy.init(key, self._template, params)
        # Strongly typed, as `tell` leaves it: weak types would compile the first generation apart.
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)

    def controller(self, state: Any) -> Any:
        """The distribution's mean, as a controller."""
        return self._strategy.get_mean(state)

    @eqx.filter_jit
    def advance(self, state: Any, params: DreamParams, key: Array) -> tuple[Any, Generation]:
        """One generation: ask, dream, tell.

        Worlds and their parameters are arguments: swapping them compiles nothing.
        """
        key_ask, key_dreams, key_tell = jax.random.split(key, 3)
        defaults = self._strategy.default_params
        population, state = self._strategy.ask(key_ask, state, defaults)
        keys = jax.random.split(key_dreams, self.config.dreams)
        returns = jax.vmap(lambda candidate: self._dream(candidate, params, keys).ret.mean())(
            population
        )
        state, _ = self._strategy.tell(
            key_tell, population, -returns, state, defaults
        )  # evosax minimises
        fixed = self._dream(self.controller(state), params, jax.random.split(jax.random.key(0), 64))
        return state, Generation(returns.mean(), returns.max(), fixed.ret.mean())

    def _dream(self, controller: Any, params: DreamParams, keys: Array) -> Rollout:
        return jax.vmap(
            lambda key: rollout(
                self._env, params, self._policy, controller, key, steps=self.config.steps
            )
        )(keys)
