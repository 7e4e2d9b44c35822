"""PPO of sbx (Stable-Baselines3 in JAX): `python -m agents.third_party.sbx_ppo` (extra `sbx`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro

import wm_env
from agents.third_party.extras import Extra

with Extra("sbx"):
    import sbx
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    from wm_env.stable_baselines import DreamVecEnv


@dataclass(frozen=True)
class Config:
    """Train in the dream, then drive real tracks."""

    world: str = "carracing"  # to dream in: file or shipped name
    steps: int = 1_000_000  # dreamt, of all lanes together
    lanes: int = 64
    seed: int = 0
    episodes: int = 4  # real tracks driven at the end, seeds 0, 1, ...


def train(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Learn in the dream; gives the policy, observation -> action."""
    dreams = DreamVecEnv(config.lanes, world_model=config.world)
    envs = VecNormalize(VecMonitor(dreams), norm_obs=False)
    model = sbx.PPO(
        "MlpPolicy", envs, n_steps=32, batch_size=512, n_epochs=5, seed=config.seed, verbose=1
    )
    model.learn(config.steps)
    policy = model.policy  # not the model, which holds the dreams
    return lambda observation: policy.predict(observation, deterministic=True)[0]


if __name__ == "__main__":
    config = tyro.cli(Config)
    policy, seeds = train(config), range(config.episodes)
    print(wm_env.evaluate(policy, seeds=seeds, world_model=config.world).summary())
