"""Rollouts: one scanned episode equals stepping it, ends where it should, and differentiates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import rollout


def steady(action, observation, key):
    return action


def linear(weight, observation, key):
    return jnp.tanh(observation @ weight)


@pytest.fixture(scope="module")
def env():
    return DreamCarRacing()


def test_a_rollout_equals_stepping_the_environment(env, world, with_outcomes):
    params = DreamParams(world_model=with_outcomes(world, log_tiles=0.0))
    key = jax.random.key(3)
    action = jnp.array([0.2, 0.4, 0.0])
    result = rollout(env, params, steady, action, key, steps=20, record=True)
    key_reset, key_dream, _ = jax.random.split(key, 3)
    obs, state = env.reset_env(key_reset, params)
    total = 0.0
    for t, step_key in enumerate(jax.random.split(key_dream, 20)):
        np.testing.assert_allclose(result.trajectory.observation[t], obs, atol=1e-4)
        obs, state, reward, terminated, info = env.step_env(step_key, state, action, params)
        total += float(reward)
        assert not terminated
    assert result.ret == pytest.approx(total, rel=1e-4)
    assert result.tiles == pytest.approx(20.0) and result.length == 20


def test_the_time_limit_ends_an_episode_without_lap_or_fall(env, world, with_outcomes):
    params = DreamParams(world_model=with_outcomes(world), max_steps_in_episode=7)
    result = rollout(env, params, steady, jnp.zeros(3), jax.random.key(0), steps=20, record=True)
    assert result.length == 7 and not result.lap_finished and not result.off_field
    assert result.ret == pytest.approx(-0.7, abs=1e-4)
    np.testing.assert_array_equal(result.trajectory.alive, np.arange(20) < 7)
    np.testing.assert_array_equal(result.trajectory.reward[7:], 0.0)


def test_a_lap_ends_an_episode_with_all_its_tiles(env, world, with_outcomes):
    params = DreamParams(world_model=with_outcomes(world, log_tiles=np.log(0.41)), track_tiles=10.0)
    result = rollout(env, params, steady, jnp.zeros(3), jax.random.key(0), steps=50)
    assert result.lap_finished and result.length == 25
    assert result.ret == pytest.approx(1000.0 - 2.5, abs=0.1)


def test_a_fall_costs_a_hundred_and_ends_the_episode(env, world, with_outcomes):
    params = DreamParams(world_model=with_outcomes(world, off_field=30.0, log_tiles=3.0))
    result = rollout(env, params, steady, jnp.zeros(3), jax.random.key(0), steps=50)
    assert result.off_field and not result.lap_finished
    assert result.length == 1 and result.ret == -100.0


def test_rollouts_vmap_over_keys_and_policies(env, world):
    params = DreamParams(world_model=world)
    keys = jax.random.split(jax.random.key(0), 3)
    weights = 0.1 * jax.random.normal(jax.random.key(1), (3, 288, 3))
    batch = jax.vmap(lambda w, k: rollout(env, params, linear, w, k, steps=15))(weights, keys)
    for index in range(3):
        alone = rollout(env, params, linear, weights[index], keys[index], steps=15)
        np.testing.assert_allclose(batch.ret[index], alone.ret, atol=0.05)


def test_a_given_state_begins_the_episode(env, world):
    params = DreamParams(world_model=world)
    z, carry = world.starts.z[3], world.mdn_rnn.initial_carry()
    state = env.state_at(jax.random.key(1), z, carry, params)
    result = rollout(
        env, params, steady, jnp.zeros(3), jax.random.key(0), steps=3, state=state, record=True
    )
    np.testing.assert_array_equal(result.trajectory.z[0], z)


def test_the_return_is_differentiable_in_the_policy(env, world):
    params = DreamParams(world_model=world)

    def ret(weight):
        smooth = env.with_transition_gradients()
        return rollout(smooth, params, linear, weight, jax.random.key(0), steps=10).ret

    slopes = jax.grad(ret)(0.01 * jax.random.normal(jax.random.key(2), (288, 3)))
    assert np.all(np.isfinite(slopes)) and np.any(slopes != 0)
