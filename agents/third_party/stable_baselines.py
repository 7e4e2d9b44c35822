"""Stable-Baselines3 in the dream: `python -m agents.third_party.stable_baselines` (extra `sb3`).

PPO and SAC act by steer, gas and brake, DQN by CarRacing's five discrete actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro

import wm_env
from agents.third_party.extras import Extra

with Extra("sb3"):
    import stable_baselines3 as sb3
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    from wm_env.stable_baselines import DreamVecEnv

# What differs from the library's defaults, for batches of dreams.
SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 32, "batch_size": 128, "n_epochs": 5},
    "SAC": {
        "learning_starts": 2000,
        "gamma": 0.98,
        "tau": 0.02,
        "ent_coef": "auto_0.1",  # 1 at first would outweigh what the first dreams pay
        "gradient_steps": 16,
        "buffer_size": 100_000,
        "policy_kwargs": {"net_arch": [64, 64]},  # as PPO's: two cores keep up
    },
    "DQN": {"learning_starts": 2000, "gradient_steps": 16, "buffer_size": 100_000},
}


@dataclass(frozen=True)
class Config:
    """Train in the dream, then drive real tracks."""

    algorithm: Literal["PPO", "SAC", "DQN"] = "PPO"
    world: str = "carracing"  # to dream in: file or shipped name
    observation: Literal["features", "latent", "pixels"] = "features"
    steps: int = 1_000_000  # dreamt, of all lanes together
    lanes: int = 64
    seed: int = 0
    episodes: int = 4  # real tracks driven at the end, seeds 0, 1, ...


def train(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Learn in the dream; gives the policy, observation -> action."""
    shown = {"world_model": config.world, "observation": config.observation}
    dreams = DreamVecEnv(config.lanes, **shown, continuous=config.algorithm != "DQN")
    envs = VecNormalize(VecMonitor(dreams), norm_obs=False)  # rewards only
    kind = "CnnPolicy" if config.observation == "pixels" else "MlpPolicy"
    learner = getattr(sb3, config.algorithm)
    model = learner(kind, envs, seed=config.seed, verbose=1, **SETTINGS[config.algorithm])
    model.learn(config.steps)
    policy = model.policy.to("cpu")  # not the model, which holds the dreams
    return lambda observation: policy.predict(observation, deterministic=True)[0]


def main(config: Config) -> None:
    """Train, drive, print."""
    told = wm_env.evaluate(
        train(config),
        seeds=range(config.episodes),
        world_model=config.world,
        observation=config.observation,
        continuous=config.algorithm != "DQN",
    )
    print(told.summary())


if __name__ == "__main__":
    main(tyro.cli(Config))
