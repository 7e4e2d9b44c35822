"""What a user of Gymnasium relies on: make, make_vec, check_env, helpful errors, starts, limits."""

import os
import warnings

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import wm_env
from wm_env import gym_env
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv
from wm_env.preprocess import preprocess

KINDS = ["features", "latent", "pixels"]


@pytest.fixture
def env(world):
    with DreamCarRacingEnv(world_model=world, render_mode="rgb_array") as env:
        yield env


def idle(env):
    return np.zeros(env.action_space.shape, env.action_space.dtype)


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("observation", KINDS)
def test_check_env_passes_without_a_warning(world, observation, continuous):
    env = gym.make(
        "DreamCarRacing-v0", world_model=world, observation=observation, continuous=continuous
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_make_with_the_module_in_the_id_needs_no_import(world):
    assert isinstance(
        gym.make("wm_env:DreamCarRacing-v0", world_model=world).unwrapped, DreamCarRacingEnv
    )


def test_spaces_are_those_of_car_racing(world):
    real = gym.make("CarRacing-v3").action_space
    assert gym.make("DreamCarRacing-v0", world_model=world).action_space == real
    real = gym.make("CarRacing-v3", continuous=False).action_space
    assert gym.make("DreamCarRacing-v0", world_model=world, continuous=False).action_space == real


def test_observations_are_what_the_design_says(world):
    shapes = {"features": (288,), "latent": (32,), "pixels": (64, 64, 3)}
    for observation, shape in shapes.items():
        space = DreamCarRacingEnv(world_model=world, observation=observation).observation_space
        assert space.shape == shape
        assert space.dtype == (np.uint8 if observation == "pixels" else np.float32)


@pytest.mark.parametrize("observation", KINDS)
def test_make_vec_takes_the_batched_environment(world, observation):
    envs = gym.make_vec("DreamCarRacing-v0", num_envs=3, world_model=world, observation=observation)
    assert isinstance(envs.unwrapped, DreamCarRacingVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, _ = envs.reset(seed=1)
    assert obs in envs.observation_space
    obs, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space and obs.flags.writeable
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    assert terminated.dtype == truncated.dtype == np.bool_


def test_make_vec_in_sync_mode_wraps_single_environments(world):
    envs = gym.make_vec("DreamCarRacing-v0", 2, vectorization_mode="sync", world_model=world)
    assert envs.reset(seed=0)[0].shape == (2, 288)


def test_python_types_come_out_of_step(env):
    env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(idle(env))
    assert type(obs) is np.ndarray and obs.flags.writeable
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert {name: type(value) for name, value in info.items()} == {
        "tiles": float,
        "lap_finished": bool,
        "off_field": bool,
    }


@pytest.mark.parametrize("observation", ["features", "pixels"])
def test_a_step_is_one_dispatch_and_one_copy_from_the_device(world, observation, monkeypatch):
    env = DreamCarRacingEnv(world_model=world, observation=observation)
    env.reset(seed=0)
    dispatched, copied, step = [], [], gym_env._step

    class Counted:
        def __init__(self, array):
            self.array = array

        def __array__(self, *arguments, **options):
            copied.append(self.array.shape)
            return np.asarray(self.array)

    def counted(*arguments):
        dispatched.append(arguments)
        *kept, outcome = step(*arguments)
        return *kept, Counted(outcome)

    monkeypatch.setattr(gym_env, "_step", counted)
    observation_now, *_ = env.step(np.float32([0.0, 0.5, 0.0]))
    assert (len(dispatched), len(copied)) == (1, 1)
    assert env.observation_space.contains(observation_now)


def test_the_time_limit_of_make_truncates_once_at_its_frame(world, with_outcomes):
    env = gym.make("DreamCarRacing-v0", world_model=with_outcomes(world), max_episode_steps=6)
    env.reset(seed=0)
    ends = [env.step(idle(env))[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    assert gym.spec("DreamCarRacing-v0").max_episode_steps == 1000
    assert env.unwrapped.params.max_steps_in_episode > 1000


def test_a_longer_limit_of_make_is_kept(world):
    env = gym.make("DreamCarRacing-v0", world_model=world, max_episode_steps=5000)
    assert env.unwrapped.params.max_steps_in_episode > 5000


def test_make_vec_truncates_at_a_thousand_frames(world, with_outcomes):
    envs = gym.make_vec("DreamCarRacing-v0", num_envs=2, world_model=with_outcomes(world))
    assert envs.unwrapped.params.max_steps_in_episode == 1000
    envs = gym.make_vec(
        "DreamCarRacing-v0", num_envs=2, world_model=with_outcomes(world), max_episode_steps=3
    )
    envs.reset(seed=0)
    truncated = [envs.step(envs.action_space.sample())[3].all() for _ in range(7)]
    assert truncated == [False, False, True, False, False, True, False]


def test_a_long_truncation_keeps_the_final_observation(world, with_outcomes):
    envs = DreamCarRacingVectorEnv(2, world_model=with_outcomes(world), max_episode_steps=2)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    obs, _, _, _, infos = envs.step(envs.action_space.sample())
    assert infos["_final_obs"].all() and infos["_final_info"].all()
    for lane in range(2):
        assert infos["final_obs"][lane] in envs.single_observation_space
        assert not np.array_equal(infos["final_obs"][lane], obs[lane])


@pytest.mark.parametrize("kind", [DreamCarRacingEnv, DreamCarRacingVectorEnv])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"observation": "radar"}, "'radar'; expected one of features, latent, pixels"),
        ({"temperature": -1.0}, "temperature is -1.0; expected a number from 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"track_tiles": 0}, "track_tiles is 0"),
        ({"lap_complete_percent": 0}, "lap_complete_percent is 0"),
        ({"start": "end"}, "start is 'end'; expected one of first, middle, mixed"),
        ({"start": 1.5}, "start is 1.5"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"render_mode": "ansi"}, "render_mode is 'ansi'"),
        ({"world_model": "nowhere"}, "no weights at 'nowhere'"),
    ],
)
def test_wrong_arguments_are_refused(world, kind, argument, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"world_model": world, **argument})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(2), r"shape \(2,\).*expected \(3,\).*steer, gas, brake"),
        (np.zeros((1, 3)), r"shape \(1, 3\)"),
        (0, r"shape \(\)"),
        (np.array(["left"] * 3), "dtype"),
        (np.array([0.0, np.nan, 0.0]), "finite"),
        (np.array([np.inf, 0.0, 0.0]), "finite"),
    ],
)
def test_wrong_continuous_actions_are_refused(env, action, message):
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=message):
        env.step(action)


