"""A batch of dreams as Stable-Baselines3 and sbx take it: one compiled dispatch for all lanes."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from wm_env.gym_env import FPS
from wm_env.gym_vector import DreamCarRacingVectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        f"Stable-Baselines3 cannot be imported ({error}): `uv sync --extra sb3`, or `--extra sbx` "
        "for its JAX twin; elsewhere `pip install stable-baselines3`."
    ) from error


class DreamVecEnv(VecEnv):
    """`num_envs` dreams of DreamCarRacing-v0 as a VecEnv; lane i is seeded `seed + i`.

    Episodes end as in SB3's own DummyVecEnv: `infos[lane]` then holds `terminal_observation` and
    `TimeLimit.truncated`, and the observation is the next episode's first. Wrap it in SB3's
    VecMonitor for its log of returns. Rewards are float32, as SB3's are.

    Args:
        num_envs: number of lanes.
        kwargs: those of `DreamCarRacingVectorEnv`, as observation, continuous and world_model.

    Raises:
        ImportError: Stable-Baselines3 is not installed; the message names the extra.
        ValueError: an argument outside its range.
        WeightsError: the world cannot be loaded.
    """

    def __init__(self, num_envs: int, **kwargs: Any):
        self.dreams = DreamCarRacingVectorEnv(num_envs, **kwargs)
        self._actions: np.ndarray | None = None
        super().__init__(
            num_envs, self.dreams.single_observation_space, self.dreams.single_action_space
        )
        self.metadata |= {"render_fps": FPS}

    def reset(self) -> np.ndarray:
        """Begin an episode in every lane, of the seeds and options that were set before, if any.

        Raises:
            ValueError: options of `set_options` that were a list, or that a dream does not know.
        """
        seeds = [seed for seed in self._seeds if seed is not None] or None
        options = self._options[0]
        if any(one is not options and (one or options) for one in self._options):
            raise ValueError(
                "set_options got a list; expected one dict, the same for all lanes: they are one "
                "batch."
            )
        observations, infos = self.dreams.reset(seed=seeds, options=options)
        self.reset_infos = _by_lane(infos)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of all lanes."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Dream one frame in every lane: observations [lane, ...], rewards, dones, infos [lane].

        Raises:
            ResetNeeded: before the first reset.
            InvalidAction: wrong shape, not finite, or no such discrete action.
        """
        observations, rewards, terminated, truncated, infos = self.dreams.step(self._actions)
        dones = terminated | truncated
        told = _by_lane(infos)
        for lane in np.flatnonzero(dones).tolist():
            last = infos["final_info"]
            told[lane] = {name: last[name][lane].item() for name in told[lane]}
            told[lane]["terminal_observation"] = infos["final_obs"][lane]
        for lane, limit in enumerate((truncated & ~terminated).tolist()):
            told[lane]["TimeLimit.truncated"] = limit
        return observations, rewards.astype(np.float32), dones, told

    def close(self) -> None:
        """Close the dreams."""
        self.dreams.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One screen a lane, with `render_mode="rgb_array"`."""
        return self.dreams.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """What the batch calls by this name, for each of the lanes."""
        return [getattr(self.dreams, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the batch, as `params`.

        Raises:
            ValueError: for some lanes only; they are one batch.
        """
        if indices is not None:
            raise ValueError("set_attr got some lanes; they are one batch: leave out indices.")
        setattr(self.dreams, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list:
        """Lanes are no environments of their own.

        Raises:
            AttributeError: always; the message names what to use.
        """
        raise AttributeError(
            f"lanes of DreamVecEnv have no method {method_name!r}: they are one batch, `dreams`. "
            "For environments of their own use make_vec_env('DreamCarRacing-v0', n_envs)."
        )

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None
    ) -> list[bool]:
        """Lanes have no wrappers."""
        return [False for _ in self._get_indices(indices)]


def _by_lane(infos: dict[str, Any]) -> list[dict[str, Any]]:
    names = [name for name in infos if f"_{name}" in infos and not name.startswith("final_")]
    columns = [infos[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
