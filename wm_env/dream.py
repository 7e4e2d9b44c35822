"""DreamCarRacing-v0: the world model as a gymnax environment. Everything else adapts this one.

Rewards, returns and endings mean what they mean in CarRacing-v3 of Gymnasium: +1000/N for each of
the track's N tiles, -0.1 a frame, -100 instead of the reward when the car leaves the field. Worlds
of other tasks dream as well: they foretell the reward, and the episode's end, themselves.
"""

import functools
import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wm_env.gymnax_parts import environment, spaces
from wm_env.mdn_rnn import Carry
from wm_env.reward import FRAME_REWARD, OFF_FIELD_REWARD, TRACK_REWARD, TYPICAL_TRACK_TILES
from wm_env.task import CAR_RACING, Task, task_named
from wm_env.weights import world_for
from wm_env.world_model import Z_LIMIT, Step, WorldModel, check_precision

OBSERVATION_KINDS = ("features", "latent", "pixels")

ACTION_LOW, ACTION_HIGH = CAR_RACING.low, CAR_RACING.high  # steer, gas, brake, as CarRacing-v3
DISCRETE_ACTIONS = CAR_RACING.discrete_actions


# The fields of both dataclasses are Any: instances also hold batches, tracers and axis numbers.
@struct.dataclass
class DreamState(environment.EnvState):
    """The dream at one moment; M's dropout mask stays the same for an episode."""

    time: Any  # int32, frames since the start
    z: Any  # float32 [z]
    carry: Carry
    tiles: Any  # float32, hit so far; fractional, as M predicts an expectation; 0 without tiles
    off_field: Any  # bool, whether the last step ended outside the playing field, or the episode
    mask: Any  # float32 [h], 0 or 1/(1 - dropout)
    noise: Any  # float32 [2 z], standard normal: what drew z, where it lasts; else 0


@struct.dataclass(kw_only=True)
class DreamParams(environment.EnvParams):
    """What can change without compiling anything: the weights are leaves like every number."""

    world_model: WorldModel
    temperature: Any = 1.0  # of the mixture; above 1 the dream is wilder than the data
    persistence: Any = 0.0  # in [0, 1): correlation of the mixture's noise from frame to frame
    dropout: Any = 0.0  # rate in [0, 1) of M's recurrent state, one mask an episode
    track_tiles: Any = float(TYPICAL_TRACK_TILES)  # N
    lap_complete_percent: Any = 1.0  # CarRacing-v3 asks for every tile, whatever it is told
    max_steps_in_episode: Any = 1000
    start_middle: Any = 0.0  # share of episodes that begin mid-track instead of at a first frame


@dataclass(frozen=True, eq=False)
class _Default:
    """A world in a static argument: equal to itself alone, for arrays have no hash."""

    world: WorldModel


