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
    from torch import distributions, nn


@dataclass(frozen=True)
class Config:
    """Train in the dream, then drive real tracks."""

    world: str = "carracing"  # to dream in: file or shipped name
    steps: int = 1_000_000  # of all lanes together
    lanes: int = 64
    seed: int = 0


def train(config: Config, envs: gym.vector.VectorEnv, watch: Callable = lambda *_: ...) -> Callable:
    """Learn; gives the policy, observation -> action. `watch(step, policy)` sees every update."""
    torch.manual_seed(config.seed)
    seen = torch.as_tensor(envs.reset(seed=config.seed)[0])
    inputs, outputs = seen.shape[1], envs.action_space.sample().shape[1]
    actor = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))
    critic = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0))
    log_std = nn.Parameter(torch.full((outputs,), -0.5))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters(), log_std], lr=3e-4)

    def policy(observation: np.ndarray) -> np.ndarray:
        return actor(torch.as_tensor(observation)).detach().numpy()

    horizon, over = 2048 // config.lanes, np.zeros(config.lanes, bool)  # 2,048 frames an update
    for step in range(0, config.steps, horizon * config.lanes):
        frames = []
        for _ in range(horizon):
            choice = distributions.Normal(actor(seen).detach(), log_std.detach().exp())
            action, value = choice.sample(), critic(seen).detach()
            kept = ~over | (envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP)
            after, reward, terminated, truncated, infos = envs.step(action.numpy())
            over, reward = terminated | truncated, 0.1 * reward
            if truncated.any():  # a time limit is no end: what would have come is worth something
                last = np.stack(infos.get("final_obs", after)[truncated])
                reward[truncated] += 0.99 * critic(torch.as_tensor(last)).detach().numpy()
            told = torch.tensor(np.stack([reward, ~over, kept]), dtype=torch.float32)
            frames.append((seen, action, choice.log_prob(action).sum(-1), value, *told))
            seen = torch.as_tensor(after)
        gain, gains, next_value = torch.zeros(config.lanes), [], critic(seen).detach()
        for *_, value, reward, goes_on, _ in reversed(frames):  # generalised advantages
            gain = reward - value + 0.99 * goes_on * (next_value + 0.95 * gain)
            gains, next_value = [gain, *gains], value
        *columns, _, _, kept = map(torch.cat, zip(*frames, strict=True))
        batch = [column[kept.bool()] for column in (*columns, torch.cat(gains))]
        for _ in range(5):
            for rows in torch.randperm(len(batch[0])).split(512):
                now, action, before, value, gain = (column[rows] for column in batch)
                choice = distributions.Normal(actor(now), log_std.exp())
                ratio = (choice.log_prob(action).sum(-1) - before).exp()
                scaled = (gain - gain.mean()) / gain.std()
                objective = torch.min(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
                loss = 0.5 * (critic(now) - value - gain).square().mean() - objective
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        watch(step + horizon * config.lanes, policy)
    return policy


if __name__ == "__main__":
    config = tyro.cli(Config)
    envs = gym.make_vec("wm_env:DreamCarRacing-v0", config.lanes, world_model=config.world)
    print(wm_env.evaluate(train(config, envs), seeds=range(4), world_model=config.world).summary())