@pytest.mark.parametrize("action", [5, -1, 1.0, [1], np.zeros(3)])
def test_wrong_discrete_actions_are_refused(world, action):
    env = DreamCarRacingEnv(world_model=world, continuous=False)
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(action)


def test_wrong_batches_of_actions_are_refused(world):
    envs = DreamCarRacingVectorEnv(2, world_model=world)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"expected \(2, 3\)"):
        envs.step(np.zeros((3, 3)))
    with pytest.raises(InvalidAction, match="finite"):
        envs.step(np.full((2, 3), np.nan))


def test_lists_and_float64_are_actions(env):
    env.reset(seed=0)
    a = env.step([0.5, 0.25, 0.0])[0]
    env.reset(seed=0)
    np.testing.assert_array_equal(a, env.step(np.array([0.5, 0.25, 0.0], np.float64))[0])


def test_step_and_render_before_reset_are_refused(env, world):
    with pytest.raises(ResetNeeded, match="call env.reset"):
        env.step(idle(env))
    with pytest.raises(ResetNeeded):
        env.render()
    with pytest.raises(ResetNeeded):
        DreamCarRacingVectorEnv(2, world_model=world).step(np.zeros((2, 3)))


def test_a_reset_after_an_error_still_works(env):
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(np.zeros(7))
    assert env.step(idle(env))[0] in env.observation_space


def test_reset_from_a_frame_begins_with_its_latent(env, world):
    frame = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    z = world.encode(jax.numpy.asarray(preprocess(frame)))
    for options in ({"frame": frame}, {"frame": preprocess(frame)}):
        obs, _ = env.reset(seed=0, options=options)
        np.testing.assert_allclose(obs[:32], z, atol=1e-4)
        np.testing.assert_array_equal(obs[32:], 0.0)


@pytest.mark.parametrize(
    "shown", [{"observation": "pixels"}, {"render_mode": "rgb_array"}], ids=str
)
def test_what_decodes_images_sees_real_frames_too(world, shown):
    env = DreamCarRacingEnv(world_model=world, **shown)
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    seen, _ = env.reset(options={"frame": frame})
    z = world.encode(jax.numpy.asarray(preprocess(frame)))
    if env.render_mode is None:
        np.testing.assert_allclose(seen.astype(int), np.asarray(world.decode(z), int), atol=1)
    else:
        np.testing.assert_allclose(seen[: world.latent_size], z, atol=1e-5)
        assert env.render().std() > 0.0


