"""The real CarRacing-v3, one car or many: Gymnasium's, the judge, or EnvPool's, for speed."""

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_env.cores import usable_cores
from wm_env.seeds import lane_seeds
from wm_env.simulator import make_simulator, make_simulator_vector
from wm_env.task import CAR_RACING

_ID = CAR_RACING.id


def make_car_racing(**kwargs: Any) -> gymnasium.Env:
    """One CarRacing-v3, as `wm_env.simulator.make_simulator` makes it."""
    return make_simulator(CAR_RACING, **kwargs)


def make_car_racing_vector(num_envs: int, **kwargs: Any) -> VectorEnv:
    """Many CarRacing-v3, as `wm_env.simulator.make_simulator_vector` makes them."""
    return make_simulator_vector(CAR_RACING, num_envs, **kwargs)


class EnvPoolCarRacing(VectorEnv):
    """EnvPool's CarRacing-v3 with Gymnasium's ways: `reset(seed=…)` works at any time.

    EnvPool seeds its lanes when it is made, so a reset with seeds makes it anew.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        threads: int | None = None,
        **kwargs: Any,
    ):
        try:
            import envpool
        except ImportError as error:
            raise ValueError(
                f"backend 'envpool' needs EnvPool, which cannot be imported ({error}). "
                "Install it (uv sync --extra envpool), or take the backend 'gymnasium'."
            ) from None
        unknown = set(kwargs) - {"max_episode_steps", "lap_complete_percent"}
        if unknown:
            raise ValueError(
                f"EnvPool's CarRacing-v3 has no option {sorted(unknown)}; it knows "
                "max_episode_steps and lap_complete_percent. Take the backend 'gymnasium'."
            )
        self._make = envpool.make_gymnasium
        self._options = {"num_threads": threads or usable_cores(), **kwargs}
        self._pool: Any = None
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (96, 96, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Box(
            np.array([-1.0, 0.0, 0.0], np.float32), np.array([1.0, 1.0, 1.0], np.float32)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Frames uint8 [num_envs, 96, 96, 3] of new episodes; `options` are not looked at."""
        if seed is None and self._pool is None:
            seed = self.np_random.integers(2**31 - 1, size=self.num_envs).tolist()
        if seed is not None:
            self._start(lane_seeds(seed, self.num_envs))
        frames, _ = self._pool.reset()  # pyright: ignore[reportOptionalMemberAccess]
        return frames, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One frame in every lane, for float32 actions [num_envs, 3]."""
        frames, rewards, terminated, truncated, _ = self._pool.step(np.asarray(actions, np.float32))
        return frames, rewards.astype(np.float64), terminated, truncated & ~terminated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Stop EnvPool's threads."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _start(self, seeds: list[int]) -> None:
        self.close_extras()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._pool = self._make(
                _ID, num_envs=self.num_envs, env_seed=seeds, seed=seeds[0], **self._options
            )
