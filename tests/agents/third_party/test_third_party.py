"""Agents of other libraries learn in the dream, and drive the real car with what they learned."""

import importlib
import subprocess
import sys

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


def assert_learns(train, **options):
    """Over three seeds, what `train(None, seed)` gives beats `train(0, seed)`, and does so for two.

    It gives a policy and what its parameters are, if any. A single seed of so short a training may
    stay where it was; where the first two leave no doubt, the third is spared.
    """
    gains, doubts, policy = [], [], ()
    for seed in range(3):
        before = dreamt(*train(0, seed), **options)
        policy = train(None, seed)
        after = dreamt(*policy, **options)
        print(f"seed {seed}: {before.mean:.1f} untrained, {after.mean:.1f} trained")
        gains.append(after.mean - before.mean)
        doubts.append(np.hypot(before.ci95, after.ci95))
        if seed == 1 and all(gain > doubt for gain, doubt in zip(gains, doubts, strict=True)):
            break
    assert np.mean(gains) > np.linalg.norm(doubts) / len(gains)  # the 95% of their mean
    assert sum(gain > 0.0 for gain in gains) >= 2
    assert_drives(*policy, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "observation", "steps"),
    [
        ("PPO", "features", 65_536),
        ("PPO", "pixels", 12_288),
        ("SAC", "features", 12_000),
        ("DQN", "features", 48_000),
    ],
)
def test_stable_baselines_learns(algorithm, observation, steps):
    one = example("stable_baselines", "stable_baselines3")

    def train(only, seed):
        taken = steps if only is None else only
        config = one.Config(
            algorithm=algorithm, observation=observation, steps=taken, lanes=64, seed=seed
        )
        return (one.train(config),)

    assert_learns(train, observation=observation, continuous=algorithm != "DQN")


@pytest.mark.slow
def test_sbx_learns():
    one = example("sbx_ppo", "stable_baselines3", "sbx")

    def train(only, seed):
        taken = 131_072 if only is None else only
        return (one.train(one.Config(steps=taken, lanes=64, seed=seed)),)

    assert_learns(train)


@pytest.mark.slow
def test_torchrl_learns():
    one = example("torchrl_ppo", "torchrl")

    def train(only, seed):
        taken = 131_072 if only is None else only
        return (one.train(one.Config(steps=taken, lanes=64, seed=seed)),)

    assert_learns(train)


@pytest.mark.slow
def test_the_single_file_learns():
    one = example("cleanrl_ppo", "torch")

    def train(only, seed):
        config = one.Config(steps=131_072 if only is None else only, lanes=64, seed=seed)
        return (one.train(config, gym.make_vec("DreamCarRacing-v0", 64)),)

    assert_learns(train)


@pytest.mark.slow
def test_rejax_learns():
    one = example("rejax_ppo", "rejax")
    policy, agents, returns = one.train(one.Config(steps=131_072, seeds=3))
    begun, ended = returns[:, 0].mean(axis=-1), returns[:, -1].mean(axis=-1)
    print(f"{begun} untrained, {ended} trained")
    assert (ended > begun + 50.0).all()
    assert_drives(policy, jax.tree.map(lambda leaf: leaf[0], agents))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["OpenES", "SepCMAES", "PGPE"])
def test_a_strategy_of_evosax_learns(strategy):
    one = example("evosax_strategies")

    def train(only, seed):
        generations = 20 if only is None else only
        config = one.Config(
            strategy=strategy, generations=generations, dreams=4, frames=FRAMES, seed=seed
        )
        return linear_policy, one.train(config)

    assert_learns(train)


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
