"""Gymnasium's own wrappers film an agent in the dream or on the real track.

`python -m agents.third_party.film --env real`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo

import wm_env
from agents.linear import load_linear


@dataclass(frozen=True)
class Config:
    """Film one episode of the shipped controller."""

    env: Literal["dream", "real"] = "dream"
    out: Path = Path("out/film")
    steps: int = 1000
    seed: int = 0


def film(config: Config) -> tuple[Path, float]:
    """Drive one episode; gives the film and the return."""
    options = {"render_mode": "rgb_array", "max_episode_steps": config.steps}
    if config.env == "dream":
        env = gym.make("wm_env:DreamCarRacing-v0", **options)
    else:
        env = wm_env.make_real(**options)
    env = RecordVideo(env, str(config.out), name_prefix=config.env)
    env = RecordEpisodeStatistics(env)
    controller, _ = load_linear()
    observation, info = env.reset(seed=config.seed)
    over = False
    while not over:
        action = np.asarray(controller(observation))
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    env.close()
    return config.out / f"{config.env}-episode-0.mp4", float(info["episode"]["r"])


if __name__ == "__main__":
    path, returned = film(tyro.cli(Config))
    print(f"{path}: return {returned:.1f}")
