"""One dream behind three interfaces: gymnax, gym.Env and VectorEnv agree step for step."""

import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv

STEPS = 25


def actions(count, lanes=()):
    rng = np.random.default_rng(7)
    return rng.uniform([-1, 0, 0], [1, 1, 1], (count, *lanes, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def eventful(random_world, with_outcomes):
    """Falls about every tenth step, so that auto-reset has work."""
    return with_outcomes(random_world(2), log_tiles=-1.0, off_field=-2.2)


def test_single_environment_equals_gymnax(world):
    env = DreamCarRacingEnv(world_model=world, dropout=0.1, temperature=1.2, start="mixed")
    obs, _ = env.reset(seed=11)
    key = jax.random.key(np_random(11)[0].integers(2**32, dtype=np.uint32))
    key, key_reset = jax.random.split(key)
    expected, state = env.core.reset(key_reset, env.params)
    np.testing.assert_allclose(obs, expected, atol=1e-5)
    for action in actions(STEPS):
        key, key_now = jax.random.split(key)
        _, state, reward, terminated, truncated, info = env.core.step(
            key_now, state, action, env.params
        )
        got = env.step(action)
        np.testing.assert_allclose(got[0], info["final_observation"], atol=1e-4)
        assert got[1] == pytest.approx(float(reward), abs=1e-3)
        assert got[2:4] == (bool(terminated), bool(truncated))
        if terminated:
            break


def test_vector_environment_equals_single_ones_across_episodes(eventful):
    arguments = {"world_model": eventful, "start": "mixed", "dropout": 0.1}
    batch = DreamCarRacingVectorEnv(3, max_episode_steps=9, **arguments)
    single = SyncVectorEnv(
        [lambda: DreamCarRacingEnv(max_episode_steps=9, **arguments)] * 3,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    obs, infos = batch.reset(seed=4)
    expected, expected_infos = single.reset(seed=4)
    np.testing.assert_allclose(obs, expected, atol=1e-5)
    assert data_equivalence(infos, expected_infos)
    ends = set()
    for action in actions(STEPS, (3,)):
        got, want = batch.step(action), single.step(action)
        np.testing.assert_allclose(got[0], want[0], atol=1e-3)
        np.testing.assert_allclose(got[1], want[1], atol=1e-2)
        np.testing.assert_array_equal(got[2], want[2])
        np.testing.assert_array_equal(got[3], want[3])
        same_infos(got[4], want[4])
        ends |= {"terminated"} if got[2].any() else set()
        ends |= {"truncated"} if got[3].any() else set()
    assert ends == {"terminated", "truncated"}


def same_infos(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        if isinstance(value, dict):
            same_infos(got[name], value)
        elif value.dtype == object:
            for a, b in zip(got[name], value, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a, b, atol=1e-3)
        else:
            assert got[name].dtype == value.dtype
            np.testing.assert_allclose(got[name], value, atol=1e-3)


def test_pixel_lanes_equal_single_pixels(world, with_outcomes):
    arguments = {"world_model": with_outcomes(world), "observation": "pixels"}
    batch = DreamCarRacingVectorEnv(2, max_episode_steps=2, **arguments)
    single = SyncVectorEnv(
        [lambda: DreamCarRacingEnv(max_episode_steps=2, **arguments)] * 2,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    batch.reset(seed=4)
    single.reset(seed=4)
    for action in actions(2, (2,)):
        got, want = batch.step(action), single.step(action)
    np.testing.assert_allclose(got[0].astype(int), want[0].astype(int), atol=1)
    for a, b in zip(got[4]["final_obs"], want[4]["final_obs"], strict=True):
        np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)


def test_discrete_lanes_equal_single_ones(world, with_outcomes):
    arguments = {"world_model": with_outcomes(world), "continuous": False}
    batch = DreamCarRacingVectorEnv(2, **arguments)
    single = SyncVectorEnv([lambda: DreamCarRacingEnv(**arguments)] * 2)
    batch.reset(seed=1)
    single.reset(seed=1)
    got, want = batch.step(np.array([3, 1])), single.step(np.array([3, 1]))
    np.testing.assert_allclose(got[0], want[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["single", "vector"])
def test_same_seed_and_actions_give_the_same_bits(eventful, kind):
    def play():
        if kind == "single":
            env, given = DreamCarRacingEnv(world_model=eventful), actions(STEPS)
        else:
            env, given = DreamCarRacingVectorEnv(3, world_model=eventful), actions(STEPS, (3,))
        seen = [env.reset(seed=99)[0]]
        for action in given:
            obs, reward, *_ = env.step(action)
            seen += [obs, np.asarray(reward)]
        return seen

    for a, b in zip(play(), play(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_seeds_matter_and_resets_without_one_go_on(world):
    env = DreamCarRacingEnv(world_model=world, start="mixed")
    first = [env.reset(seed=1)[0]] + [env.reset()[0] for _ in range(5)]
    again = [env.reset(seed=1)[0]] + [env.reset()[0] for _ in range(5)]
    np.testing.assert_array_equal(first, again)
    assert len({obs.tobytes() for obs in first}) > 1
    batch = DreamCarRacingVectorEnv(4, world_model=world, start="mixed")
    a, b = batch.reset(seed=1)[0], batch.reset()[0]
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(batch.reset(seed=1)[0], a)
