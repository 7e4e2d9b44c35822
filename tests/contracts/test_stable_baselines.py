"""Stable-Baselines3 takes DreamCarRacing-v0 as it is."""

import warnings

import gymnasium as gym
import numpy as np
import pytest

from wm_env.dream import OBSERVATION_KINDS

check_env = pytest.importorskip("stable_baselines3.common.env_checker").check_env
DummyVecEnv = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv
DreamVecEnv = pytest.importorskip("wm_env.stable_baselines").DreamVecEnv

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


def its_own(make, world):
    return DummyVecEnv([make, make])


def native(make, world):
    options = {"world_model": world, "observation": "latent", "max_episode_steps": 4}
    return DreamVecEnv(2, **options)


@pytest.mark.parametrize(("batch_of", "rounding"), [(its_own, 0.0), (native, 1e-4)])
def test_its_vector_environment_gives_what_single_ones_give(
    world, with_outcomes, batch_of, rounding
):
    eventful = with_outcomes(world, log_tiles=-1.0, off_field=-1.4)

    def make():
        return gym.make(ID, world_model=eventful, observation="latent", max_episode_steps=4)

    envs, singles = batch_of(make, eventful), [make(), make()]
    envs.seed(5)
    seen = envs.reset()
    for lane, single in enumerate(singles):
        first, _ = single.reset(seed=5 + lane)
        np.testing.assert_allclose(seen[lane], first, rtol=0, atol=rounding)
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
                told = infos[lane]["terminal_observation"]
                np.testing.assert_allclose(told, last, rtol=0, atol=rounding)
                last, _ = single.reset()
            np.testing.assert_allclose(observations[lane], last, rtol=0, atol=rounding)
    assert kinds == {"fall", "limit"}


def test_a_batch_refuses_what_only_single_ones_could_do(world):
    envs = native(None, world)
    assert envs.get_attr("num_envs") == [2, 2] and envs.env_is_wrapped(gym.Wrapper) == [False] * 2
    with pytest.raises(ValueError, match="one batch"):
        envs.set_attr("params", envs.dreams.params, indices=[0])
    with pytest.raises(AttributeError, match="make_vec_env"):
        envs.env_method("reset")
    envs.set_options([{"z": np.zeros(32)}, {}])
    with pytest.raises(ValueError, match="one dict, the same for all lanes"):
        envs.reset()


def test_a_batch_begins_where_options_say_and_shows_its_screens(world):
    envs = DreamVecEnv(2, world_model=world, observation="latent", render_mode="rgb_array")
    envs.set_options({"z": np.full(32, 0.5, np.float32)})
    np.testing.assert_allclose(envs.reset(), 0.5)
    assert envs.reset_infos == [{"tiles": 0.0, "lap_finished": False, "off_field": False}] * 2
    assert [image.shape for image in envs.get_images()] == [(400, 600, 3)] * 2
