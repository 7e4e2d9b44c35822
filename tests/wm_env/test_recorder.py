"""What a person drives is stored as it was: frames, actions, rewards, track and end."""

import gymnasium
import numpy as np
import pytest

from wm_env import recorder
from wm_env.car_racing import make_car_racing
from wm_env.preprocess import preprocess
from wm_env.recorder import Recorder
from wm_env.shard import read_shard


@pytest.fixture
def record(tmp_path):
    """Makes recorders of the real car into `tmp_path / "store"`."""
    made = []

    def make(**kwargs):
        env = make_car_racing(**{"max_episode_steps": 30, **kwargs})
        made.append(Recorder(env, tmp_path / "store"))
        return made[-1]

    yield make
    for env in made:
        env.close()


def shards(env):
    """What the store of a recorder holds."""
    return [read_shard(path) for path in sorted(env._store.glob("*"))]


def drive(env, steps, seed=None):
    """Drives with odd actions: what was seen, done and got."""
    random = np.random.default_rng(0)
    frames, actions, rewards = [env.reset(seed=seed)[0]], [], []
    for _ in range(steps):
        action = np.float32([*random.uniform(-1, 1, 1), *random.uniform(0, 1, 2)])
        frame, reward, *_ = env.step(action)
        frames.append(frame)
        actions.append(action.copy())
        rewards.append(reward)
        action[:] = 9.0  # the same array is often used for every step
    return np.stack(frames), np.stack(actions), np.float32(rewards)


def test_a_finished_episode_is_stored_just_as_it_was_driven(record):
    env = record()
    frames, actions, rewards = drive(env, 30, seed=777)
    (shard,) = shards(env)
    shard.verify()
    np.testing.assert_array_equal(shard.read("images"), preprocess(frames))
    np.testing.assert_array_equal(shard.read("actions"), actions)
    np.testing.assert_array_equal(shard.read("rewards"), rewards)
    np.testing.assert_array_equal(shard.read("truncated"), np.arange(30) == 29)
    assert not shard.read("terminated").any()
    assert shard.read("tiles")[0] == 2  # those under the car


def test_the_manifest_tells_driver_track_and_versions(record):
    env = record()
    drive(env, 30, seed=777)
    (shard,) = shards(env)
    (row,) = shard.episodes
    assert (row.driver, row.seed, row.length) == ("human", 777, 30)
    assert row.track_tiles == len(env.unwrapped.track)
    told = shard.manifest["provenance"]
    assert (told["environment"], told["backend"]) == ("CarRacing-v3", "gymnasium")
    assert told["packages"]["gymnasium"] == gymnasium.__version__


def test_a_stored_episode_can_be_driven_again_from_its_seed(record):
    env = record()
    drive(env, 30)
    (shard,) = shards(env)
    again = make_car_racing()
    frame, _ = again.reset(seed=shard.episodes[0].seed)
    np.testing.assert_array_equal(preprocess(frame), shard.read("images")[0])
    for action, image in zip(shard.read("actions"), shard.read("images")[1:], strict=True):
        np.testing.assert_array_equal(preprocess(again.step(action)[0]), image)
    again.close()


def test_every_episode_gets_a_track_and_a_shard_of_its_own(record):
    env = record(max_episode_steps=2)
    for _ in range(3):
        drive(env, 2)
    seeds = {shard.episodes[0].seed for shard in shards(env)}
    assert len(seeds) == 3
    assert all(10**7 <= seed < 10**8 for seed in seeds)


def test_leaving_the_field_is_stored_as_a_terminal(record):
    env = record()
    env.reset(seed=777)
    env.unwrapped.car.hull.position = (400.0, 0.0)
    assert env.step(np.zeros(3, np.float32))[2]
    (shard,) = shards(env)
    assert shard.read("terminated").tolist() == [True]
    assert shard.read("truncated").tolist() == [False]
    assert shard.episodes[0].off_field and shard.read("rewards").tolist() == [-100.0]


@pytest.mark.parametrize("leave", ["reset", "close"])
def test_a_drive_that_is_left_is_kept_as_truncated_if_long_enough(record, monkeypatch, leave):
    monkeypatch.setattr(recorder, "LEAST_STEPS", 5)
    env = record()
    frames, *_ = drive(env, 5)
    getattr(env, leave)()
    (shard,) = shards(env)
    np.testing.assert_array_equal(shard.read("images"), preprocess(frames))
    assert shard.read("truncated").tolist() == [False] * 4 + [True]
    assert not shard.read("terminated").any()


def test_a_false_start_is_dropped(record, monkeypatch):
    monkeypatch.setattr(recorder, "LEAST_STEPS", 5)
    env = record()
    drive(env, 4)
    drive(env, 4)
    env.close()
    assert shards(env) == []


def test_an_ended_episode_is_not_driven_on(record):
    env = record(max_episode_steps=1)
    drive(env, 1)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(np.zeros(3, np.float32))
    assert len(shards(env)) == 1


@pytest.mark.parametrize("seed, purpose", [(0, "choosing"), (99, "choosing"), (1000, "judging")])
def test_tracks_that_controllers_are_chosen_or_judged_on_are_refused(record, seed, purpose):
    with pytest.raises(ValueError, match=rf"seed {seed} is .* for {purpose}"):
        record().reset(seed=seed)


def test_an_episode_that_cannot_be_written_is_an_error_told_once(record, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    env = record(max_episode_steps=1)
    monkeypatch.setattr(recorder, "write_shard", full)
    with pytest.raises(OSError, match="no space left"):
        drive(env, 1)
    env.close()


def test_discrete_actions_are_refused(record):
    with pytest.raises(ValueError, match=r"Discrete\(5\).*continuous=True"):
        record(continuous=False)


def test_a_store_that_cannot_be_made_is_refused_before_driving():
    with pytest.raises(OSError, match="/dev/null"):
        Recorder(make_car_racing(), "/dev/null/store")