class DreamCarRacing(environment.Environment[DreamState, DreamParams]):
    """CarRacing, dreamt. Works under jit, vmap (over states and over worlds), scan and grad.

    Of another `task` it is that one: with its actions, the reward as M foretells it, and its end
    where M foretells that. `tiles` are then 0, and `off_field` tells whether the episode ended.

    Actions are clipped to the action space, and NaN counts as no input: device code cannot raise.
    """

    _supports_transition_gradients = True

    def __init__(
        self,
        observation: str = "features",
        continuous: bool = True,
        task: Task | str = CAR_RACING,
        world_model: WorldModel | str | os.PathLike | None = None,
        precision: str = "float32",
    ):
        """Choose what the agent sees and whether it acts in CarRacing's Box or its Discrete(5).

        Args:
            observation: "features" ([z, h] float32), "latent" (z) or "pixels" (uint8 [64, 64, 3]).
            continuous: the task's Box, or its Discrete.
            task: what is dreamt, or its id.
            world_model: of `default_params`, as for DreamCarRacingEnv; None is the shipped one.
            precision: of that world's matmuls in M, "float32" or "bfloat16".

        Raises:
            ValueError: an unknown observation kind, task or precision.
            WeightsError: the world cannot be loaded, or is of another task.
        """
        self.task = task_named(task)
        if observation not in OBSERVATION_KINDS:
            raise ValueError(
                f"observation is {observation!r}; expected one of {', '.join(OBSERVATION_KINDS)}. "
                "Features ([z, h]) are what the shipped controller drives on."
            )
        if not isinstance(continuous, bool) or not (continuous or self.task.discrete):
            raise ValueError(
                f"continuous is {continuous!r}; expected True ({self.task.meaning}) or False (one "
                f"of {len(self.task.discrete)} actions)."
            )
        self.observation = observation
        self.continuous = continuous
        check_precision(precision)
        self.precision = precision
        self._default = None
        if world_model is not None:
            world = world_for(self.task, world_model)
            self._default = _Default(world.with_precision(precision))

    # Environments are static arguments of compiled programs, so equal ones must be equal keys.
    def __eq__(self, other: object) -> bool:
        return self is other or type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), self.observation, self.continuous, self.precision))

    @property
    def default_params(self) -> DreamParams:
        """The world that was given, or the shipped one, loaded once.

        Raises:
            WeightsError: the shipped weights are not there, or none is shipped of this task.
        """
        default = self._default
        world = default.world if default else _shipped_world(self.task, self.precision)
        return DreamParams(world_model=world)

    @functools.partial(jax.jit, static_argnames=("self",))
    def step(
        self, key: jax.Array, state: DreamState, action: Any, params: DreamParams | None = None
    ) -> tuple[Any, DreamState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """gymnax's step: `step_env`, then auto-reset; the frame before it is in the info.

        What is seen is made of the state that auto-reset has chosen, where gymnax would make it of
        both; a caller who ignores `final_observation` pays for one image a step.
        """
        params = self.default_params if params is None else params
        key_step, key_reset = jax.random.split(key)
        last_seen, state, reward, terminated, info = self.step_env(key_step, state, action, params)
        truncated = self.is_truncated(state, params)
        state = self._reset_where(terminated | truncated, key_reset, state, params)
        info = {
            **info,
            "terminated": terminated,
            "truncated": truncated,
            "final_observation": last_seen,
        }
        seen = self.observe(key_step, state, action, params)
        return seen, state, reward, terminated, truncated, info

    def _reset_where(
        self, done: jax.Array, key: jax.Array, state: DreamState, params: DreamParams
    ) -> DreamState:
        """`reset_env`'s state where `done`, else this one."""

        def chosen(begun: DreamState) -> DreamState:
            return jax.tree.map(lambda new, old: jnp.where(done, new, old), begun, state)

        if type(self).reset_env is not DreamCarRacing.reset_env:  # beginnings of its own
            return chosen(self.reset_env(key, params)[1])

        def first() -> DreamState:
            world = self._world(params)
            carry = world.mdn_rnn.initial_carry()
            z = _first_frame(world, _start_draws(key)[1])
            return _beginning(z, carry, jnp.ones_like(carry.h), world.initial_noise())

        # A branch, unless lanes have a `start_middle` or `dropout` of their own. Most dreams begin
        # at a first frame and drop nothing: what is chosen from are then constants, not arrays as
        # large as the state. Both branches vary over devices, as `done` does.
        return jax.lax.cond(
            (params.start_middle > 0.0) | (params.dropout > 0.0),
            lambda: chosen(self.reset_env(key, params)[1]),
            lambda: chosen(first()),
        )

    def step_env(
        self, key: jax.Array, state: DreamState, action: Any, params: DreamParams
    ) -> tuple[Any, DreamState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One dreamt frame: observation, state, reward, terminated, info (no auto-reset)."""
        step = self._world(params).advance(
            state.z,
            self._clipped(action),
            state.carry,
            key=key,
            temperature=params.temperature,
            mask=state.mask,
            noise=state.noise,
            persistence=params.persistence,
        )
        tiles, reward, lap_finished = self._paid(state, step, params)
        state = DreamState(
            time=state.time + 1,
            z=step.z,
            carry=step.carry,
            tiles=tiles,
            off_field=step.off_field,
            mask=state.mask,
            noise=step.noise,
        )
        observation = self.observe(key, state, action, params)
        observation, state = self._apply_transition_gradient_policy(observation, state)
        info = {
            "tiles": tiles,
            "lap_finished": lap_finished & ~step.off_field,
            "off_field": step.off_field,
        }
        return observation, state, reward, lap_finished | step.off_field, info

    def reset_env(self, key: jax.Array, params: DreamParams) -> tuple[Any, DreamState]:
        """Begin at a real first frame, or for a share `start_middle` of episodes mid-track."""
        world = self._world(params)
        starts, draws = world.starts, _start_draws(key)
        zero = _zero_of(key)
        carry = jax.tree.map(lambda zeros: zeros + zero, world.mdn_rnn.initial_carry())
        first = _first_frame(world, draws[1]), carry

        def drawn() -> tuple[jax.Array, Carry]:
            middle = starts.moment(_index(draws[1], len(starts.z)))
            chosen = draws[0] < params.start_middle
            return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), middle, first)

        # Under dropout auto-reset draws a start for every lane at every step.
        z, carry = jax.lax.cond(params.start_middle > 0.0, drawn, lambda: first)
        state = self.state_at(key, z, carry, params)
        return self.observe(key, state, None, params), state

    def state_at(
        self, key: jax.Array, z: jax.Array, carry: Carry, params: DreamParams
    ) -> DreamState:
        """The beginning of an episode at a given latent and carry, for dreams from real frames."""
        mask = _dropout_mask(key, carry.h, params.dropout)
        return _beginning(z, carry, mask, self._world(params).initial_noise() + _zero_of(key))

    def observe(
        self, key: jax.Array, state: DreamState, action: Any, params: DreamParams
    ) -> jax.Array:
        """features float32 [z + h], latent float32 [z], or pixels uint8 [64, 64, 3]."""
        if self.observation == "latent":
            return state.z
        if self.observation == "pixels":
            return params.world_model.decode(state.z)
        return params.world_model.features(state.z, state.carry.h)

    def is_terminated(self, state: DreamState, params: DreamParams) -> jax.Array:
        """Whether the lap is done or the car off the field, or M ended the episode."""
        if not self.task.pays_tiles:
            return state.off_field
        lap_finished = state.tiles >= params.lap_complete_percent * params.track_tiles
        return lap_finished | state.off_field

    @property
    def name(self) -> str:
        return self.task.dream_id

    @property
    def num_actions(self) -> int:
        """Number of discrete actions, or of continuous dimensions."""
        return self.task.action_size if self.continuous else len(self.task.discrete)

    def action_space(self, params: DreamParams | None = None) -> spaces.Box | spaces.Discrete:
        """CarRacing-v3's: steer [-1, 1], gas [0, 1], brake [0, 1]; or five discrete actions."""
        if self.continuous:
            low, high = self.task.low, self.task.high
            return spaces.Box(low, high, low.shape, jnp.float32)  # pyright: ignore
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: DreamParams | None = None) -> spaces.Box:
        """Latents are in +-Z_LIMIT, h in +-1, pixels in 0..255."""
        if self.observation == "pixels":
            return spaces.Box(0, 255, (64, 64, 3), jnp.uint8)
        world = (self.default_params if params is None else params).world_model
        high = np.full(world.latent_size, Z_LIMIT, np.float32)
        if self.observation == "features":
            high = np.concatenate([high, np.ones(world.hidden_size, np.float32)])
        return spaces.Box(-high, high, high.shape, jnp.float32)  # pyright: ignore

    def state_space(self, params: DreamParams | None = None) -> spaces.Dict:
        """Ranges of DreamState's arrays (those of the carry apart)."""
        world = (self.default_params if params is None else params).world_model
        return spaces.Dict(
            {
                "time": spaces.Discrete(np.iinfo(np.int32).max),
                "z": spaces.Box(-Z_LIMIT, Z_LIMIT, (world.latent_size,)),
                "tiles": spaces.Box(0.0, np.inf, ()),
                "off_field": spaces.Discrete(2),
                "mask": spaces.Box(0.0, np.inf, (world.hidden_size,)),
                "noise": spaces.Box(-np.inf, np.inf, (2 * world.latent_size,)),
            }
        )

    def _world(self, params: DreamParams) -> WorldModel:
        return world_for(self.task, params.world_model)

    def _paid(
        self, state: DreamState, step: Step, params: DreamParams
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tiles so far, the step's reward, and whether the lap is finished."""
        unit = self.task.reward_unit
        if unit is not None:
            return state.tiles, unit * step.tiles, jnp.zeros_like(step.off_field)
        # A lap pays for its tiles and no more, though the expected numbers rarely sum to a whole.
        lap_tiles = params.lap_complete_percent * params.track_tiles
        tiles = jnp.minimum(state.tiles + step.tiles, lap_tiles)
        lap_finished = tiles >= lap_tiles
        reward = TRACK_REWARD / params.track_tiles * (tiles - state.tiles) + FRAME_REWARD
        return tiles, jnp.where(step.off_field, OFF_FIELD_REWARD, reward), lap_finished

    def _clipped(self, action: Any) -> jax.Array:
        if not self.continuous:
            return jnp.asarray(self.task.discrete_actions)[action]
        action = jnp.nan_to_num(jnp.asarray(action, jnp.float32), nan=0.0)
        return jnp.clip(action, self.task.low, self.task.high)


def _beginning(z: jax.Array, carry: Carry, mask: jax.Array, noise: jax.Array) -> DreamState:
    return DreamState(
        time=jnp.int32(0),
        z=jnp.clip(z, -Z_LIMIT, Z_LIMIT),
        carry=carry,
        tiles=jnp.float32(0.0),
        off_field=jnp.bool_(False),
        mask=mask,
        noise=noise,
    )


def _start_draws(key: jax.Array) -> jax.Array:
    """Two numbers in [0, 1): whether an episode begins mid-track, and at which of the frames."""
    return jax.random.uniform(key, (2,))


def _first_frame(world: WorldModel, draw: jax.Array) -> jax.Array:
    return world.starts.first_z[_index(draw, len(world.starts.first_z))]


def _index(draw: jax.Array, count: int) -> jax.Array:
    return jnp.minimum((draw * count).astype(jnp.int32), count - 1)


def _dropout_mask(key: jax.Array, h: jax.Array, rate: Any) -> jax.Array:
    """0 or 1/(1 - rate), float32 like h (Gal & Ghahramani 2016: one mask a sequence)."""

    def drawn() -> jax.Array:
        draws = jax.random.uniform(key, (2 + len(h),))[2:]  # the first two chose the start
        return jnp.where(draws >= rate, 1.0 / (1.0 - rate), 0.0)

    # A branch, unless lanes have rates of their own: most dreams drop nothing.
    return jax.lax.cond(rate > 0.0, drawn, lambda: jnp.ones_like(h) + _zero_of(key))


def _zero_of(key: jax.Array) -> jax.Array:
    """0 that varies over devices as the key does: under shard_map both branches of a `cond` have
    to, also the one that draws nothing."""
    return (0 * jax.random.key_data(key)[0]).astype(jnp.float32)


@functools.cache
def _shipped_world(task: Task, precision: str) -> WorldModel:
    return world_for(task, None).with_precision(precision)
