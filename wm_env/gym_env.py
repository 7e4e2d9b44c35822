"""DreamCarRacing-v0 for Gymnasium: numpy in, numpy out, one compiled dispatch a step."""

import functools
import math
import os
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.error import ResetNeeded

from wm_env import rendering
from wm_env.dream import DreamCarRacing, DreamParams, DreamState
from wm_env.flattened import Flattened
from wm_env.gym_arguments import (
    canonical,
    checked_action,
    dream_params,
    start_from_options,
    step_arguments,
)
from wm_env.gymnax_parts import spaces
from wm_env.mdn_rnn import Carry
from wm_env.reward import TYPICAL_TRACK_TILES
from wm_env.task import CAR_RACING, Task
from wm_env.world_model import WorldModel

FPS = 50  # as CarRacing-v3
RENDER_MODES = ("human", "rgb_array")

_IMPORTED_BY = os.getpid()  # JAX starts with the import, and its threads do not survive a fork
_NOTHING_YET = {"tiles": 0.0, "lap_finished": False, "off_field": False}


class DreamCarRacingEnv(gymnasium.Env):
    """CarRacing, dreamt: CarRacing-v3's actions and rewards, features, latents or pixels to see.

    Args:
        render_mode: None, "rgb_array" (uint8 [400, 600, 3]) or "human" (a window).
        observation: "features" ([z, h] float32), "latent" (z) or "pixels" (uint8 [64, 64, 3]).
        continuous: CarRacing's Box of steer, gas and brake, or its Discrete(5).
        world_model: a WorldModel, the path of one, or the name of a shipped one; None is the
            shipped one of the task.
        temperature: of the dream's randomness; 1 is as the data, more is wilder.
        persistence: correlation of that randomness from frame to frame, in [0, 1).
        dropout: rate of M's recurrent state in [0, 1); one mask an episode, thus one world each.
        track_tiles: tiles of the track, N; a tile pays 1000/N and a lap has N.
        lap_complete_percent: share of the tiles that ends the lap.
        start: "first" frames, "middle" of a drive, "mixed" half and half, or the share of middles.
        max_episode_steps: truncate here. None leaves it to the TimeLimit of `gym.make` (1000).
        task: what is dreamt, or its id in Gymnasium; of another one than CarRacing the numbers of
            tiles do not count, and `continuous` chooses its Box or its Discrete.
        precision: of M's matmuls, "float32" or "bfloat16" (see `WorldModel.with_precision`).

    `reset(options=...)` starts from `{"frame": ...}`, `{"frames": ..., "actions": ...}` or
    `{"z": ...}`. Same seed and actions, same program: the same bits.

    Raises:
        ValueError: an argument outside its range.
        WeightsError: the world cannot be loaded, is of another task, or none is shipped.
        RuntimeError: in a forked process, where JAX, which has threads, would wait for ever.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": FPS}

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        observation: str = "features",
        continuous: bool = True,
        world_model: WorldModel | str | os.PathLike | None = None,
        temperature: float = 1.0,
        persistence: float = 0.0,
        dropout: float = 0.0,
        track_tiles: float = TYPICAL_TRACK_TILES,
        lap_complete_percent: float = 1.0,
        start: str | float = "first",
        max_episode_steps: int | None = None,
        task: Task | str = CAR_RACING,
        precision: str = "float32",
    ):
        if os.getpid() != _IMPORTED_BY:
            raise RuntimeError(
                "made in a forked process, where JAX would wait for ever. Give gym.make_vec "
                'vector_kwargs={"context": "spawn"} with vectorization_mode="async", or no mode: '
                "it then steps all environments in one program, which is far faster."
            )
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(
                f"render_mode is {render_mode!r}; expected None or one of {RENDER_MODES}."
            )
        self.render_mode = render_mode
        self.core = DreamCarRacing(observation, continuous, task)
        self.params = dream_params(
            self.core.task,
            world_model=world_model,
            temperature=temperature,
            persistence=persistence,
            dropout=dropout,
            track_tiles=track_tiles,
            lap_complete_percent=lap_complete_percent,
            start=start,
            max_episode_steps=max_episode_steps,
            precision=precision,
        )
        self.observation_space = spaces.gymnax_space_to_gym_space(
            self.core.observation_space(self.params)
        )
        self.action_space = spaces.gymnax_space_to_gym_space(self.core.action_space(self.params))
        self._shape = self.observation_space.shape or ()
        # Raw data of keys: typed ones would send every dispatch through a slower path of JAX.
        self._key: jax.Array | None = None
        self._key_reset: jax.Array | None = None
        self._state: DreamState | None = None
        self._return = 0.0
        self._window: rendering.Window | None = None

    @property
    def params(self) -> DreamParams:
        """World and numbers of the dream; assign others (of one shape) at no cost of compiling."""
        return self._params

    @params.setter
    def params(self, params: DreamParams) -> None:
        self._params = canonical(params)
        self._flat = step_arguments(self.core, self._params, self.render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode. `tiles`, `lap_finished` and `off_field` are in every info.

        Raises:
            ValueError: unknown options or wrong shapes in them.
        """
        start = start_from_options(self.params.world_model, options)
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            self._key = _key(self.np_random.integers(2**32, dtype=np.uint32))
            self._key_reset = None
        if self._key_reset is None:
            self._key, self._key_reset = _split(self._key)
        observation, self._state = _reset(self.core, self._flat, self._key_reset, start)
        self._key_reset = None
        self._return = 0.0
        if self.render_mode == "human":
            self.render()
        return np.array(observation), dict(_NOTHING_YET)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Dream one frame.

        Raises:
            ResetNeeded: before the first reset.
            InvalidAction: wrong shape, not finite, or no such discrete action.
        """
        if self._state is None:
            raise ResetNeeded("step was called before reset; call env.reset() first.")
        action = checked_action(self.core, action)
        self._key, self._key_reset, self._state, outcome = _step(
            self.core, self._flat, self._key, self._state, action
        )
        observation, numbers = self._unpacked(np.array(outcome))
        reward, terminated, truncated, tiles, lap_finished, off_field = numbers.tolist()
        self._return += reward
        if self.render_mode == "human":
            self.render()
        info = {
            "tiles": tiles,
            "lap_finished": bool(lap_finished),
            "off_field": bool(off_field),
        }
        return observation, reward, bool(terminated), bool(truncated), info

    def _unpacked(self, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observation and the six numbers that `_packed` made one array of."""
        size = math.prod(self._shape)
        return outcome[:size].reshape(self._shape), outcome[size:].view(np.float32)

    def render(self) -> np.ndarray | None:
        """The dream as CarRacing-v3 would show it.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                'render was called without a render mode; make the environment with render_mode="'
                'rgb_array" or "human".'
            )
            return None
        if self._state is None:
            raise ResetNeeded("render was called before reset; call env.reset() first.")
        image = np.asarray(image_of(self._flat, self._state.z))
        frame = rendering.screen(image, self._return)
        if self.render_mode == "rgb_array":
            return frame
        self._window = self._window or rendering.Window(FPS)
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


@jax.jit
def _key(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed))


@jax.jit
def _split(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, second = jax.random.split(jax.random.wrap_key_data(key))
    return jax.random.key_data(first), jax.random.key_data(second)


@functools.partial(jax.jit, static_argnames="env")
def _reset(
    env: DreamCarRacing, flat: Flattened, key: jax.Array, start: tuple[jax.Array, Carry] | None
) -> tuple[jax.Array, DreamState]:
    return begin(env, flat.tree, jax.random.wrap_key_data(key), start)


def begin(
    env: DreamCarRacing, params: DreamParams, key: jax.Array, start: tuple[jax.Array, Carry] | None
) -> tuple[jax.Array, DreamState]:
    """A usual reset, or a beginning at a given latent and carry."""
    if start is None:
        return env.reset_env(key, params)
    state = env.state_at(key, *start, params)
    return env.observe(key, state, None, params), state


@functools.partial(jax.jit, static_argnames="env")
def _step(
    env: DreamCarRacing, flat: Flattened, key_data: jax.Array, state: DreamState, action: jax.Array
) -> tuple[jax.Array, jax.Array, DreamState, jax.Array]:
    params: DreamParams = flat.tree
    key, key_now = jax.random.split(jax.random.wrap_key_data(key_data))
    # As gymnax's own step splits: the next reset is the one that auto-reset would have drawn.
    key_step, key_reset = jax.random.split(key_now)
    observation, state, reward, terminated, info = env.step_env(key_step, state, action, params)
    truncated = env.is_truncated(state, params)
    events = (info["tiles"], info["lap_finished"], info["off_field"])
    key, key_reset = jax.random.key_data(key), jax.random.key_data(key_reset)
    return key, key_reset, state, _packed(observation, reward, terminated, truncated, *events)


def _packed(observation: jax.Array, *numbers: jax.Array) -> jax.Array:
    """One array, so that a step costs one copy from the device: the observation, then numbers."""
    tail = jnp.stack([number.astype(jnp.float32) for number in numbers])
    if observation.dtype == jnp.uint8:
        tail = jax.lax.bitcast_convert_type(tail, jnp.uint8)
    return jnp.concatenate([observation.ravel(), tail.ravel()])


@jax.jit
def image_of(flat: Flattened, z: jax.Array) -> jax.Array:
    """What a latent looks like, in the world of `step_arguments`."""
    return flat.tree.world_model.decode(z)
