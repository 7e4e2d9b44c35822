"""One dream behind three interfaces: gymnax, gym.Env and VectorEnv agree step for step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv

STEPS = 50
LANES = 3


def actions(count, lanes=(), continuous=True):
    rng = np.random.default_rng(7)
    if not continuous:
        return rng.integers(5, size=(count, *lanes))
    return rng.uniform([-1, 0, 0], [1, 1, 1], (count, *lanes, 3)).astype(np.float32)


def key_of(seed):
    """The key that an environment of Gymnasium takes from a seed."""
    return jax.random.key(np_random(seed)[0].integers(2**32, dtype=np.uint32))


@pytest.fixture(scope="module")
def eventful(random_world, with_outcomes):
    """Falls about every tenth step, so that auto-reset has work."""
    return with_outcomes(random_world(2), log_tiles=-1.0, off_field=-2.2)


def test_single_environment_equals_gymnax(world, with_outcomes):
    env = DreamCarRacingEnv(
        world_model=with_outcomes(world, log_tiles=-1.0),
        dropout=0.1,
        temperature=1.2,
        start="mixed",
    )
    obs, _ = env.reset(seed=11)
    key, key_reset = jax.random.split(key_of(11))
    expected, state = env.core.reset(key_reset, env.params)
    np.testing.assert_allclose(obs, expected, atol=1e-5)
    compared = 0
    for action in actions(STEPS):
        key, key_now = jax.random.split(key)
        expected, state, reward, terminated, truncated, info = env.core.step(
            key_now, state, action, env.params
        )
        obs, *got, got_info = env.step(action)
        np.testing.assert_allclose(obs, expected, atol=1e-3)
        assert got == [pytest.approx(float(reward), abs=1e-3), bool(terminated), bool(truncated)]
        assert got_info == {name: pytest.approx(float(info[name]), abs=1e-3) for name in got_info}
        assert not terminated
        compared += 1
    assert compared == STEPS
    assert got_info["tiles"] == pytest.approx(STEPS * np.exp(-1.0), rel=1e-3)


@pytest.mark.parametrize(
    "continuous, numbers",
    [
        (True, {"start": "middle", "dropout": 0.2, "temperature": 1.2}),
        (True, {"start": "mixed"}),
        (False, {"start": "middle", "dropout": 0.1}),
    ],
)
def test_single_and_vector_environments_equal_gymnax_lanes(eventful, continuous, numbers):
    arguments = {"world_model": eventful, "continuous": continuous, "max_episode_steps": 9}
    batch = DreamCarRacingVectorEnv(LANES, **arguments, **numbers)
    single = SyncVectorEnv(
        [lambda: DreamCarRacingEnv(**arguments, **numbers)] * LANES,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    given = actions(STEPS, (LANES,), continuous)
    keys = jnp.stack([key_of(20 + lane) for lane in range(LANES)])
    want_first, want = gymnax_lanes(batch.core, batch.params, keys, given)
    for envs in (single, batch):
        np.testing.assert_allclose(envs.reset(seed=20)[0], want_first, atol=1e-5)
        for t, action in enumerate(given):
            obs, reward, terminated, truncated, infos = envs.step(action)
            np.testing.assert_allclose(obs, want["obs"][t], atol=1e-3)
            np.testing.assert_allclose(reward, want["reward"][t], atol=1e-2)
            np.testing.assert_array_equal(terminated, want["terminated"][t])
            np.testing.assert_array_equal(truncated, want["truncated"][t])
            done = terminated | truncated
            tiles = np.where(done, infos.get("final_info", infos)["tiles"], infos["tiles"])
            np.testing.assert_allclose(tiles, want["tiles"][t], atol=1e-3)
            for lane in np.flatnonzero(done):
                final = infos["final_obs"][lane]
                np.testing.assert_allclose(final, want["final_obs"][t, lane], atol=1e-3)
    assert t == STEPS - 1
    assert want["terminated"].any() and want["truncated"].any()


@functools.partial(jax.jit, static_argnums=0)
def gymnax_lanes(core, params, keys, given):
    """The dreams of the lanes by gymnax alone: its reset and step under vmap and scan."""

    def split(keys):
        pairs = jax.vmap(jax.random.split)(keys)
        return pairs[:, 0], pairs[:, 1]

    def body(now, action):
        keys, state = now
        keys, keys_now = split(keys)
        obs, state, reward, terminated, truncated, info = jax.vmap(
            core.step, in_axes=(0, 0, 0, None)
        )(keys_now, state, action, params)
        return (keys, state), {
            "obs": obs,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "tiles": info["tiles"],
            "final_obs": info["final_observation"],
        }

    keys, keys_reset = split(keys)
    first, state = jax.vmap(core.reset, in_axes=(0, None))(keys_reset, params)
    return first, jax.lax.scan(body, (keys, state), given)[1]


def test_vector_environment_equals_single_ones_across_episodes(eventful):
    arguments = {"world_model": eventful, "start": "mixed", "dropout": 0.1}
    batch = DreamCarRacingVectorEnv(LANES, max_episode_steps=9, **arguments)
    single = SyncVectorEnv(
        [lambda: DreamCarRacingEnv(max_episode_steps=9, **arguments)] * LANES,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    obs, infos = batch.reset(seed=4)
    expected, expected_infos = single.reset(seed=4)
    np.testing.assert_allclose(obs, expected, atol=1e-5)
    assert data_equivalence(infos, expected_infos)
    ends = set()
    for action in actions(STEPS, (LANES,)):
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
