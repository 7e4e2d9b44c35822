"""Copies: environments pickle and deep-copy mid-episode and go on alike; specs survive JSON."""

import copy
import pickle

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence

import wm_env

ID = "DreamCarRacing-v0"
COPIES = {"pickled": lambda it: pickle.loads(pickle.dumps(it)), "deep-copied": copy.deepcopy}


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


@pytest.fixture(scope="module")
def arguments(random_world, with_outcomes):
    """Of a dream that falls about every fifth step, so that copies go through resets."""
    eventful = with_outcomes(random_world(2), log_tiles=-1.0, off_field=-1.4)
    return {"world_model": eventful, "observation": "latent", "start": "mixed", "dropout": 0.1}


def play(env, seed=1):
    """All that 25 steps of random actions give, and the resets after ends of a single one."""
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(25):
        seen.append(env.step(rng.uniform(0, 1, env.action_space.shape).astype(np.float32)))
        if not hasattr(env, "num_envs") and (seen[-1][2] or seen[-1][3]):
            seen.append(env.reset())
    return seen


def ends(seen):
    return sum(int(np.sum(step[2])) + int(np.sum(step[3])) for step in seen if len(step) == 5)


@pytest.mark.parametrize(
    ("wrapped", "observation"), [(True, "latent"), (False, "latent"), (False, "pixels")]
)
def test_a_copy_in_mid_episode_goes_on_with_the_same_bits(arguments, copied, wrapped, observation):
    env = gym.make(ID, max_episode_steps=5, **{**arguments, "observation": observation})
    env = env if wrapped else env.unwrapped
    env.reset(seed=4)
    env.step(np.zeros(3, np.float32))
    other = copied(env)
    expected = play(env)
    assert data_equivalence(play(other), expected, exact=True)
    assert ends(expected) > 2
    assert not data_equivalence(play(other), expected, exact=True)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_copy_resets_to_the_same_next_episode(arguments, copied, steps):
    env = gym.make(ID, **arguments)
    env.reset(seed=4)
    for _ in range(steps):
        env.step(np.zeros(3, np.float32))
    other = copied(env)
    assert data_equivalence(other.reset(), env.reset(), exact=True)
    assert data_equivalence(play(other), play(env), exact=True)


def test_a_copied_vector_environment_goes_on_with_the_same_bits(arguments, copied):
    envs = gym.make_vec(ID, 2, max_episode_steps=5, **arguments)
    envs.reset(seed=4)
    envs.step(np.zeros((2, 3), np.float32))
    other = copied(envs)
    expected = play(envs)
    assert data_equivalence(play(other), expected, exact=True)
    assert ends(expected) > 4
    assert not data_equivalence(play(other), expected, exact=True)


def test_a_copy_leaves_its_original_where_it_was(arguments, copied):
    env, undisturbed = (gym.make(ID, **arguments) for _ in range(2))
    for one in (env, undisturbed):
        one.reset(seed=4)
    play(copied(env), seed=2)
    assert data_equivalence(play(env), play(undisturbed), exact=True)


def test_a_copy_before_the_first_reset_takes_seeds_alike(arguments, copied):
    env = gym.make(ID, **arguments)
    other = copied(env)
    assert data_equivalence(other.reset(seed=8), env.reset(seed=8), exact=True)
    assert other.observation_space == env.observation_space
    assert other.action_space == env.action_space


def test_a_copied_spec_is_equal_and_makes_the_same_environment(arguments, copied):
    env = gym.make(ID, max_episode_steps=5, **arguments)
    spec = copied(env.spec)
    assert spec == env.spec and spec.kwargs["dropout"] == 0.1
    assert np.array_equal(
        spec.kwargs["world_model"].mdn_rnn.gate_weight,
        arguments["world_model"].mdn_rnn.gate_weight,
    )
    other = gym.make(spec)
    assert data_equivalence(other.reset(seed=8), env.reset(seed=8), exact=True)
    assert data_equivalence(play(other), play(env), exact=True)


def test_a_spec_comes_back_from_json(arguments, tmp_path, copied):
    path = str(tmp_path / "world.safetensors")
    wm_env.save_world(arguments["world_model"], path, dtype="float32")
    env = gym.make(ID, max_episode_steps=5, **{**arguments, "world_model": path})
    spec = EnvSpec.from_json(copied(env.spec).to_json())
    assert spec == env.spec
    assert (spec.id, spec.max_episode_steps, spec.kwargs["world_model"]) == (ID, 5, path)
    other = gym.make(spec)
    assert data_equivalence(other.reset(seed=8), env.reset(seed=8), exact=True)
    assert data_equivalence(play(other), play(env), exact=True)


def test_the_registered_spec_comes_back_from_json_and_copies(copied):
    spec = gym.spec(ID)
    assert EnvSpec.from_json(spec.to_json()) == spec == copied(spec)
    assert spec.vector_entry_point and copied(spec).vector_entry_point == spec.vector_entry_point


def test_a_vector_spec_makes_the_same_lanes(arguments):
    envs = gym.make_vec(ID, 2, **arguments)
    other = gym.make_vec(copy.deepcopy(envs.spec), 2)
    assert data_equivalence(other.reset(seed=8), envs.reset(seed=8), exact=True)


def test_a_copied_world_has_the_same_weights(arguments, copied):
    world = arguments["world_model"]
    other = copied(world)
    assert dict(other.metadata) == dict(world.metadata)
    assert jax.tree.structure(other) == jax.tree.structure(world)
    for got, weight in zip(jax.tree.leaves(other), jax.tree.leaves(world), strict=True):
        assert got.dtype == weight.dtype
        np.testing.assert_array_equal(got, weight)
