"""The real car and its dream side by side: one driver, one first frame, the same actions."""

from typing import Any

import gymnasium
import numpy as np

from wm_env.rendering import side_by_side


class DreamBesideReal(gymnasium.Env):
    """CarRacing-v3 with a dream that begins at its first frame and is given the same actions.

    Observations, rewards and infos are the real car's; the info's `dream_reward` is the dream's. An
    end of either ends the episode. `render` shows the real car on the left and the dream on the
    right, uint8 [h, w, 3].

    Args:
        real: CarRacing-v3 whose render mode is "rgb_array".
        dream: DreamCarRacing-v0 of the same actions and render mode.

    Raises:
        ValueError: their actions differ, or one does not render to arrays.
    """

    def __init__(self, real: gymnasium.Env, dream: gymnasium.Env):
        if real.action_space != dream.action_space:
            raise ValueError(
                f"the real car takes {real.action_space} and the dream {dream.action_space}; make "
                "both with the same `continuous`."
            )
        for name, env in (("real", real), ("dream", dream)):
            if env.render_mode != "rgb_array":
                raise ValueError(
                    f"the {name} environment's render_mode is {env.render_mode!r}; make it with "
                    "'rgb_array'."
                )
        self.real, self.dream = real, dream
        self.render_mode = "rgb_array"
        self.metadata = real.metadata
        self.observation_space, self.action_space = real.observation_space, real.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin on a real track, and the dream at its first frame."""
        super().reset(seed=seed)
        frame, info = self.real.reset(seed=seed, options=options)
        self.dream.reset(seed=seed, options={"frame": frame})
        return frame, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Drive both one frame."""
        _, dream_reward, *dream_over, _ = self.dream.step(action)
        frame, reward, terminated, truncated, info = self.real.step(action)
        terminated, truncated = terminated or dream_over[0], truncated or dream_over[1]
        return frame, float(reward), terminated, truncated, {**info, "dream_reward": dream_reward}

    def render(self) -> np.ndarray:
        """Both screens, labelled."""
        return side_by_side(np.asarray(self.real.render()), np.asarray(self.dream.render()))

    def close(self) -> None:
        """Close both."""
        self.real.close()
        self.dream.close()
