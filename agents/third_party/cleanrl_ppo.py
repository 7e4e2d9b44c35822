"""PPO in one file, in the manner of CleanRL: `python -m agents.third_party.cleanrl_ppo`."""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import tyro

import wm_env
from agents.third_party.extras import Extra

with Extra("sb3"):
    import torch
    from torch import nn
    from torch.distributions import Normal


@dataclass(frozen=True)
class Config:
    """Train in the dream, then drive real tracks."""

    steps: int = 1_000_000  # of all lanes together
    lanes: int = 64
    seed: int = 0
    episodes: int = 4  # real tracks driven at the end, seeds 0, 1, ...


def train(config: Config, envs: gym.vector.VectorEnv, watch: Callable | None = None) -> Callable:
    """Learn; gives the policy, observation -> action. `watch(step, policy)` sees every update."""
    torch.manual_seed(config.seed)
    spaces = envs.single_observation_space, envs.single_action_space
    inputs, outputs = (int(np.prod(space.shape or ())) for space in spaces)
    actor = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))
    critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0))
    log_std = nn.Parameter(torch.full((outputs,), -0.5))
    weights = [*actor.parameters(), *critic.parameters(), log_std]
    optimizer = torch.optim.Adam(weights, lr=3e-4, eps=1e-5)

    @torch.no_grad()
    def policy(observation: np.ndarray) -> np.ndarray:
        return actor(torch.as_tensor(observation)).numpy()

    seen = torch.as_tensor(envs.reset(seed=config.seed)[0])
    for step in range(0, config.steps, 32 * config.lanes):
        frames = []
        for _ in range(32):
            with torch.no_grad():
                choice = Normal(actor(seen), log_std.exp())
                action, value = choice.sample(), critic(seen)
            after, reward, terminated, truncated, _ = envs.step(action.numpy())
            before, goes_on = choice.log_prob(action).sum(-1), ~(terminated | truncated)
            told = torch.tensor(np.stack([0.1 * reward, goes_on]), dtype=torch.float32)
            frames.append((seen, action, before, value, *told))
            seen = torch.as_tensor(after)
        gain, gains, next_value = torch.zeros(config.lanes), [], critic(seen).detach()
        for *_, value, reward, goes_on in reversed(frames):  # generalised advantages
            gain = reward - value + 0.99 * goes_on * (next_value + 0.95 * gain)
            gains, next_value = [gain, *gains], value
        batch = [torch.cat(one) for one in (*list(zip(*frames, strict=True))[:4], gains)]
        for _ in range(5):
            for rows in torch.randperm(len(batch[0])).split(512):
                observation, action, before, value, gain = (column[rows] for column in batch)
                log_prob = Normal(actor(observation), log_std.exp()).log_prob(action).sum(-1)
                ratio, scaled = (log_prob - before).exp(), (gain - gain.mean()) / gain.std()
                objective = torch.min(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
                loss = 0.5 * (critic(observation) - value - gain).square().mean() - objective
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, 0.5)
                optimizer.step()
        if watch:
            watch(step + 32 * config.lanes, policy)
    return policy


if __name__ == "__main__":
    config = tyro.cli(Config)
    envs = gym.make_vec("wm_env:DreamCarRacing-v0", config.lanes)
    print(wm_env.evaluate(train(config, envs), seeds=range(config.episodes)).summary())
