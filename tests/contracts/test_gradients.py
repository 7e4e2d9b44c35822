"""Gradients of returns through the dream are those that finite differences see."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import rollout

STEPS = 8
KEY = jax.random.key(3)
EPS = 0.1  # along a direction of length one; differences of smaller steps drown in float32


@pytest.fixture(scope="module")
def params(world):
    """Smooth in the actions: no fall, and a choice of components that they do not move.

    At the default number of components a small change of the actions can draw another one, which
    is a jump of the return and no gradient.
    """
    m = world.mdn_rnn
    logits = m.config.mixtures * m.config.latent_size
    weight = m.head_weight.at[:, :logits].set(0.0).at[:, -1].set(0.0)
    where = lambda w: (w.mdn_rnn.head_weight, w.mdn_rnn.head_bias)  # noqa: E731
    smooth = eqx.tree_at(where, world, (weight, m.head_bias.at[-1].set(-30.0)))
    return DreamParams(world_model=smooth)


@pytest.fixture(scope="module")
def plain():
    return DreamCarRacing()


@pytest.fixture(scope="module")
def smooth(plain):
    return plain.with_transition_gradients()


@pytest.fixture(scope="module")
def actions():
    return 0.5 + 0.05 * jax.random.normal(jax.random.key(5), (STEPS, 3))


def drive(env, params, actions):
    """Rewards [t] of `env.step` under given actions, and the states that they were earned in."""
    key_reset, key_steps = jax.random.split(KEY)
    _, state = env.reset(key_reset, params)

    def body(state, inputs):
        _, after, reward, *_ = env.step(inputs[0], state, inputs[1], params)
        return after, (reward, state)

    keys = jax.random.split(key_steps, len(actions))
    return jax.lax.scan(body, state, (keys, actions))[1]


def ret(env, params, actions):
    return drive(env, params, actions)[0].sum()


def linear(weight, observation, key):
    """Away from the edges of the action space, where clipping has a corner."""
    return 0.5 + 0.3 * jnp.tanh(observation @ weight)


def driven(env, params, weight):
    return rollout(env, params, linear, weight, KEY, steps=STEPS).ret


def check(fn, at):
    """Compares slopes along the steepest direction and along random ones."""
    value, slopes = jax.jit(jax.value_and_grad(fn))(at)
    slopes = np.asarray(slopes, np.float64)
    length = np.linalg.norm(slopes)
    random = np.random.default_rng(10).normal(size=(3, *at.shape))
    directions = np.concatenate([slopes[None], random])
    directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
    points = np.asarray(at) + EPS * np.concatenate([directions, -directions])
    returns = np.asarray(jax.jit(jax.vmap(fn))(jnp.asarray(points, jnp.float32)), np.float64)
    differences = (returns[:4] - returns[4:]) / (2 * EPS)
    assert length > 0.05
    np.testing.assert_allclose(returns.mean(), value, atol=1e-2)
    np.testing.assert_allclose(
        differences, np.sum(slopes * directions, axis=(1, 2)), rtol=2e-2, atol=1e-3 * length
    )


def test_the_slope_in_a_sequence_of_actions_is_that_of_finite_differences(smooth, params, actions):
    check(lambda a: ret(smooth, params, a), actions)


def test_the_slope_in_a_controllers_weights_is_that_of_finite_differences(smooth, params):
    weight = 0.05 * jax.random.normal(jax.random.key(2), (288, 3))
    check(lambda w: driven(smooth, params, w), weight)


@pytest.fixture(scope="module")
def rewards_and_slopes(smooth, actions):
    """For parameters: rewards [t] with transition gradients, and their slopes [t, t, 3]."""

    def rewards(actions, params):
        found = drive(smooth, params, actions)[0]
        return found, found

    slopes = jax.jit(jax.jacobian(rewards, has_aux=True))
    return lambda params: jax.tree.map(np.asarray, slopes(actions, params)[::-1])


@pytest.fixture(scope="module")
def detached(plain, params, actions):
    """The return and its slopes [t, 3] as gymnax has them unless told otherwise."""
    return jax.jit(jax.value_and_grad(lambda a: ret(plain, params, a)))(actions)


def test_transition_gradients_change_no_value(detached, rewards_and_slopes, params):
    np.testing.assert_allclose(detached[0], rewards_and_slopes(params)[0].sum(), atol=1e-3)


def test_without_them_observation_and_state_are_detached_but_not_the_reward(plain, smooth, params):
    _, state = plain.reset(KEY, params)

    def outcome(action, env):
        obs, after, reward, *_ = env.step_env(KEY, state, action, params)
        return obs, after.z, after.carry, after.tiles, reward

    slopes = jax.jit(jax.jacobian(outcome), static_argnums=1)
    action = jnp.full(3, 0.5)
    *detached, reward = slopes(action, plain)
    *attached, same_reward = slopes(action, smooth)
    assert all(np.all(leaf == 0.0) for leaf in jax.tree.leaves(detached))
    assert all(np.any(leaf != 0.0) for leaf in jax.tree.leaves(attached))
    assert np.all(reward != 0.0)
    np.testing.assert_allclose(reward, same_reward, rtol=1e-3)


def test_without_them_an_action_moves_the_reward_of_its_own_step_alone(
    detached, rewards_and_slopes, params
):
    slopes, rows = np.asarray(detached[1]), rewards_and_slopes(params)[1]
    np.testing.assert_allclose(slopes, rows[range(STEPS), range(STEPS)], rtol=1e-3, atol=1e-6)
    assert np.all(np.any(slopes != 0.0, axis=1))
    past = np.tril(np.ones((STEPS, STEPS), np.bool_), -1)
    assert np.all(np.any(rows[past] != 0.0, axis=1)) and np.all(rows[past.T] == 0.0)


def test_no_gradient_reaches_back_across_an_auto_reset(rewards_and_slopes, params):
    _, rows = rewards_and_slopes(params.replace(max_steps_in_episode=4))
    assert np.all(np.isfinite(rows)) and np.all(rows[4:, :4] == 0.0)
    assert np.any(rows[3, 0] != 0.0) and np.any(rows[7, 4] != 0.0)
