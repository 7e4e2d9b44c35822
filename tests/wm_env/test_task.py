"""Another task than CarRacing is dreamt, and driven for real, through the same code."""

import copy
import dataclasses
import pickle

import gymnasium as gym
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import registrations
import wm_env
from wm_env.car_racing import EnvPoolCarRacing
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.linear import linear_action
from wm_env.simulator import make_simulator, make_simulator_vector
from wm_env.task import CAR_RACING, LUNAR_LANDER, TASKS, Control, Task, task_named
from wm_env.weights import WeightsError, load_world, save_world, task_of
from wm_env.world_model import WorldModel

ID = "DreamLunarLander-v0"
SIZES = {"latent_size": 4, "hidden_size": 8, "action_size": 2, "tiles": "signed"}
HOVER = np.array([0.5, 0.0], np.float32)


@pytest.fixture(scope="module")
def lander(random_world):
    """An untrained world of LunarLander."""
    return random_world(mdn_rnn=SIZES, task="LunarLander-v3")


@pytest.fixture(scope="module")
def file(lander, with_outcomes, tmp_path_factory):
    """A world whose landers stay up: a batch would begin anew where a single dream ends."""
    path = tmp_path_factory.mktemp("lander") / "world.safetensors"
    up = with_outcomes(lander, log_tiles=0.5, off_field=-30.0)
    save_world(up, path, dtype="float32")
    return path


def test_tasks_and_registered_dreams_name_each_other():
    told = {dream.task or CAR_RACING.id: dream.id for dream in registrations.DREAMS}
    assert told == {task.id: task.dream_id for task in TASKS.values()}
    for dream in registrations.DREAMS:
        real = gym.spec(dream.task or CAR_RACING.id)
        assert gym.spec(dream.id).max_episode_steps == real.max_episode_steps
        assert gym.spec(dream.id).reward_threshold == real.reward_threshold


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_has_the_action_space_and_frames_of_its_environment(task):
    env = make_simulator(task)
    np.testing.assert_array_equal(env.action_space.low, task.low)
    np.testing.assert_array_equal(env.action_space.high, task.high)
    assert env.observation_space.shape == task.preprocess.frame_shape
    assert task.preprocess(env.reset(seed=0)[0]).shape == (64, 64, 3)
    env.close()


@pytest.mark.parametrize("action", range(4))
def test_landers_discrete_actions_do_what_gymnasiums_do(action):
    states = []
    for continuous in (False, True):
        env = gym.make("LunarLander-v3", continuous=continuous, disable_env_checker=True)
        env.reset(seed=3)
        taken = LUNAR_LANDER.discrete_actions[action] if continuous else action
        states.append([env.step(taken)[:2] for _ in range(5)][-1])
    np.testing.assert_array_equal(states[0][0], states[1][0])
    assert states[0][1] == pytest.approx(states[1][1])


def test_an_unknown_task_is_named_with_what_is_expected_and_the_remedy():
    expected = r"env is 'MoonRacing-v0'; expected one of CarRacing-v3, LunarLander-v3\. .*task\.py"
    with pytest.raises(ValueError, match=expected):
        task_named("MoonRacing-v0")
    with pytest.raises(ValueError, match=expected):
        DreamCarRacing(task="MoonRacing-v0")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec, gymnax.make])
def test_a_dream_of_which_no_world_is_shipped_says_how_to_make_one(make):
    expected = r"no world of LunarLander-v3 is shipped; .*all --env LunarLander-v3 --preset"
    with pytest.raises(WeightsError, match=expected):
        make(ID)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec, gymnax.make])
def test_a_world_of_another_task_is_refused(make, file):
    with pytest.raises(WeightsError, match=r"is of LunarLander-v3; expected one of CarRacing-v3"):
        make("DreamCarRacing-v0", world_model=file)
    with pytest.raises(WeightsError, match=r"carracing is of CarRacing-v3; expected one of Lunar"):
        make(ID, world_model="carracing")


def test_a_world_of_another_task_is_refused_on_the_device_too(lander):
    with pytest.raises(WeightsError, match=r"the world is of LunarLander-v3"):
        DreamCarRacing().reset(jax.random.key(0), DreamParams(world_model=lander))


def test_a_world_file_names_its_task_and_one_that_names_none_is_carracings(lander, file):
    assert load_world(file).task == LUNAR_LANDER
    assert load_world("carracing").task == CAR_RACING
    assert CAR_RACING.mark == {} and task_of("carracing") == CAR_RACING


def test_a_file_of_no_known_task_is_refused_with_the_remedy(lander, tmp_path):
    other = dataclasses.replace(LUNAR_LANDER, id="MoonLander-v0")
    path = tmp_path / "world.safetensors"
    save_world(dataclasses.replace(lander, task=other), path)
    with pytest.raises(WeightsError, match=r"MoonLander-v0.*Write the file again"):
        task_of(path)


def test_tasks_of_one_id_differ_where_their_rewards_do():
    assert dataclasses.replace(LUNAR_LANDER, reward_unit=20.0) != LUNAR_LANDER
    assert pickle.loads(pickle.dumps(LUNAR_LANDER)) == LUNAR_LANDER


@pytest.mark.parametrize("sizes", [{"tiles": "poisson"}, {"action_size": 3}], ids=str)
def test_a_world_whose_m_is_not_of_the_tasks_kind_is_refused(random_world, sizes):
    with pytest.raises(ValueError, match=r"expected 2 and signed for LunarLander-v3"):
        random_world(mdn_rnn=SIZES | sizes, task="LunarLander-v3")
    with pytest.raises(ValueError, match=r"expected 3 and poisson, squared or reward for CarRac"):
        random_world(mdn_rnn=SIZES)


