"""PPO of TorchRL over its GymWrapper and collector: `python -m agents.third_party.torchrl_ppo`."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import gymnasium as gym
import numpy as np
import tyro

import wm_env
from agents.third_party.extras import Extra

with Extra("torchrl"):
    import torch
    from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
    from torch import nn
    from torchrl.collectors import Collector
    from torchrl.envs import GymWrapper
    from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE


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
    torch.manual_seed(config.seed)
    lanes = gym.make_vec("wm_env:DreamCarRacing-v0", config.lanes, world_model=config.world)
    dreams = GymWrapper(lanes)
    dreams.set_seed(config.seed)
    mean = nn.Sequential(nn.LazyLinear(64), nn.Tanh(), nn.Linear(64, 3))
    normal = nn.Sequential(mean, AddStateIndependentNormalScale(3))
    actor = ProbabilisticActor(
        TensorDictModule(normal, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(nn.Sequential(nn.LazyLinear(64), nn.Tanh(), nn.Linear(64, 1)))
    critic(actor(dreams.reset()))  # tells the lazy layers their sizes
    loss_of = ClipPPOLoss(actor, critic, entropy_coeff=0.0)
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=3e-4)
    size = 32 * config.lanes
    collector = Collector(
        dreams, actor, frames_per_batch=size, auto_register_policy_transforms=False
    )
    for data in islice(collector, -(-config.steps // size)):
        data["next", "reward"] *= 0.1
        with torch.no_grad():
            advantage(data)
        batch = data.reshape(-1)
        for _ in range(5):
            for rows in torch.randperm(len(batch)).split(512):
                losses = loss_of(batch[rows])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss_of.parameters(), 0.5)
                optimizer.step()
    collector.shutdown()

    return lambda observation: mean(torch.as_tensor(observation)).detach().numpy()


if __name__ == "__main__":
    config = tyro.cli(Config)
    policy, seeds = train(config), range(config.episodes)
    print(wm_env.evaluate(policy, seeds=seeds, world_model=config.world).summary())
