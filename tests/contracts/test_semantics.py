"""What dreams mean: CarRacing-v3's rewards, endings and time limit; one mask an episode."""

import jax
import numpy as np
import pytest

from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv

IDLE = np.zeros(3, np.float32)


def episode(env, limit=1100):
    """Return, length, last info, terminated, truncated of an idle drive."""
    env.reset(seed=0)
    total = 0.0
    length, terminated, truncated, info = 0, False, False, {}
    while length < limit and not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(IDLE)
        total += reward
        length += 1
    return total, length, info, terminated, truncated


def test_a_frame_without_tiles_costs_a_tenth(world, with_outcomes):
    env = DreamCarRacingEnv(world_model=with_outcomes(world))
    env.reset(seed=0)
    assert env.step(IDLE)[1] == pytest.approx(-0.1, abs=1e-6)


@pytest.mark.parametrize("track_tiles", [250, 281, 330])
def test_a_tile_pays_a_thousandth_of_the_track(world, with_outcomes, track_tiles):
    sure = with_outcomes(world, log_tiles=0.0)
    env = DreamCarRacingEnv(world_model=sure, track_tiles=track_tiles)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(IDLE)
    assert reward == pytest.approx(1000 / track_tiles - 0.1, abs=1e-4)
    assert info == {"tiles": pytest.approx(1.0), "lap_finished": False, "off_field": False}


def test_a_whole_lap_pays_a_thousand_less_its_frames(world, with_outcomes):
    env = DreamCarRacingEnv(world_model=with_outcomes(world, log_tiles=0.01), track_tiles=100)
    total, length, info, terminated, truncated = episode(env)
    assert terminated and not truncated and info["lap_finished"] and not info["off_field"]
    assert info["tiles"] == pytest.approx(100.0) and length == 100
    assert total == pytest.approx(1000 - 0.1 * length, abs=0.05)


def test_part_of_the_lap_may_be_asked_for(world, with_outcomes):
    sure = with_outcomes(world, log_tiles=0.01)
    env = DreamCarRacingEnv(world_model=sure, track_tiles=100, lap_complete_percent=0.5)
    total, length, info, terminated, _ = episode(env)
    assert terminated and info["lap_finished"] and length == 50
    assert total == pytest.approx(500 - 0.1 * length, abs=0.05)


def test_leaving_the_field_costs_a_hundred_instead_of_the_reward(world, with_outcomes):
    env = DreamCarRacingEnv(world_model=with_outcomes(world, log_tiles=1.0, off_field=30.0))
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(IDLE)
    assert (reward, terminated, truncated) == (-100.0, True, False)
    assert info["off_field"] and not info["lap_finished"]


def test_the_time_limit_is_no_terminal(world, with_outcomes):
    env = DreamCarRacingEnv(world_model=with_outcomes(world), max_episode_steps=1000)
    total, length, info, terminated, truncated = episode(env)
    assert (length, terminated, truncated) == (1000, False, True)
    assert total == pytest.approx(-100.0, abs=0.01)
    assert not info["lap_finished"]


def test_falls_come_as_often_as_predicted(world, with_outcomes):
    envs = DreamCarRacingVectorEnv(512, world_model=with_outcomes(world, off_field=-2.0))
    envs.reset(seed=0)
    fallen = [envs.step(np.zeros((512, 3), np.float32))[2].mean() for _ in range(10)]
    expected = 1 / (1 + np.exp(2.0))
    assert np.mean(fallen) == pytest.approx(expected, abs=5 * np.sqrt(expected / 5120))


def test_observation_and_action_predict_the_next_observation(world):
    """(z_t, h_t) is seen, a_t is done, and M consumes (z_t, a_t): h_{t+1} follows from them."""
    env = DreamCarRacingEnv(world_model=world)
    seen, _ = env.reset(seed=3)
    cell = np.zeros(256, np.float32)
    for action in np.random.default_rng(0).uniform(0, 1, (5, 3)).astype(np.float32):
        gates = np.concatenate([seen[:32], action, seen[32:]]) @ np.asarray(
            world.mdn_rnn.gate_weight
        ) + np.asarray(world.mdn_rnn.gate_bias)
        entry, forget, candidate, output = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(candidate)
        seen, *_ = env.step(action)
        np.testing.assert_allclose(seen[32:], sigmoid(output) * np.tanh(cell), atol=1e-4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_dropout_mask_is_fixed_in_an_episode_and_drawn_anew_in_the_next(world, with_outcomes):
    envs = DreamCarRacingVectorEnv(
        8, world_model=with_outcomes(world), dropout=0.2, max_episode_steps=4
    )
    envs.reset(seed=0)
    masks = [np.asarray(envs._state.mask)]
    for _ in range(4):
        envs.step(np.zeros((8, 3), np.float32))
        masks.append(np.asarray(envs._state.mask))
    for mask in masks[1:4]:
        np.testing.assert_array_equal(mask, masks[0])
    assert np.all(np.any(masks[4] != masks[0], axis=1))
    assert len({mask.tobytes() for mask in masks[0]}) == 8


def test_temperature_zero_takes_the_luck_out_of_a_dream(world, with_outcomes):
    env = DreamCarRacingEnv(world_model=with_outcomes(world), temperature=0.0)
    z = np.zeros(32, np.float32)
    ends = []
    for seed in range(2):
        env.reset(seed=seed, options={"z": z})
        ends.append(env.step(IDLE)[0])
    np.testing.assert_array_equal(ends[0], ends[1])


def test_a_hotter_dream_spreads_further(world):
    spreads = []
    for temperature in (0.25, 1.0, 4.0):
        envs = DreamCarRacingVectorEnv(256, world_model=world, temperature=temperature)
        envs.reset(seed=0, options={"z": np.zeros(32, np.float32)})
        obs, *_ = envs.step(np.zeros((256, 3), np.float32))
        spreads.append(obs[:, :32].std(axis=0).mean())
    assert spreads[0] < spreads[1] < spreads[2]


def test_worlds_are_leaves_of_the_parameters(world):
    env = DreamCarRacingEnv(world_model=world)
    leaves = jax.tree.leaves(env.params)
    assert any(leaf is world.mdn_rnn.gate_weight for leaf in leaves)
