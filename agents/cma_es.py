"""CMA-ES over controllers in the dream: one generation is three compiled programs.

Source: Hansen (2016), "The CMA Evolution Strategy: A Tutorial", as evosax implements it; Ha &
Schmidhuber (2018), A.4.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import CMA_ES
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from agents.dream_mix import DreamMix
from agents.laps import lap_return, missing, straying
from agents.principal_axes import PrincipalAxes
from wm_env.cores import usable_cores
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.mdn_rnn import MDNRNNConfig
from wm_env.reward import TRACK_REWARD
from wm_env.rollouts import Policy, Rollout, Trajectory, rollout
from wm_env.task import CAR_RACING, Task

# Dreams begin alike for all candidates and then differ, which the check of what varies from device
# to device would not let pass.
try:
    _shard_map = functools.partial(jax.shard_map, check_vma=False)
except AttributeError:  # JAX 0.6.0
    from jax.experimental.shard_map import shard_map  # pyright: ignore

    _shard_map = functools.partial(shard_map, check_rep=False)

_STAGES = 5  # of a growing horizon, each of which compiles a program of its own
_FIXED_DREAMS = 64

# About so many dreams at once for a core: their states then stay in its caches, and a generation of
# 4,096 takes a tenth less on two (docs/performance.md).
_AT_ONCE = 512


@dataclass(frozen=True)
class CMAESConfig:
    """Size of the search, and what it looks for.

    Every candidate of a generation dreams the same `dreams` dreams (starts and noise), so that
    luck does not choose; `steps` is the horizon in frames, 50 a second. With `steps_from` it grows
    from there in five equal stages, the last of which begins at generation `steps_generations`.

    Candidates are ranked by their return, by `tiles` alone, 1000/N for each, whatever the time and
    the falls, or by what a `lap` of the real track would have paid them: see `agents.laps`.
    `restlessness` is subtracted for a driver whose inputs change by 1 a frame, and in proportion
    for less; `straying` for each thousand frames in which he is lost, as dreams lose fast cars too
    rarely; `missing` where he is sure to have missed a tile, and in proportion to how likely he
    has, in worlds that keep track of the car's motion. Beside episodes each candidate dreams
    `moments` of `moment_steps` frames from middles of real drives, whose mean worth counts
    `moment_weight` times: trouble is rare in an episode.

    With `axes` the search of a linear controller moves along so many principal axes of what drivers
    see, in units of `sigma`, instead of in all its numbers: see `agents.principal_axes`.
    """

    population: int = 64  # Ha & Schmidhuber (2018)
    dreams: int = 16  # Ha & Schmidhuber (2018)
    steps: int = 600
    sigma: float = 0.1
    steps_from: int | None = None
    steps_generations: int = 50
    fitness: Literal["return", "tiles", "lap"] = "return"
    restlessness: float = 0.0
    straying: float = 0.0
    missing: float = 0.0
    moments: int = 0
    moment_steps: int = 130
    moment_weight: float = 2.0
    axes: int | None = None

    def horizon(self, generation: int) -> int:
        """Frames of a dream in a generation; the first is number 1."""
        if self.steps_from is None or generation >= self.steps_generations:
            return self.steps
        stage = (_STAGES - 1) * (generation - 1) // (self.steps_generations - 1)
        return self.steps_from + (self.steps - self.steps_from) * stage // (_STAGES - 1)

    def check(self) -> None:
        """Look whether such a search can be.

        Raises:
            ValueError: a number is out of its range.
        """
        least = {"population": 4, "dreams": 1, "steps": 1, "steps_generations": 1}
        least |= {"moments": 0, "moment_steps": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected {minimum} or more. The defaults "
                    f"are {CMAESConfig()}."
                )
        if not 0.0 < self.sigma < math.inf:
            raise ValueError(
                f"sigma is {self.sigma}; expected a number above 0: how far from the controller "
                "the first candidates are, 0.1 unless told."
            )
        for name, meaning in (
            ("restlessness", "the return that restless driving costs"),
            ("straying", "the return that a thousand frames off the road cost"),
            ("missing", "the return that a missed tile costs"),
            ("moment_weight", "how much a moment counts beside an episode"),
        ):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more, {meaning}.")
        if self.steps_from is not None and not 1 <= self.steps_from <= self.steps:
            raise ValueError(
                f"steps_from is {self.steps_from}; expected 1 to steps, {self.steps}, to which the "
                "horizon grows. Leave it out for one horizon throughout."
            )

    def check_task(self, task: Task) -> None:
        """Look whether such a search can be in dreams of a task.

        Raises:
            ValueError: it is after tiles, which the task has not.
        """
        if task.pays_tiles:
            return
        for name, expected in (("fitness", "return"), ("straying", 0.0), ("missing", 0.0)):
            if getattr(self, name) != expected:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but {task.id} has no tiles; expected "
                    f"{expected!r}."
                )

    def check_memory(self, mdn_rnn: MDNRNNConfig) -> None:
        """Look whether M can tell what the search puts a price on.

        Raises:
            ValueError: a missed tile, which M tells where it keeps track of the car's motion.
        """
        if self.missing and not mdn_rnn.motion:
            raise ValueError(
                f"missing is {self.missing}, but the world's M does not keep track of the car's "
                "motion, by which a missed tile is told; expected 0. Take a world whose M does, as "
                "carracing_motion, or fit one with memory.mdn-rnn.motion."
            )


class Generation(NamedTuple):
    """How a generation went: returns in all its dreams, the mean controller's in fixed ones."""

    mean_return: Float[Array, ""]
    best_return: Float[Array, ""]
    fixed_return: Float[Array, ""]


