"""Every combination of the arguments makes an environment that does what each of them says."""

import functools
import itertools

import gymnasium as gym
import numpy as np
import pytest

import wm_env
from wm_env.dream import OBSERVATION_KINDS

ID = "DreamCarRacing-v0"
LANES = 2
TILES = 5  # of a track so short that its half is driven in one step
INFOS = {"tiles", "lap_finished", "off_field"}
pairs = pytest.mark.parametrize(
    ("observation", "continuous"), list(itertools.product(OBSERVATION_KINDS, [True, False]))
)


@pytest.fixture(scope="module")
def sprinter(world, with_outcomes):
    """Drives exp(1.0) tiles in its first step and never falls."""
    return with_outcomes(world, log_tiles=1.0)


def combinations():
    names = ("render_mode", "start", "temperature", "dropout", "lap_complete_percent")
    for values in itertools.product(
        [None, "rgb_array"], ["first", "middle", "mixed"], [0.5, 1.0], [0.0, 0.1], [0.5, 1.0]
    ):
        yield dict(zip(names, values, strict=True))


def made_so(params, given):
    middle = {"first": 0.0, "middle": 1.0, "mixed": 0.5}[given["start"]]
    assert params.start_middle == middle
    for name in ("temperature", "dropout", "lap_complete_percent"):
        assert getattr(params, name) == pytest.approx(given[name])


def combinations_made(make, world, observation, continuous):
    """Each combination with what `make` makes of it."""
    kind = {"observation": observation, "continuous": continuous, "track_tiles": TILES}
    for given in combinations():
        env = make(world_model=world, **kind, **given)
        made_so(env.unwrapped.params, given)
        yield given, env


def begins_so(world, given, z, h, mask):
    """Whether a lane began at a start state of the kind asked for, with a mask of its rate."""
    first = np.any(np.all(np.asarray(world.starts.first_z) == z, axis=1)) and not np.any(h)
    moments = np.concatenate([world.starts.z, world.starts.h], axis=1)
    middle = np.any(np.all(moments == np.concatenate([z, h]), axis=1))
    assert (first, middle) in {
        "first": [(True, False)],
        "middle": [(False, True)],
        "mixed": [(True, False), (False, True)],
    }[given["start"]]
    assert np.any(mask == 0.0) == (given["dropout"] > 0.0)
    np.testing.assert_allclose(mask[mask != 0.0], 1 / (1 - given["dropout"]), rtol=1e-6)


def outcome(given):
    """Tiles, reward and end of the first step: a lap pays for its tiles and no more."""
    tiles = min(np.exp(1.0), given["lap_complete_percent"] * TILES)
    return tiles, 1000 / TILES * tiles - 0.1, given["lap_complete_percent"] == 0.5


def only_temperature_matters(seen):
    """What a step shows, from one seed and kind of start, does not hang on lap or rendering."""
    for (start, dropout), by_temperature in seen.items():
        for same in by_temperature.values():
            assert len(same) == 1, (start, dropout)
        assert len(set().union(*by_temperature.values())) == 2, (start, dropout)


def record(seen, given, observation):
    by_temperature = seen.setdefault((given["start"], given["dropout"]), {})
    by_temperature.setdefault(given["temperature"], set()).add(observation.tobytes())


@pytest.mark.slow
@pairs
def test_every_combination_makes_an_environment_that_obeys_it(sprinter, observation, continuous):
    seen = {}
    make = functools.partial(gym.make, ID)
    for given, env in combinations_made(make, sprinter, observation, continuous):
        first, info = env.reset(seed=6)
        assert first in env.observation_space and set(info) == INFOS
        state = env.unwrapped._state
        begins_so(sprinter, given, *map(np.asarray, (state.z, state.carry.h, state.mask)))
        action = np.array([0.1, 0.5, 0.0], np.float32) if continuous else 3
        assert action in env.action_space
        then, reward, terminated, truncated, info = env.step(action)
        assert then in env.observation_space and set(info) == INFOS
        tiles, expected, ends = outcome(given)
        assert (terminated, truncated) == (ends, False)
        assert reward == pytest.approx(expected, abs=1e-2)
        assert info["tiles"] == pytest.approx(tiles, abs=1e-4)
        assert (info["lap_finished"], info["off_field"]) == (ends, False)
        if given["render_mode"]:
            assert env.render().shape == (400, 600, 3)
        record(seen, given, then)
    only_temperature_matters(seen)


@pytest.mark.slow
@pairs
def test_every_combination_makes_lanes_that_obey_it(sprinter, observation, continuous):
    seen = {}
    make = functools.partial(gym.make_vec, ID, LANES)
    for given, envs in combinations_made(make, sprinter, observation, continuous):
        first, infos = envs.reset(seed=6)
        every = INFOS | {f"_{name}" for name in INFOS}
        assert first in envs.observation_space and set(infos) == every
        state = envs.unwrapped._state
        for lane in range(LANES):
            parts = state.z[lane], state.carry.h[lane], state.mask[lane]
            begins_so(sprinter, given, *map(np.asarray, parts))
        actions = np.tile(
            np.array([0.1, 0.5, 0.0] if continuous else 3), (LANES, *[1] * continuous)
        )
        actions = actions.astype(envs.action_space.dtype)
        assert actions in envs.action_space
        then, reward, terminated, truncated, infos = envs.step(actions)
        tiles, expected, ends = outcome(given)
        finals = {"final_obs", "_final_obs", "final_info", "_final_info"}
        assert then in envs.observation_space and set(infos) == every | (finals if ends else set())
        assert terminated.tolist() == [ends] * LANES and not truncated.any()
        np.testing.assert_allclose(reward, expected, atol=1e-2)
        last = infos["final_info"] if ends else infos
        np.testing.assert_allclose(last["tiles"], tiles, atol=1e-4)
        assert last["lap_finished"].tolist() == [ends] * LANES and not last["off_field"].any()
        if given["render_mode"]:
            shapes = [frame.shape for frame in envs.render() or ()]
            assert shapes == [(400, 600, 3)] * LANES
        if not ends:
            record(seen, given, then)
    only_temperature_matters(seen)


@pytest.mark.parametrize("vector", [False, True])
def test_the_shipped_world_is_the_same_by_name_path_and_object(tmp_path, vector):
    shipped = wm_env.load_world("carracing")
    path = tmp_path / "copy.safetensors"
    wm_env.save_world(shipped, path, dtype="float32")
    drives = []
    for arguments in [{}] + [{"world_model": it} for it in ("carracing", str(path), path, shipped)]:
        env = gym.make_vec(ID, LANES, **arguments) if vector else gym.make(ID, **arguments)
        shape = env.action_space.shape or ()
        seen = [env.reset(seed=2)[0]]
        for action in np.random.default_rng(0).uniform(0, 1, (5, *shape)):
            observation, reward, *_ = env.step(action.astype(np.float32))
            seen += [observation, np.asarray(reward)]
        drives.append([part.tobytes() for part in seen])
    assert all(drive == drives[0] for drive in drives)
    assert len(set(drives[0])) == len(drives[0])
