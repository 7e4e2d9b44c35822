"""DreamCarRacing-v0 for `gym.make_vec`: a batch of dreams, one compiled dispatch for all."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

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
from wm_env.gym_env import FPS, begin, image_of
from wm_env.gymnax_parts import spaces
from wm_env.mdn_rnn import Carry
from wm_env.reward import TYPICAL_TRACK_TILES
from wm_env.seeds import lane_seeds
from wm_env.task import CAR_RACING, Task
from wm_env.world_model import WorldModel

_INFOS = {"tiles": np.float64, "lap_finished": np.bool_, "off_field": np.bool_}


class DreamCarRacingVectorEnv(VectorEnv):
    """`num_envs` dreams at once. Lanes are seeded `seed + i` and equal single environments.

    A lane that ends begins anew in the same step; its last observation and info are then in
    `infos["final_obs"]` and `infos["final_info"]`, as SyncVectorEnv gives them.

    Args are those of DreamCarRacingEnv, but for:
        num_envs: number of lanes.
        max_episode_steps: truncate lanes here (gym.make_vec gives 1000).
        render_mode: None or "rgb_array" (a tuple of uint8 [400, 600, 3], one a lane).

    `reset(options=...)` starts every lane from the same frames or latent: many futures of one
    moment. Lanes that begin anew afterwards do so at usual starts.

    Raises:
        ValueError: an argument outside its range.
        WeightsError: the world cannot be loaded, is of another task, or none is shipped.
    """

    metadata = {
        "render_modes": ["rgb_array"],
        "render_fps": FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
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
        max_episode_steps: int | None = 1000,
        task: Task | str = CAR_RACING,
        precision: str = "float32",
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected 1 or more.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(
                f"render_mode is {render_mode!r}; expected None or 'rgb_array'. "
                "A window shows one car: use gym.make for 'human'."
            )
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode.SAME_STEP  # as Gymnasium's own; TorchRL reads it here
        self.render_mode = render_mode
        self.core = DreamCarRacing(observation, continuous, task)
        # Pixels are decoded once, for what is shown after auto-reset, so the batch itself steps on
        # latents.
        self._dream = (
            DreamCarRacing("latent", continuous, task) if observation == "pixels" else self.core
        )
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
        self.single_observation_space = spaces.gymnax_space_to_gym_space(
            self.core.observation_space(self.params)
        )
        self.single_action_space = spaces.gymnax_space_to_gym_space(
            self.core.action_space(self.params)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._keys: jax.Array | None = None  # raw data, as in the single environment
        self._state: DreamState | None = None
        self._returns = np.zeros(num_envs)

    @property
    def params(self) -> DreamParams:
        """World and numbers of the dreams; assign others (of one shape) without compiling."""
        return self._params

    @params.setter
    def params(self, params: DreamParams) -> None:
        self._params = canonical(params)
        self._flat = step_arguments(self.core, self._params, self.render_mode)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every lane.

        Raises:
            ValueError: as many seeds as lanes were not given, unknown options, or wrong shapes.
        """
        start = start_from_options(self.params.world_model, options)
        if seed is not None or self._keys is None:
            self._keys = _keys(self._seeds(seed))
        self._keys, observation, self._state = _reset(self.core, self._flat, self._keys, start)
        self._returns[:] = 0.0
        nothing = {name: np.zeros(self.num_envs, dtype) for name, dtype in _INFOS.items()}
        return np.array(observation), _with_masks(nothing, np.ones(self.num_envs, np.bool_))

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream one frame in every lane.

        Raises:
            ResetNeeded: before the first reset.
            InvalidAction: wrong shape, not finite, or no such discrete action.
        """
        if self._state is None:
            raise ResetNeeded("step was called before reset; call envs.reset() first.")
        actions = checked_action(self.core, actions, (self.num_envs,))
        self._keys, self._state, observation, final, outcome = _step(
            self.core, self._dream, self._flat, self._keys, self._state, actions
        )
        reward, terminated, truncated, info = jax.device_get(outcome)
        done = terminated | truncated
        self._returns = np.where(done, 0.0, self._returns + reward)
        last = {name: np.array(info[name], dtype) for name, dtype in _INFOS.items()}
        infos = {}
        if np.any(done):
            infos |= self._final_infos(done, final, last)
            last = {
                name: np.where(done, 0, value).astype(value.dtype) for name, value in last.items()
            }
        infos |= _with_masks(last, np.ones(self.num_envs, np.bool_))
        rewards = np.array(reward, np.float64)
        return np.array(observation), rewards, np.array(terminated), np.array(truncated), infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One screen a lane, as CarRacing-v3 would show it.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("render was called before reset; call envs.reset() first.")
        images = np.asarray(_decode(self._flat, self._state.z))
        scores = self._returns
        return tuple(rendering.screen(*shown) for shown in zip(images, scores, strict=True))

    def _seeds(self, seed: int | Sequence[int] | None) -> np.ndarray:
        if seed is None:
            return self.np_random.integers(2**32, size=self.num_envs, dtype=np.uint32)
        seeds = lane_seeds(seed, self.num_envs)
        # Each lane draws its key as the single environment of that seed does.
        generators = [np_random(int(lane_seed))[0] for lane_seed in seeds]
        self._np_random, self._np_random_seed = np_random(int(seeds[0]))
        return np.array([g.integers(2**32, dtype=np.uint32) for g in generators])

    def _final_infos(
        self, done: np.ndarray, final: jax.Array, last: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        lanes = np.flatnonzero(done)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for lane, last_seen in zip(lanes, np.asarray(final)[lanes], strict=True):
            # Lane by lane: few end in one step, and their number must not compile anything anew.
            if self.core.observation == "pixels":
                last_seen = np.array(image_of(self._flat, last_seen))
            final_obs[lane] = last_seen
        final_info = {
            name: np.where(done, value, 0).astype(value.dtype) for name, value in last.items()
        }
        return {
            "final_obs": final_obs,
            "_final_obs": done.copy(),
            "final_info": _with_masks(final_info, done),
            "_final_info": done.copy(),
        }


def _with_masks(infos: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    return infos | {f"_{name}": mask.copy() for name in infos}


@jax.jit
def _keys(seeds: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.vmap(jax.random.key)(seeds))


@functools.partial(jax.jit, static_argnames="env")
def _reset(
    env: DreamCarRacing, flat: Flattened, keys: jax.Array, start: tuple[jax.Array, Carry] | None
) -> tuple[jax.Array, jax.Array, DreamState]:
    params: DreamParams = flat.tree
    pairs = jax.vmap(jax.random.split)(jax.random.wrap_key_data(keys))
    observation, state = jax.vmap(lambda key: begin(env, params, key, start))(pairs[:, 1])
    return jax.random.key_data(pairs[:, 0]), observation, state


@functools.partial(jax.jit, static_argnames=("env", "dream"))
def _step(
    env: DreamCarRacing,
    dream: DreamCarRacing,
    flat: Flattened,
    keys: jax.Array,
    state: DreamState,
    actions: jax.Array,
) -> tuple[jax.Array, DreamState, jax.Array, jax.Array, tuple]:
    params: DreamParams = flat.tree
    pairs = jax.vmap(jax.random.split)(jax.random.wrap_key_data(keys))
    observation, state, reward, terminated, truncated, info = jax.vmap(
        dream.step, in_axes=(0, 0, 0, None)
    )(pairs[:, 1], state, actions, params)
    if env != dream:
        observation = jax.vmap(params.world_model.decode)(state.z)
    final = info.pop("final_observation")
    info = {name: info[name] for name in _INFOS}
    keys = jax.random.key_data(pairs[:, 0])
    return keys, state, observation, final, (reward, terminated, truncated, info)


@jax.jit
def _decode(flat: Flattened, z: jax.Array) -> jax.Array:
    return jax.vmap(flat.tree.world_model.decode)(z)
