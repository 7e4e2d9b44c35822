"""Gymnasium's own wrappers and vector modes over DreamCarRacing-v0, checked by their values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import (
    ClipAction,
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    RecordVideo,
    RenderCollection,
    RescaleAction,
    TimeLimit,
)
from gymnasium.wrappers import vector as vector_wrappers

import wm_env

ID = "DreamCarRacing-v0"
LANES = 2
LOW, HIGH = np.array([-1.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def safe(world):
    """Pays what it predicts for every drive, but nobody falls, so episodes go on."""
    m = world.mdn_rnn
    return eqx.tree_at(
        lambda w: (w.mdn_rnn.head_weight, w.mdn_rnn.head_bias),
        world,
        (m.head_weight.at[:, -1].set(0.0), m.head_bias.at[-2].set(-3.0).at[-1].set(-30.0)),
    )


@pytest.fixture(scope="module")
def eventful(random_world, with_outcomes):
    """Falls about every tenth step."""
    return with_outcomes(random_world(2), log_tiles=-1.0, off_field=-2.2)


def make(world, **arguments):
    return gym.make(ID, world_model=world, observation="latent", start="mixed", **arguments)


def make_vec(world, **arguments):
    return gym.make_vec(
        ID, LANES, world_model=world, observation="latent", start="mixed", **arguments
    )


def random_actions(count, *lanes, low=LOW, high=HIGH):
    drawn = np.random.default_rng(7).uniform(low, high, (count, *lanes, 3))
    return drawn.astype(np.float32)


def drive(env, actions, seed=3):
    """Observations (with the first), rewards, ends; no resets in between."""
    observations, rewards, ends = [env.reset(seed=seed)[0]], [], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        ends.append(np.logical_or(terminated, truncated))
    return np.array(observations), np.array(rewards), np.array(ends)


def running_moments(values):
    """Gymnasium's running mean and variance, which start as 1e-4 of a standard normal sample."""
    values = np.asarray(values, np.float64)
    count = len(values) + 1e-4
    mean = values.sum(0) / count
    square = ((values - mean) ** 2).sum(0) + 1e-4 * (1 + mean**2)
    return mean, square / count


def test_episode_statistics_are_the_sums_of_rewards_and_steps(eventful):
    env = RecordEpisodeStatistics(make(eventful, max_episode_steps=12))
    lengths = []
    for episode in range(6):
        env.reset(seed=episode)
        rewards, done, info = [], False, {}
        while not done:
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            rewards.append(reward)
            done = terminated or truncated
            assert ("episode" in info) == done
        assert info["episode"]["r"] == pytest.approx(sum(rewards), abs=1e-4)
        assert info["episode"]["l"] == len(rewards)
        lengths.append(len(rewards))
    assert len(set(lengths)) > 1 and max(lengths) <= 12
    assert list(env.length_queue) == lengths


def test_a_time_limit_changes_nothing_but_the_end(safe):
    given = random_actions(7)
    limited, endless = make(safe, max_episode_steps=7), make(safe, max_episode_steps=-1)
    assert isinstance(limited, TimeLimit) and not isinstance(endless, TimeLimit)
    for _ in range(2):
        (seen, paid, ends), (other_seen, other_paid, other_ends) = (
            drive(env, given) for env in (limited, endless)
        )
        np.testing.assert_array_equal(seen, other_seen)
        np.testing.assert_array_equal(paid, other_paid)
        assert ends.tolist() == [False] * 6 + [True] and not other_ends.any()


def test_stacked_rows_are_the_last_four_observations(safe):
    given = random_actions(6)
    plain, _, _ = drive(make(safe), given)
    stack = FrameStackObservation(make(safe), 4)
    stacked, _, _ = drive(stack, given)
    assert stacked.shape == (7, 4, 32) and stacked[-1] in stack.observation_space
    for t, rows in enumerate(stacked):
        np.testing.assert_array_equal(rows, plain[[max(t - 3 + i, 0) for i in range(4)]])


def test_clipped_actions_do_what_those_in_the_space_do(safe):
    wild = random_actions(6, low=-3.0, high=3.0)
    env = ClipAction(make(safe))
    assert all(action in env.action_space for action in wild)
    assert not any(action in make(safe).action_space for action in wild)
    seen, paid, _ = drive(env, wild)
    expected_seen, expected_paid, _ = drive(make(safe), np.clip(wild, LOW, HIGH).astype(np.float32))
    np.testing.assert_array_equal(seen, expected_seen)
    np.testing.assert_array_equal(paid, expected_paid)