@pytest.mark.parametrize("observation", ["features", "pixels"])
def test_the_dream_is_an_environment_of_gymnasium(file, observation):
    env = gym.make(ID, world_model=file, observation=observation)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space == gym.make("LunarLander-v3", continuous=True).action_space


def test_its_batch_equals_single_dreams(file):
    envs, env = gym.make_vec(ID, num_envs=2, world_model=file), gym.make(ID, world_model=file)
    seen, alone = envs.reset(seed=5)[0], env.reset(seed=5)[0]
    np.testing.assert_allclose(seen[0], alone, atol=1e-5)
    seen, rewards, *_ = envs.step(np.stack([HOVER, HOVER]))
    alone, reward, *_ = env.step(HOVER)
    np.testing.assert_allclose(seen[0], alone, atol=1e-5)
    assert rewards[0] == pytest.approx(reward, abs=1e-4)


def test_the_reward_is_what_m_foretells_in_the_tasks_unit_and_m_ends_the_episode(
    lander, with_outcomes
):
    for off_field, ends in ((-30.0, False), (30.0, True)):
        world = with_outcomes(lander, log_tiles=-7.5, off_field=off_field)
        env = DreamCarRacingEnv(world_model=world, task="LunarLander-v3")
        env.reset(seed=0)
        _, reward, terminated, truncated, info = env.step(HOVER)
        assert reward == -75.0  # below 0, and beyond what tiles of one step could pay
        assert (terminated, truncated) == (ends, False)
        assert info == {"tiles": 0.0, "lap_finished": False, "off_field": ends}


def test_gymnax_steps_the_given_world_and_its_environments_are_equal_keys(file):
    env, params = gymnax.make(ID, world_model=file)
    assert env.name == ID
    assert isinstance(params.world_model, WorldModel)
    assert copy.copy(env) == env and hash(copy.copy(env)) == hash(env)
    assert env != DreamCarRacing(task=LUNAR_LANDER)
    keys = jax.random.split(jax.random.key(0), 3)
    observations, states = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    observations, states, rewards, *_ = step(keys, states, jnp.stack([HOVER] * 3), params)
    assert observations.shape == (3, 12)
    assert np.all(np.isfinite(rewards))
    # Without parameters it is the same world.
    one = env.step(keys[0], jax.tree.map(lambda leaf: leaf[0], states), jnp.asarray(HOVER))
    assert one[0].shape == (12,)


@pytest.mark.parametrize("continuous", [True, False])
def test_the_real_environment_has_the_dreams_spaces_and_falls_where_it_ends(lander, continuous):
    real = wm_env.make_real(lander, continuous=continuous)
    dream = DreamCarRacingEnv(world_model=lander, task=LUNAR_LANDER, continuous=continuous)
    assert real.observation_space == dream.observation_space
    assert real.action_space == dream.action_space
    real.reset(seed=1)
    terminated = truncated = False
    while not (terminated or truncated):
        action = np.array([-1.0, 1.0], np.float32) if continuous else 1
        seen, reward, terminated, truncated, info = real.step(action)
        assert info["off_field"] == terminated
    assert terminated
    assert reward == -100.0
    assert info["tiles"] == 0.0
    assert seen.shape == (12,)
    real.close()


def test_many_real_environments_see_as_one_does(lander):
    real = wm_env.make_real_vector(2, lander)
    one = wm_env.make_real(lander)
    seen, alone = real.reset(seed=[4, 5])[0], one.reset(seed=4)[0]
    np.testing.assert_allclose(seen[0], alone, atol=1e-5)
    seen, rewards, *_, infos = real.step(np.stack([HOVER, HOVER]))
    alone, reward, *_, info = one.step(HOVER)
    np.testing.assert_allclose(seen[0], alone, atol=1e-5)
    np.testing.assert_array_equal(infos["image"][0], info["image"])
    assert rewards[0] == pytest.approx(reward)
    real.close()
    one.close()


def test_reset_options_take_the_tasks_frames_and_actions(lander):
    env = DreamCarRacingEnv(world_model=lander, task=LUNAR_LANDER)
    frames = np.zeros((3, 400, 600, 3), np.uint8)
    env.reset(seed=0, options={"frames": frames, "actions": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"expected uint8 \[400, 600, 3\] as LunarLander-v3"):
        env.reset(seed=0, options={"frame": np.zeros((96, 96, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        env.reset(seed=0, options={"frames": frames, "actions": np.zeros((2, 3))})


def test_envpool_is_refused_where_it_has_no_frames_of_the_task():
    with pytest.raises(ValueError, match=r"no frames of LunarLander-v3; expected one of gymnasium"):
        make_simulator_vector(LUNAR_LANDER, 2, backend="envpool")
    assert EnvPoolCarRacing  # CarRacing has it


def test_linear_outputs_are_spread_over_the_range_of_each_control():
    controls = (
        Control("tilt", -1.0, 1.0),
        Control("heat", 10.0, 30.0),
        Control("brake", 0.0, 4.0, rests=True),
    )
    task = Task("Made-v0", "DreamMade-v0", controls, LUNAR_LANDER.preprocess)
    weight, features = jnp.zeros((3, 2)), jnp.zeros(2)
    for bias, expected in ((-50.0, [-1, 10, 0]), (0.0, [0, 20, 0]), (50.0, [1, 30, 4])):
        action = linear_action(weight, jnp.full(3, bias), features, task)
        np.testing.assert_allclose(action, expected, atol=1e-6)
