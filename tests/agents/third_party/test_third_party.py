"""Agents of other libraries learn in the dream, and drive the real car with what they learned."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import numpy as np
import pytest

import wm_env
from agents.linear import linear_policy
from wm_env.weights import save_world

FRAMES = 300  # of a dream that tells what was learned


@pytest.fixture(autouse=True)
def _lenient(lenient_dtypes):
    """Other libraries' code mixes dtypes."""


def example(name, *needs):
    """The example of that name, where the libraries that it needs are there."""
    for library in needs:
        pytest.importorskip(library)
    return importlib.import_module(f"agents.third_party.{name}")


def dreamt(policy, *params, **options):
    """The return of a policy in dreams that no agent trained in; fewer where all are decoded."""
    seeds = range(100, 116 if options.get("observation") == "pixels" else 148)
    fixed = {"env": "dream", "seeds": seeds, "max_episode_steps": FRAMES}
    return wm_env.evaluate(policy, *params, progress=False, **fixed, **options)


def assert_drives(policy, *params, **options):
    """The policy goes to the real car as it is."""
    fixed = {"seeds": [0, 1], "max_episode_steps": 60, "progress": False}
    told = wm_env.evaluate(policy, *params, **fixed, **options)
    assert told.backend == "gymnasium" and told.lengths == (60, 60)


def stable_baselines(algorithm, observation="features"):
    one = example("stable_baselines", "stable_baselines3")
    told = {"algorithm": algorithm, "observation": observation, "lanes": 64}
    return lambda steps, seed: (one.train(one.Config(**told, steps=steps, seed=seed)),)


def sbx():
    one = example("sbx_ppo", "stable_baselines3", "sbx")
    return lambda steps, seed: (one.train(one.Config(steps=steps, lanes=64, seed=seed)),)


def torchrl():
    one = example("torchrl_ppo", "torchrl")
    return lambda steps, seed: (one.train(one.Config(steps=steps, lanes=64, seed=seed)),)


def single_file():
    one = example("cleanrl_ppo", "torch")

    def train(steps, seed):
        config = one.Config(steps=steps, lanes=64, seed=seed)
        return (one.train(config, gym.make_vec("DreamCarRacing-v0", 64)),)

    return train


def evosax(strategy):
    one = example("evosax_strategies")
    told = {"strategy": strategy, "dreams": 4, "frames": FRAMES}

    def train(generations, seed):
        config = one.Config(**told, generations=generations, seed=seed)
        return linear_policy, one.train(config)

    return train


class Agent(NamedTuple):
    """An agent of an example: `make()` gives `train(steps, seed)`.

    That gives a policy and what its parameters are, if any. A step is a frame, of evosax a
    generation.
    """

    make: Callable
    brief: int  # steps for some updates
    steps: int  # steps for something to be learned
    options: dict[str, Any] = {}  # of `wm_env.evaluate`


AGENTS = {
    "sb3-PPO": Agent(partial(stable_baselines, "PPO"), 2048, 65_536),
    "sb3-PPO-pixels": Agent(
        partial(stable_baselines, "PPO", "pixels"), 2048, 12_288, {"observation": "pixels"}
    ),
    "sb3-SAC": Agent(partial(stable_baselines, "SAC"), 2176, 12_000),
    "sb3-DQN": Agent(partial(stable_baselines, "DQN"), 2176, 48_000, {"continuous": False}),
    "sbx": Agent(sbx, 2048, 131_072),
    "torchrl": Agent(torchrl, 2048, 131_072),
    "single-file": Agent(single_file, 2048, 131_072),
    "evosax-OpenES": Agent(partial(evosax, "OpenES"), 1, 20),
    "evosax-SepCMAES": Agent(partial(evosax, "SepCMAES"), 1, 20),
    "evosax-PGPE": Agent(partial(evosax, "PGPE"), 1, 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_goes_from_the_dream_to_the_real_car(name):
    agent = AGENTS[name]
    assert_drives(*agent.make()(agent.brief, 0), **agent.options)


@pytest.mark.long
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_learns_in_the_dream(name):
    """Over three seeds, trained agents beat untrained ones, and two of them do for themselves.

    A single seed of so short a training may stay where it was; where the first two leave no doubt,
    the third is spared.
    """
    agent = AGENTS[name]
    train, gains, doubts = agent.make(), [], []
    for seed in range(3):
        before = dreamt(*train(0, seed), **agent.options)
        after = dreamt(*train(agent.steps, seed), **agent.options)
        print(f"seed {seed}: {before.mean:.1f} untrained, {after.mean:.1f} trained")
        gains.append(after.mean - before.mean)
        doubts.append(np.hypot(before.ci95, after.ci95))
        if seed == 1 and all(gain > doubt for gain, doubt in zip(gains, doubts, strict=True)):
            break
    assert np.mean(gains) > np.linalg.norm(doubts) / len(gains)  # the 95% of their mean
    assert sum(gain > 0.0 for gain in gains) >= 2


def _rejax(steps, seeds):
    """A policy, an agent for each seed, and their returns at the beginning and the end."""
    one = example("rejax_ppo", "rejax")
    return one.train(one.Config(steps=steps, seeds=seeds))


@pytest.mark.slow
def test_an_agent_of_rejax_goes_from_the_dream_to_the_real_car():
    policy, agents, _ = _rejax(2048, seeds=1)
    assert_drives(policy, jax.tree.map(lambda leaf: leaf[0], agents))


@pytest.mark.long
def test_agents_of_rejax_learn_in_the_dream():
    _, _, returns = _rejax(131_072, seeds=3)
    begun, ended = returns[:, 0].mean(axis=-1), returns[:, -1].mean(axis=-1)
    print(f"{begun} untrained, {ended} trained")
    assert (ended > begun + 50.0).all()


@pytest.mark.parametrize("env", ["dream", "real"])
def test_gymnasiums_recorder_films_an_agent(env, tmp_path):
    pytest.importorskip("moviepy")
    one = example("film")
    path, returned = one.film(one.Config(env, tmp_path, steps=20))
    assert path.stat().st_size > 1000 and np.isfinite(returned)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("stable_baselines", "stable_baselines3", "sb3"),
        ("sbx_ppo", "stable_baselines3", "sbx"),
        ("sbx_ppo", "sbx", "sbx"),
        ("rejax_ppo", "rejax", "rejax"),
        ("torchrl_ppo", "torchrl", "torchrl"),
        ("cleanrl_ppo", "torch", "sb3"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(name, library, extra):
    program = f"import sys; sys.modules[{library!r}] = None; import agents.third_party.{name}"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.returncode != 0 and f"--extra {extra}" in told.stderr


def test_an_example_dreams_in_the_world_that_it_is_told(random_world, tmp_path):
    world = tmp_path / "world.safetensors"
    save_world(random_world(mdn_rnn={"hidden_size": 16}), world)
    one = example("evosax_strategies")
    brief = {"generations": 1, "population": 4, "dreams": 1, "frames": 5}
    assert one.train(one.Config(world=str(world), **brief)).weight.shape == (3, 32 + 16)
