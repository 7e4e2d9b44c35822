"""The world that comes with the package: it loads, `make` takes it, and it is sane to drive in."""

import gymnasium as gym
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_env
from wm_env.dream import DreamCarRacing
from wm_env.rollouts import rollout


@pytest.fixture(scope="module")
def params():
    return gymnax.make("DreamCarRacing-v0")[1]


@pytest.mark.parametrize("name", ["carracing", "carracing_motion", "carracing_beginner"])
def test_it_loads_with_the_papers_sizes(name):
    world = wm_env.load_world(name)
    assert (world.latent_size, world.hidden_size) == (32, 256)
    assert world.metadata, "a shipped world tells where it comes from"
    shown = zip(jax.tree.leaves(world.vae), jax.tree.leaves(wm_env.load_world().vae), strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in shown), "drivers see alike in all"


def test_it_is_what_make_and_make_vec_take():
    env = gym.make("DreamCarRacing-v0")
    assert env.reset(seed=0)[0] in env.observation_space
    envs = gym.make_vec("DreamCarRacing-v0", num_envs=4)
    assert envs.reset(seed=0)[0] in envs.observation_space


def test_a_thousand_steps_stay_finite(params):
    env = DreamCarRacing()
    keys = jax.random.split(jax.random.key(0), 8)
    actions = jnp.array([[0.0, 0.3, 0.0], [-1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]] * 2)

    def hold(action, observation, key):
        return action

    drives = jax.jit(
        jax.vmap(lambda a, k: rollout(env, params, hold, a, k, steps=1000, record=True))
    )(actions, keys)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(drives))
    assert np.all(drives.ret > -300) and np.all(drives.ret < 1000)


def test_driving_pays_more_than_standing(params):
    env = DreamCarRacing()
    keys = jax.random.split(jax.random.key(1), 16)

    def hold(action, observation, key):
        return action

    def mean_tiles(action):
        play = jax.vmap(lambda key: rollout(env, params, hold, jnp.array(action), key, steps=100))
        return jnp.mean(jax.jit(play)(keys).tiles)

    assert mean_tiles([0.0, 0.1, 0.0]) > mean_tiles([0.0, 0.0, 1.0]) + 1