def test_reset_from_frames_and_actions_burns_the_carry_in(env, world):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, (4, 96, 96, 3), np.uint8)
    actions = rng.uniform(0, 1, (3, 3)).astype(np.float32)
    obs, _ = env.reset(seed=0, options={"frames": frames, "actions": actions})
    z = jax.vmap(world.encode)(jax.numpy.asarray(preprocess(frames)))
    carry = world.mdn_rnn.initial_carry()
    for t in range(3):
        carry = world.mdn_rnn.advance_carry(z[t], jax.numpy.asarray(actions[t]), carry)
    np.testing.assert_allclose(obs[:32], z[3], atol=1e-4)
    np.testing.assert_allclose(obs[32:], carry.h, atol=1e-4)


def test_every_lane_begins_where_a_single_environment_would(env, world):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, (3, 64, 64, 3), np.uint8)
    options = {"frames": frames, "actions": rng.uniform(0, 1, (2, 3))}
    expected, _ = env.reset(seed=0, options=options)
    lanes, _ = DreamCarRacingVectorEnv(2, world_model=world).reset(seed=0, options=options)
    np.testing.assert_allclose(lanes, np.tile(expected, (2, 1)), atol=1e-4)


def test_numbers_are_all_that_leaves_a_batch(world, with_outcomes):
    envs = DreamCarRacingVectorEnv(
        2, world_model=with_outcomes(world, off_field=30.0), observation="latent"
    )
    left = [envs.reset(seed=0), envs.step(np.zeros((2, 3)))]
    assert "final_obs" in left[1][-1]
    leaves = jax.tree.leaves(left)
    leaves += [part for leaf in leaves if leaf.dtype.hasobject for part in leaf]
    assert {type(leaf) for leaf in leaves} == {np.ndarray}


def test_reset_from_a_latent_begins_there_in_every_lane(env, world):
    z = np.linspace(-1, 1, 32).astype(np.float32)
    np.testing.assert_array_equal(env.reset(options={"z": z})[0][:32], z)
    lanes = DreamCarRacingVectorEnv(3, world_model=world).reset(seed=0, options={"z": z})[0]
    np.testing.assert_array_equal(lanes[:, :32], np.tile(z, (3, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weather": "rain"}, r"\['weather'\]; expected 'frame'"),
        ({"frames": np.zeros((2, 96, 96, 3), np.uint8)}, "'frames' with 'actions'"),
        ({"frame": np.zeros((96, 96), np.uint8)}, r"shape \(96, 96\).*uint8 \[96, 96, 3\]"),
        ({"frame": np.zeros((96, 96, 3))}, "dtype float64"),
        ({"frame": np.zeros((2, 96, 96, 3), np.uint8)}, "options.'frame'. has shape"),
        ({"z": np.zeros(31)}, r"shape \(31,\); expected \(32,\)"),
        ({"z": np.full(32, np.nan)}, "finite"),
        ({"z": "abc"}, "options.'z'. is 'abc'; expected numbers"),
        (
            {"frames": np.zeros((3, 64, 64, 3), np.uint8), "actions": np.zeros((3, 3))},
            r"shape \(3, 3\); expected \(2, 3\)",
        ),
        (
            {"frames": np.zeros((0, 64, 64, 3), np.uint8), "actions": np.zeros((0, 3))},
            "options.'frames'. has shape",
        ),
    ],
)
def test_wrong_reset_options_are_refused(env, world, options, message):
    for one in (env, DreamCarRacingVectorEnv(2, world_model=world)):
        with pytest.raises(ValueError, match=message):
            one.reset(seed=0, options=options)


def test_a_world_may_come_from_a_file(world, tmp_path):
    wm_env.save_world(world, tmp_path / "w.safetensors", dtype="float32")
    obs, _ = DreamCarRacingEnv(world_model=tmp_path / "w.safetensors").reset(seed=3)
    np.testing.assert_array_equal(obs, DreamCarRacingEnv(world_model=world).reset(seed=3)[0])


def test_seeds_of_lanes_must_be_as_many(world):
    envs = DreamCarRacingVectorEnv(3, world_model=world)
    with pytest.raises(ValueError, match="got 2 seeds for 3 lanes"):
        envs.reset(seed=[1, 2])
    np.testing.assert_array_equal(envs.reset(seed=[5, 6, 7])[0], envs.reset(seed=5)[0])


def test_a_forked_process_is_told_to_spawn(world, monkeypatch):
    monkeypatch.setattr(gym_env, "_IMPORTED_BY", os.getpid() + 1)
    with pytest.raises(RuntimeError, match='vector_kwargs={"context": "spawn"}'):
        DreamCarRacingEnv(world_model=world)
