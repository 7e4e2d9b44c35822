"""What dreams mean: CarRacing-v3's rewards, endings and time limit; one mask an episode."""

import dataclasses

import equinox as eqx
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
    for now in drive(env, world):
        np.testing.assert_allclose(now.seen_next[32:], now.h_next, atol=1e-4)


def test_the_tiles_of_a_step_are_those_predicted_after_its_action(world):
    """info["tiles"] grows by exp(log_tiles) of the carry that has consumed (z_t, a_t)."""
    m = world.mdn_rnn
    lively = eqx.tree_at(lambda w: w.mdn_rnn.head_weight, world, m.head_weight.at[:, -2].mul(10))
    env = DreamCarRacingEnv(world_model=lively)
    before, hit, expected = 0.0, [], []
    for now in drive(env, lively):
        hit.append(now.info["tiles"] - before)
        before = now.info["tiles"]
        expected.append(np.exp(now.h_next @ lively.mdn_rnn.head_weight[:, -2]))
    np.testing.assert_allclose(hit, expected, atol=1e-3)
    assert np.min(np.abs(np.diff(expected))) > 0.01, "else a shift by a step could pass"


def test_a_fall_belongs_to_the_latent_and_action_of_its_step(world):
    """off_field_t is a matter of z_t and a_t alone where M's heads and gates make it one."""
    m, unit = world.mdn_rnn, 0
    entry, forget, candidate, output = unit + 256 * np.arange(4)
    gates = [entry, forget, candidate, output]
    # The unit forgets at once, and its sign is that of z_t[0] + 2 * steer_t.
    gate_weight = m.gate_weight.at[:, np.array(gates)].set(0.0)
    gate_weight = gate_weight.at[0, candidate].set(1e4).at[32, candidate].set(2e4)
    gate_bias = m.gate_bias.at[np.array([entry, output])].set(50.0)
    gate_bias = gate_bias.at[forget].set(-50.0).at[candidate].set(0.0)
    decided = eqx.tree_at(
        lambda w: (w.mdn_rnn.gate_weight, w.mdn_rnn.gate_bias, w.mdn_rnn.head_weight),
        world,
        (gate_weight, gate_bias, m.head_weight.at[:, -1].set(0.0).at[unit, -1].set(100.0)),
    )
    env = DreamCarRacingEnv(world_model=decided)
    steps = list(drive(env, decided, count=40))
    cause = np.array([[now.seen[0], 2 * now.action[0]] for now in steps])
    expected = cause.sum(axis=1) > 0
    assert [now.info["off_field"] for now in steps] == expected.tolist()
    for shifted in (
        cause[1:, 0] + cause[:-1, 1],  # the action a step late
        cause[:-1, 0] + cause[1:, 1],  # the action a step early
        cause[:-1].sum(axis=1),  # both a step late
    ):
        assert np.any((shifted > 0) != expected[1:]), "else a shift by a step could pass"


def test_at_temperature_zero_the_next_latent_is_the_likeliest_mean(world):
    """z_{t+1} is predicted by the carry that has consumed (z_t, a_t)."""
    env = DreamCarRacingEnv(world_model=world, temperature=0.0)
    weight, means = np.asarray(world.mdn_rnn.head_weight), []
    for now in drive(env, world):
        logits, mu, _ = (now.h_next @ weight)[:-2].reshape(3, 5, 32)
        means.append(mu[logits.argmax(axis=0), np.arange(32)])
        np.testing.assert_allclose(now.seen_next[:32], means[-1], atol=1e-4)
    assert np.min(np.max(np.abs(np.diff(means, axis=0)), axis=1)) > 0.01, "else a shift could pass"


@dataclasses.dataclass
class Moment:
    """What was seen at t and done, and what came of it; h_next is of our own LSTM."""

    seen: np.ndarray
    action: np.ndarray
    h_next: np.ndarray
    seen_next: np.ndarray
    info: dict


def drive(env, world, count=8):
    """Moments of a drive at random. Falls do not stop it: stepping on is the caller's choice."""
    seen, _ = env.reset(seed=3)
    weight, bias = np.asarray(world.mdn_rnn.gate_weight), np.asarray(world.mdn_rnn.gate_bias)
    cell = np.zeros(256, np.float32)
    for action in np.random.default_rng(0).uniform([-1, 0, 0], 1, (count, 3)).astype(np.float32):
        gates = np.concatenate([seen[:32], action, seen[32:]]) @ weight + bias
        entry, forget, candidate, output = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(candidate)
        seen_next, _, _, _, info = env.step(action)
        yield Moment(seen, action, sigmoid(output) * np.tanh(cell), seen_next, info)
        seen = seen_next


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


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
