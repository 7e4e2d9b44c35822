"""Real CarRacing-v3 through the wrappers: what an agent of the dream sees and does there."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

from wm_env.car_racing import make_car_racing
from wm_env.dream import DISCRETE_ACTIONS
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv
from wm_env.preprocess import preprocess
from wm_env.real import (
    WorldModelObservation,
    WorldModelVectorObservation,
    make_real,
    make_real_vector,
)

GAS = np.float32([0.1, 0.6, 0.0])
OPTIONS = [
    (observation, continuous)
    for observation in ("features", "latent", "pixels")
    for continuous in (True, False)
]


def first_action(observation, continuous):
    """A policy that looks at whatever observation there is."""
    shift = 0.1 * float(np.tanh(observation.astype(np.float32).mean()))
    return np.float32([shift, 0.5, 0.0]) if continuous else 3 + int(shift > 0.05)


@jax.jit
def encode(world, image):
    return world.encode(image)


@jax.jit
def advance(world, z, action, carry):
    return world.mdn_rnn.advance_carry(z, action, carry)


@pytest.mark.parametrize(("observation", "continuous"), OPTIONS)
def test_a_policy_moves_between_dream_and_reality_unchanged(world, observation, continuous):
    options = {"observation": observation, "continuous": continuous}
    dream = DreamCarRacingEnv(world_model=world, **options)
    real = make_real(world, **options)
    assert real.observation_space == dream.observation_space
    assert real.action_space == dream.action_space
    for env in (dream, real):
        seen, info = env.reset(seed=1)
        for _ in range(3):
            assert env.observation_space.contains(seen)
            assert {"tiles", "lap_finished", "off_field"} <= set(info)
            action = first_action(seen, continuous)
            assert env.action_space.contains(action)
            seen, reward, terminated, truncated, info = env.step(action)
            assert type(reward) is float and type(terminated) is type(truncated) is bool
        env.close()


@pytest.mark.parametrize(("observation", "continuous"), OPTIONS)
def test_a_batch_of_real_cars_has_the_spaces_of_a_batch_of_dreams(world, observation, continuous):
    options = {"observation": observation, "continuous": continuous}
    dream = DreamCarRacingVectorEnv(2, world_model=world, **options)
    real = make_real_vector(2, world, **options)
    for name in (
        "observation_space",
        "action_space",
        "single_observation_space",
        "single_action_space",
    ):
        assert getattr(real, name) == getattr(dream, name)
    real.close()


@pytest.mark.parametrize("continuous", [True, False])
def test_features_are_the_recursion_of_v_and_m(world, continuous):
    env = make_real(world, continuous=continuous)
    env.action_space.seed(0)
    seen, info = env.reset(seed=2)
    z, carry = encode(world, info["image"]), world.mdn_rnn.initial_carry()
    for _ in range(6):
        np.testing.assert_allclose(seen, jnp.concatenate([z, carry.h]), atol=2e-5)
        action = env.action_space.sample()
        seen, _, _, _, info = env.step(action)
        carry = advance(world, z, action if continuous else DISCRETE_ACTIONS[action], carry)
        z = encode(world, info["image"])
    np.testing.assert_allclose(seen, jnp.concatenate([z, carry.h]), atol=2e-5)
    assert np.abs(seen[world.latent_size :]).max() > 0.0


def test_the_info_carries_the_image_that_v_saw():
    env = make_real(observation="pixels")
    raw = make_car_racing()
    frame, _ = raw.reset(seed=5)
    seen, info = env.reset(seed=5)
    np.testing.assert_array_equal(info["image"], preprocess(frame))
    for _ in range(3):
        frame, *_ = raw.step(GAS)
        seen, *_, info = env.step(GAS)
        np.testing.assert_array_equal(info["image"], preprocess(frame))
        np.testing.assert_array_equal(seen, info["image"])


def test_tiles_are_those_that_the_car_has_visited():
    env = make_real(observation="pixels")
    env.reset(seed=0)
    for _ in range(60):
        *_, info = env.step(GAS)
        assert info["tiles"] == env.unwrapped.tile_visited_count
    assert info["tiles"] > 2


def test_a_finished_lap_and_a_fall_are_told_apart():
    env = make_real(observation="pixels")
    env.reset(seed=0)
    env.unwrapped.tile_visited_count = len(env.unwrapped.track)
    _, _, terminated, _, info = env.step(GAS)
    assert terminated and info["lap_finished"] is True and info["off_field"] is False
    env.reset(seed=0)
    env.unwrapped.car.hull.position = (1000.0, 0.0)
    _, reward, terminated, _, info = env.step(GAS)
    assert terminated and reward == -100.0
    assert info["lap_finished"] is False and info["off_field"] is True


def test_actions_beyond_their_range_are_clipped_for_car_and_m(world):
    outcomes = []
    for action in ([3.0, -1.0, 0.0], [1.0, 0.0, 0.0]):
        env = make_real(world)
        env.reset(seed=4)
        outcomes.append(env.step(np.float32(action))[0])
    np.testing.assert_array_equal(*outcomes)


@pytest.mark.parametrize(
    "action", [np.zeros(2), np.zeros((1, 3)), np.float32([0.0, np.nan, 0.0]), "left", None]
)
def test_an_impossible_action_is_refused(world, action):
    env = make_real(observation="pixels")
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="expected"):
        env.step(action)


def test_a_nan_in_one_lane_is_refused(world):
    env = make_real_vector(2, observation="pixels")
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="finite"):
        env.step(np.float32([[0.0, 0.0, 0.0], [0.0, np.nan, 0.0]]))


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(ResetNeeded):
        make_real(observation="pixels").step(GAS)


def test_frames_of_another_environment_are_refused(world):
    with pytest.raises(ValueError, match="CarRacing-v3"):
        WorldModelObservation(gymnasium.make("CartPole-v1"), world)


def test_gymnasiums_checker_has_no_complaint_but_for_being_a_wrapper(world, recwarn):
    check_env(make_real(world, max_episode_steps=20), skip_render_check=True)
    complaints = [str(one.message) for one in recwarn if "wrapper" not in str(one.message)]
    assert complaints == []


def test_lanes_are_single_environments(world):
    many = make_real_vector(2, world, seeds=[3, 8])
    seen, infos = many.reset()
    singles = [make_real(world) for _ in range(2)]
    for lane, (env, seed) in enumerate(zip(singles, (3, 8), strict=True)):
        np.testing.assert_allclose(env.reset(seed=seed)[0], seen[lane], atol=2e-5)
    for _ in range(4):
        seen, rewards, _, _, infos = many.step(np.stack([GAS, -GAS]))
        for lane, (env, action) in enumerate(zip(singles, (GAS, -GAS), strict=True)):
            alone, reward, _, _, info = env.step(action)
            np.testing.assert_allclose(alone, seen[lane], atol=2e-5)
            assert reward == rewards[lane] and info["tiles"] == infos["tiles"][lane]
            np.testing.assert_array_equal(info["image"], infos["image"][lane])


def test_only_a_lane_that_begins_anew_forgets(world):
    env = make_real_vector(2, world)
    env.reset(seed=0)
    actions = np.stack([GAS, GAS])
    env.step(actions)
    env.env.envs[0].unwrapped.car.hull.position = (1000.0, 0.0)
    seen, _, terminated, _, infos = env.step(actions)
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(infos["off_field"], [True, False])
    kept = seen[:, world.latent_size :]
    assert (np.abs(kept).max(axis=1) > 0.0).all()
    seen, rewards, terminated, _, infos = env.step(actions)
    kept = seen[:, world.latent_size :]
    assert not kept[0].any() and kept[1].any()
    np.testing.assert_array_equal(infos["tiles"], [0, 2])
    assert rewards[0] == 0.0 and not terminated.any()
    np.testing.assert_allclose(
        seen[0, : world.latent_size], encode(world, infos["image"][0]), atol=2e-5
    )
    *_, infos = env.step(actions)
    np.testing.assert_array_equal(infos["tiles"], [2, 2])


def test_lanes_that_begin_anew_in_the_same_step_are_refused(world):
    lanes = gymnasium.vector.SyncVectorEnv(
        [make_car_racing], autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    with pytest.raises(ValueError, match="NEXT_STEP"):
        WorldModelVectorObservation(lanes, world)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'torcs'"):
        make_real_vector(2, observation="pixels", backend="torcs")


def test_seeds_are_one_a_lane():
    with pytest.raises(ValueError, match="3 seeds"):
        make_real_vector(2, observation="pixels", seeds=[1, 2, 3])


@pytest.mark.parametrize(("observation", "continuous"), OPTIONS)
def test_a_batch_of_envpools_cars_has_the_spaces_of_a_batch_of_dreams(
    world, observation, continuous
):
    pytest.importorskip("envpool")
    options = {"observation": observation, "continuous": continuous}
    dream = DreamCarRacingVectorEnv(2, world_model=world, **options)
    real = make_real_vector(2, world, backend="envpool", **options)
    assert real.observation_space == dream.observation_space
    assert real.action_space == dream.action_space
    assert real.single_observation_space == dream.single_observation_space
    assert real.single_action_space == dream.single_action_space
    real.close()


@pytest.mark.parametrize("continuous", [True, False])
def test_envpool_repeats_its_seeds_and_ends_lanes_as_gymnasium_does(world, continuous):
    pytest.importorskip("envpool")
    env = make_real_vector(
        2, world, backend="envpool", continuous=continuous, max_episode_steps=3, threads=1
    )
    actions = np.stack([GAS, GAS]) if continuous else np.array([3, 3])
    runs = []
    for _ in range(2):
        seen, _ = env.reset(seed=[11, 12])
        first = seen
        for step in range(4):
            seen, rewards, terminated, truncated, infos = env.step(actions)
            assert not terminated.any() and truncated.all() == (step == 2)
        assert not rewards.any() and not seen[:, world.latent_size :].any()
        runs.append((first, seen))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert env.observation_space.contains(seen)
    env.close()


def test_envpool_refuses_options_that_it_does_not_know():
    pytest.importorskip("envpool")
    with pytest.raises(ValueError, match="domain_randomize"):
        make_real_vector(2, observation="pixels", backend="envpool", domain_randomize=True)
