"""PPO of rejax: the whole training is one jitted call, vmapped over seeds (extra `rejax`).

`python -m agents.third_party.rejax_ppo`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnax
import jax
import tyro
from gymnax.wrappers import LegacyStepAPIWrapper

import wm_env
from agents.third_party.extras import Extra

with Extra("rejax"):
    import rejax


@dataclass(frozen=True)
class Config:
    """Train in the dream, once for each seed, then drive real tracks with every agent."""

    world: str = "carracing"  # to dream in: file or shipped name
    steps: int = 1_000_000  # dreamt by each agent, in 64 lanes
    seeds: int = 2
    episodes: int = 4  # real tracks driven at the end, seeds 0, 1, ...


class Legacy(LegacyStepAPIWrapper):
    """Stays one: rejax copies its arguments, which gymnax's wrapper does not survive."""

    def __deepcopy__(self, memo: dict) -> "Legacy":
        return self


def train(config: Config) -> tuple[Callable, Any, jax.Array]:
    """Learn in the dream.

    Gives a policy `policy(agent, observation, key)`, the agents' parameters (a pytree with an axis
    of seeds), and their dreamt returns, [seed, evaluation, episode]: at the start and at the end.
    """
    env, params = gymnax.make("DreamCarRacing-v0", world_model=config.world)
    sizes = {"num_envs": 64, "num_steps": 32, "num_minibatches": 4, "num_epochs": 5}
    algorithm = rejax.PPO.create(
        env=Legacy(env),
        env_params=params,
        total_timesteps=config.steps,
        eval_freq=config.steps,
        normalize_rewards=True,
        **sizes,
    )
    keys = jax.random.split(jax.random.key(0), config.seeds)
    trained, (_, returns) = jax.jit(jax.vmap(algorithm.train))(keys)
    actor = algorithm.actor  # not the algorithm, which holds the dream

    def policy(agent: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        mean = actor.apply(
            agent, observation[None], method=lambda me, seen: me._action_dist(seen).mean()
        )
        return mean[0]

    return policy, trained.actor_ts.params, returns


def main(config: Config) -> None:
    """Train, drive, print."""
    policy, agents, returns = train(config)
    for seed in range(config.seeds):
        begun, ended = returns[seed, [0, -1]].mean(axis=1).tolist()
        print(f"agent {seed}: dreamt return {begun:.1f} at the start, {ended:.1f} at the end")
        agent = jax.tree.map(lambda leaf, seed=seed: leaf[seed], agents)
        seeds = range(config.episodes)
        print(wm_env.evaluate(policy, agent, seeds=seeds, world_model=config.world).summary())


if __name__ == "__main__":
    main(tyro.cli(Config))