def test_rescaled_actions_are_those_rescaled_by_hand(safe):
    symmetric = random_actions(6, low=-1.0, high=1.0)
    env = RescaleAction(make(safe), np.float32(-1.0), np.float32(1.0))
    assert np.all(env.action_space.low == -1.0) and np.all(env.action_space.high == 1.0)
    seen, paid, _ = drive(env, symmetric)
    by_hand = (LOW + (symmetric + 1) / 2 * (HIGH - LOW)).astype(np.float32)
    expected_seen, expected_paid, _ = drive(make(safe), by_hand)
    np.testing.assert_allclose(seen, expected_seen, atol=1e-4)
    np.testing.assert_allclose(paid, expected_paid, atol=1e-3)
    assert not np.allclose(seen, drive(make(safe), symmetric)[0], atol=1e-3)


def test_normalized_observations_are_centered_by_what_was_seen(safe):
    given = random_actions(8)
    plain, _, _ = drive(make(safe), given)
    normalized, _, _ = drive(NormalizeObservation(make(safe)), given)
    for t in range(3, 9):
        mean, variance = running_moments(plain[: t + 1])
        expected = (plain[t] - mean) / np.sqrt(variance + 1e-8)
        np.testing.assert_allclose(normalized[t], expected, atol=2e-3)


def test_normalized_rewards_are_divided_by_the_spread_of_returns(safe):
    given = random_actions(8)
    _, plain, _ = drive(make(safe), given)
    _, normalized, _ = drive(NormalizeReward(make(safe), gamma=0.9), given)
    assert np.ptp(plain) > 0.01
    discounted, seen = 0.0, []
    for reward, got in zip(plain, normalized, strict=True):
        discounted = 0.9 * discounted + reward
        seen.append(discounted)
        assert got == pytest.approx(reward / np.sqrt(running_moments(seen)[1] + 1e-8), rel=1e-4)


def test_collected_frames_are_what_render_shows(safe):
    given = random_actions(3)
    env = make(safe, render_mode="rgb_array")
    env.reset(seed=3)
    shown = [env.render()]
    for action in given:
        env.step(action)
        shown.append(env.render())
    collection = RenderCollection(make(safe, render_mode="rgb_array"))
    drive(collection, given)
    frames = collection.render()
    assert len({frame.tobytes() for frame in frames}) == 4
    np.testing.assert_array_equal(frames, shown)


def test_a_recorded_video_shows_the_frames_of_the_episode(safe, tmp_path):
    pytest.importorskip("moviepy")
    env = make(safe, render_mode="rgb_array", max_episode_steps=3)
    env.reset(seed=3)
    first = env.render().astype(int)
    recorder = RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda n: n == 0)
    drive(recorder, random_actions(3))
    recorder.close()
    (film,) = (tmp_path / "films").glob("*.mp4")
    assert film.stat().st_size > 0
    frames = imageio.imread(film, plugin="FFMPEG")
    assert frames.shape == (4, 400, 600, 3)
    assert np.abs(frames[0].astype(int) - first).mean() < 8


def test_lanes_keep_the_statistics_of_their_first_episodes(eventful):
    envs = vector_wrappers.RecordEpisodeStatistics(make_vec(eventful, max_episode_steps=12))
    envs.reset(seed=0)
    returns, lengths, ended = np.zeros(LANES), np.zeros(LANES, int), np.zeros(LANES, bool)
    for action in random_actions(12, LANES):
        _, reward, terminated, truncated, infos = envs.step(action)
        returns += np.where(ended, 0.0, reward)
        lengths += ~ended
        for lane in np.flatnonzero((terminated | truncated) & ~ended):
            assert infos["_episode"][lane]
            assert infos["episode"]["r"][lane] == pytest.approx(returns[lane], abs=1e-4)
            assert infos["episode"]["l"][lane] == lengths[lane]
        ended |= terminated | truncated
    assert ended.all() and lengths.min() < 12


def test_lanes_take_clipped_and_rescaled_actions(safe):
    wild = random_actions(5, LANES, low=-3.0, high=3.0)
    clipped = np.clip(wild, LOW, HIGH).astype(np.float32)
    seen, paid, _ = drive(vector_wrappers.ClipAction(make_vec(safe)), wild)
    expected_seen, expected_paid, _ = drive(make_vec(safe), clipped)
    np.testing.assert_array_equal(seen, expected_seen)
    np.testing.assert_array_equal(paid, expected_paid)

    symmetric = random_actions(5, LANES, low=-1.0, high=1.0)
    by_hand = (LOW + (symmetric + 1) / 2 * (HIGH - LOW)).astype(np.float32)
    rescaled = vector_wrappers.RescaleAction(make_vec(safe), np.float32(-1), np.float32(1))
    seen, paid, _ = drive(rescaled, symmetric)
    expected_seen, expected_paid, _ = drive(make_vec(safe), by_hand)
    np.testing.assert_allclose(seen, expected_seen, atol=1e-4)
    np.testing.assert_allclose(paid, expected_paid, atol=1e-3)
    assert not np.allclose(seen, drive(make_vec(safe), symmetric)[0], atol=1e-3)