class Evolution:
    """A search from `controller` on.

    `state = init(key)`, then `state, generation = advance(state, mix, key)`, again and again.
    The solution is `controller(state)`, the distribution's mean: the luckiest sample is never kept.

    The population is split evenly over this process's devices, as many as divide it.

    Raises:
        ValueError: the configuration is out of range.
    """

    def __init__(
        self,
        controller: Any,
        policy: Policy,
        config: CMAESConfig,
        axes: PrincipalAxes | None = None,
    ):
        config.check()
        self.config = config
        self._policy = policy
        self._axes = axes
        self._template = controller if axes is None else axes.start
        self._strategy = CMA_ES(population_size=config.population, solution=self._template)
        # Of several processes one evolves, and has no say over the devices of the others.
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices[: math.gcd(config.population, len(devices))]), ("lanes",))
        self._first = devices[0]
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec("lanes"))
        leaves, structure = jax.tree.flatten(self._template)
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        self._kind = (policy, config, self._split, structure, *shapes)

    # Searches are static arguments of their programs, which alike ones share.
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
        return _at(self._strategy.get_mean(state), self._axes)

    def advance(
        self, state: Any, mix: DreamMix, key: Array, *, number: int | None = None
    ) -> tuple[Any, Generation]:
        """One generation: ask, dream, tell. Its `number` tells the horizon; the last one's if None.

        Worlds and their parameters are arguments: swapping them compiles nothing.

        Raises:
            ValueError: the dreams cannot be spread evenly over the worlds of the mix.
        """
        for name in ("dreams", "moments"):
            if getattr(self.config, name) % mix.worlds:
                raise ValueError(
                    f"{name} is {getattr(self.config, name)}; expected a multiple of the "
                    f"{mix.worlds} worlds, over which they are spread evenly. Take {mix.worlds} or "
                    f"{2 * mix.worlds}, say."
                )
        steps = self.config.steps if number is None else self.config.horizon(number)
        key_ask, key_dreams, key_tell = jax.random.split(key, 3)
        keys = key_dreams, jax.random.fold_in(key, 3)
        population, state = self._ask(key_ask, jax.device_put(state, self._first))
        mix, keys, axes = jax.device_put((mix, keys, self._axes), self._whole)
        found = self._driven(jax.device_put(population, self._split), mix, keys, axes, steps)
        returns, worth, mix, axes = jax.device_put((*found, mix, axes), self._first)
        return self._tell(key_tell, population, returns, worth, state, mix, axes)

    @eqx.filter_jit
    def _ask(self, key: Array, state: Any) -> tuple[Any, Any]:
        return self._strategy.ask(key, state, self._strategy.default_params)

    # A program of its own, in which no device waits for another: XLA ends a process on a CPU whose
    # devices come to one and the same point more than a minute apart.
    @eqx.filter_jit
    def _driven(
        self,
        population: Any,
        mix: DreamMix,
        keys: tuple[Array, Array],
        axes: PrincipalAxes | None,
        steps: int,
    ) -> tuple[Array, Array]:
        """Return and worth of each candidate, each device's own."""
        config = self.config

        def driven(dreams: DreamMix, key: Array, count: int, horizon: int) -> tuple[Array, Array]:
            def one(candidate: Any) -> tuple[Array, Array]:
                dream = functools.partial(self._dream, _at(candidate, axes), steps=horizon)
                returns, worth = dreams.each(dream, key, count)
                return returns.mean(), worth.mean()

            return self.map(one, population, count)

        returns, worth = driven(mix, keys[0], config.dreams, steps)
        if config.moments:
            middles = eqx.tree_at(lambda mix: mix.params.start_middle, mix, jnp.float32(1.0))
            _, more = driven(middles, keys[1], config.moments, config.moment_steps)
            worth += config.moment_weight * more
        return returns, worth

    @eqx.filter_jit
    def _tell(
        self,
        key: Array,
        population: Any,
        returns: Array,
        worth: Array,
        state: Any,
        mix: DreamMix,
        axes: PrincipalAxes | None,
    ) -> tuple[Any, Generation]:
        defaults = self._strategy.default_params
        state, _ = self._strategy.tell(key, population, -worth, state, defaults)  # evosax minimises
        controller = _at(self._strategy.get_mean(state), axes)
        keys = jax.random.split(jax.random.key(0), _FIXED_DREAMS)
        dream = functools.partial(self._dream, controller, mix.plain, steps=self.config.steps)
        fixed, _ = jax.vmap(dream)(keys)
        return state, Generation(returns.mean(), returns.max(), fixed.mean())

    def map(self, drive: Callable[[Any], Any], population: Any, dreams: int) -> Any:
        """`drive` of all candidates, who have so many dreams each: by each device of its share, at
        once or on a CPU in equal parts."""
        mesh, lanes = self._split.mesh, self._split.spec
        size = at_once = self.config.population // mesh.size
        if jax.default_backend() == "cpu":
            most = _AT_ONCE * max(1, usable_cores() // mesh.size) / dreams
            parts = (part for part in range(1, size + 1) if size % part == 0)
            at_once = min(parts, key=lambda part: abs(math.log(part / most)))
        share = functools.partial(jax.lax.map, drive, batch_size=at_once)
        # Left to the compiler, parts would take candidates from all devices.
        return _shard_map(share, mesh=mesh, in_specs=lanes, out_specs=lanes)(population)

    def _dream(
        self, controller: Any, params: DreamParams, key: Array, steps: int
    ) -> tuple[Array, Array]:
        """Return and fitness of one dream."""
        config = self.config
        prices = config.restlessness, config.straying, config.missing
        record = any(prices) or config.fitness == "lap"
        env = DreamCarRacing(task=params.world_model.task)
        driven = rollout(env, params, self._policy, controller, key, steps=steps, record=record)
        return driven.ret, fitness(driven, params, self.config)


def _at(candidate: Any, axes: PrincipalAxes | None) -> Any:
    """The controller that a candidate stands for."""
    return candidate if axes is None else axes.controller(candidate)


def fitness(driven: Rollout, params: DreamParams, config: CMAESConfig) -> Float[Array, ""]:
    """What an episode is worth to a search; it has a trajectory where more than its end counts."""
    score, task = driven.ret, params.world_model.task
    if config.fitness == "tiles":
        score = TRACK_REWARD / params.track_tiles * driven.tiles
    if driven.trajectory is None:
        return score
    if config.fitness == "lap":
        score = lap_return(driven.trajectory, params.track_tiles)
    if config.straying > 0.0:
        score -= config.straying * straying(driven.trajectory, params.track_tiles)
    if config.missing > 0.0:
        score -= config.missing * missing(driven.trajectory, params.track_tiles)
    return score - config.restlessness * restlessness(driven.trajectory, task)


def restlessness(trajectory: Trajectory, task: Task = CAR_RACING) -> Float[Array, ""]:
    """By how much a driver's inputs change from frame to frame, on average until the episode ends.

    0 to 2/3 or more: the mean over steer, gas and brake, of which steer spans 2.
    """
    clipped = jax.vmap(lambda action: jnp.clip(action, task.low, task.high))
    change = jnp.abs(jnp.diff(clipped(trajectory.action), axis=0)).mean(axis=1)
    driven = trajectory.alive[1:].astype(change.dtype)
    return jnp.sum(change * driven) / jnp.maximum(jnp.sum(driven), 1.0)
