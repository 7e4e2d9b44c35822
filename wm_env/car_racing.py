"""The real CarRacing-v3, one car or many: Gymnasium's, the judge, or EnvPool's, for speed."""

import importlib.util
import os
import platform
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_env.seeds import lane_seeds

BACKENDS = ("gymnasium", "envpool")

_ID = "CarRacing-v3"


def default_backend() -> Literal["gymnasium", "envpool"]:
    """EnvPool where it is installed (about seven times faster), else Gymnasium."""
    return "envpool" if importlib.util.find_spec("envpool") else "gymnasium"


def provenance(backend: str) -> dict[str, Any]:
    """What drove: environment, backend and versions, to be stored with the data."""
    packages = ("gymnasium", "numpy", "zarr") + (("envpool",) if backend == "envpool" else ())
    return {
        "environment": _ID,
        "backend": backend,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def make_car_racing(**kwargs: Any) -> gymnasium.Env:
    """One CarRacing-v3 of Gymnasium, quietly; `kwargs` are those of `gymnasium.make`."""
    # pygame's greeting would end up among results on stdout.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pygame's and Box2D's own imports
        return gymnasium.make(_ID, **{"disable_env_checker": True, **kwargs})


def make_car_racing_vector(
    num_envs: int,
    *,
    backend: str = "gymnasium",
    vectorization_mode: str = "sync",
    threads: int | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Many CarRacing-v3 as one VectorEnv; a lane that ends begins anew at the next step.

    Args:
        num_envs: number of cars.
        backend: "gymnasium" or "envpool".
        vectorization_mode: Gymnasium's "sync" or "async" (a process for each car).
        threads: of EnvPool; one a core unless told.
        kwargs: of CarRacing and of the maker, as max_episode_steps; EnvPool knows
            max_episode_steps and lap_complete_percent.

    Raises:
        ValueError: an unknown backend, one that is not installed, or an option it does not know.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; expected 1 or more.")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if backend == "envpool":
        return EnvPoolCarRacing(num_envs, threads=threads, **kwargs)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    options = {"disable_env_checker": True, **kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make_vec(_ID, num_envs, vectorization_mode, **options)


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
        self._options = {"num_threads": threads or len(os.sched_getaffinity(0)), **kwargs}
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