def test_rewards_of_lanes_are_divided_by_the_spread_of_returns(safe):
    given = random_actions(8, LANES)
    _, plain, _ = drive(make_vec(safe), given)
    _, normalized, _ = drive(vector_wrappers.NormalizeReward(make_vec(safe), gamma=0.9), given)
    discounted, seen = np.zeros(LANES), []
    for reward, got in zip(plain, normalized, strict=True):
        discounted = 0.9 * discounted + reward
        seen += discounted.tolist()
        spread = np.sqrt(running_moments(seen)[1] + 1e-8)
        np.testing.assert_allclose(got, reward / spread, rtol=1e-4)


@pytest.mark.parametrize("wrapper", ["RecordEpisodeStatistics", "NormalizeReward"])
def test_over_ends_of_episodes_wrapped_lanes_equal_wrapped_singles(eventful, wrapper):
    """How a wrapper counts after auto-reset is Gymnasium's affair; it must see the same."""
    batch = make_vec(eventful, max_episode_steps=6)
    singles = make_vec(
        eventful,
        max_episode_steps=6,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    batch, singles = (getattr(vector_wrappers, wrapper)(envs) for envs in (batch, singles))
    batch.reset(seed=5)
    singles.reset(seed=5)
    episodes = 0
    for action in random_actions(20, LANES):
        got, want = batch.step(action), singles.step(action)
        for a, b in zip(got[:4], want[:4], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        assert ("episode" in got[4]) == ("episode" in want[4])
        if "episode" in want[4]:
            for name in ("r", "l"):
                np.testing.assert_allclose(
                    got[4]["episode"][name], want[4]["episode"][name], atol=1e-3
                )
        episodes += np.sum(got[2] | got[3])
    assert episodes > 2 * LANES


def test_observations_of_lanes_are_centered_by_what_all_lanes_saw(safe):
    given = random_actions(6, LANES)
    plain, _, _ = drive(make_vec(safe, vectorization_mode="sync"), given)
    envs = vector_wrappers.NormalizeObservation(make_vec(safe, vectorization_mode="sync"))
    normalized, _, _ = drive(envs, given)
    for t in range(2, 7):
        mean, variance = running_moments(plain[: t + 1].reshape(-1, 32))
        expected = (plain[t] - mean) / np.sqrt(variance + 1e-8)
        np.testing.assert_allclose(normalized[t], expected, atol=2e-3)


def test_sync_mode_gives_what_single_environments_give(eventful):
    envs = make_vec(eventful, vectorization_mode="sync", max_episode_steps=6)
    assert isinstance(envs.unwrapped, SyncVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    seen, _ = envs.reset(seed=5)
    singles = [make(eventful, max_episode_steps=6) for _ in range(LANES)]
    for lane, single in enumerate(singles):
        np.testing.assert_array_equal(single.reset(seed=5 + lane)[0], seen[lane])
    done, resets = [False] * LANES, 0
    for actions in random_actions(20, LANES):
        got = envs.step(actions)
        for lane, single in enumerate(singles):
            if done[lane]:
                expected = (single.reset()[0], 0.0, False, False)
                resets += 1
            else:
                expected = single.step(actions[lane])[:4]
            np.testing.assert_array_equal(got[0][lane], expected[0])
            assert tuple(part[lane] for part in got[1:4]) == expected[1:]
            done[lane] = expected[2] or expected[3]
    assert resets > LANES


PROGRAM = """
import json
import gymnasium as gym
import numpy as np
import wm_env

if __name__ == "__main__":
    envs = gym.make_vec(
        "DreamCarRacing-v0",
        2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        observation="latent",
        start="mixed",
        max_episode_steps=4,
    )
    told = [[type(envs.unwrapped).__name__, envs.reset(seed=5)[0].tolist()]]
    for actions in np.random.default_rng(7).uniform(0, 1, (6, 2, 3)).astype(np.float32):
        told.append([np.asarray(part).tolist() for part in envs.step(actions)[:4]])
    envs.close()
    print("told: " + json.dumps(told))
"""


@pytest.mark.slow
def test_lanes_in_processes_of_their_own_equal_sync_ones(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    root = str(Path(wm_env.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=dict(os.environ, PYTHONPATH=root, JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("told: ")]
    (kind, first), *steps = json.loads(line.removeprefix("told: "))
    assert kind == AsyncVectorEnv.__name__

    envs = make_vec("carracing", vectorization_mode="sync", max_episode_steps=4)
    np.testing.assert_allclose(envs.reset(seed=5)[0], first, atol=1e-5)
    given = np.random.default_rng(7).uniform(0, 1, (6, 2, 3)).astype(np.float32)
    for actions, step in zip(given, steps, strict=True):
        for got, want in zip(step, envs.step(actions)[:4], strict=True):
            np.testing.assert_allclose(got, want, atol=1e-3)
    assert any(any(step[3]) for step in steps)
