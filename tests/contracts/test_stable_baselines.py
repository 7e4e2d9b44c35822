"""Stable-Baselines3 takes DreamCarRacing-v0 as it is."""

import warnings

import gymnasium as gym
import numpy as np
import pytest

from wm_env.dream import OBSERVATION_KINDS

check_env = pytest.importorskip("stable_baselines3.common.env_checker").check_env
DummyVecEnv = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv

ID = "DreamCarRacing-v0"


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("observation", OBSERVATION_KINDS)
def test_its_checker_warns_of_nothing_but_car_racings_action_space(world, observation, continuous):
    env = gym.make(ID, world_model=world, observation=observation, continuous=continuous)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, warn=True)
        check_env(env.unwrapped, warn=True)
    told = [str(warning.message) for warning in caught]
    assert [text for text in told if "symmetric and normalized Box" not in text] == []
    assert bool(told) == continuous, "steer, gas and brake are not symmetric, as in CarRacing-v3"


def test_its_vector_environment_gives_what_single_ones_give(world, with_outcomes):
    eventful = with_outcomes(world, log_tiles=-1.0, off_field=-1.4)

    def make():
        return gym.make(ID, world_model=eventful, observation="latent", max_episode_steps=4)

    envs, singles = DummyVecEnv([make, make]), [make(), make()]
    envs.seed(5)
    seen = envs.reset()
    for lane, single in enumerate(singles):
        np.testing.assert_array_equal(seen[lane], single.reset(seed=5 + lane)[0])
    kinds = set()
    for actions in np.random.default_rng(0).uniform(0, 1, (20, 2, 3)).astype(np.float32):
        observations, rewards, dones, infos = envs.step(actions)
        for lane, single in enumerate(singles):
            last, reward, terminated, truncated, info = single.step(actions[lane])
            assert rewards[lane] == pytest.approx(reward, abs=1e-4)
            assert dones[lane] == (terminated or truncated)
            assert infos[lane]["TimeLimit.truncated"] == (truncated and not terminated)
            assert infos[lane]["tiles"] == info["tiles"]
            if terminated or truncated:
                kinds.add("fall" if terminated else "limit")
                np.testing.assert_array_equal(infos[lane]["terminal_observation"], last)
                last, _ = single.reset()
            np.testing.assert_array_equal(observations[lane], last)
    assert kinds == {"fall", "limit"}
