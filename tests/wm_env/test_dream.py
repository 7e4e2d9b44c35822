"""The gymnax environment: spaces, auto-reset, starts, gradients, ensembles, and odd actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.dream import ACTION_HIGH, ACTION_LOW, DISCRETE_ACTIONS, DreamCarRacing, DreamParams
from wm_env.mdn_rnn import Carry
from wm_env.world_model import Z_LIMIT


@pytest.fixture(scope="module")
def params(world):
    return DreamParams(world_model=world)


@pytest.fixture(scope="module")
def env():
    return DreamCarRacing()


def drive(env, params, steps, *, key=0, action=(0.0, 1.0, 0.0)):
    """Scan `env.step` under one action: its six values, stacked."""
    key_reset, key_steps = jax.random.split(jax.random.key(key))
    _, state = env.reset(key_reset, params)

    def body(state, key):
        outcome = env.step(key, state, jnp.array(action), params)
        return outcome[1], outcome

    return jax.lax.scan(body, state, jax.random.split(key_steps, steps))[1]


@pytest.mark.parametrize("observation", ["features", "latent", "pixels"])
@pytest.mark.parametrize("continuous", [True, False])
def test_observations_and_actions_are_in_their_spaces(params, observation, continuous):
    env = DreamCarRacing(observation, continuous)
    key = jax.random.key(1)
    obs, state = env.reset(key, params)
    space = env.observation_space(params)
    action = env.action_space(params).sample(key)
    after, *_ = env.step(key, state, action, params)
    for seen in (obs, after):
        assert seen.shape == space.shape and seen.dtype == space.dtype
        assert space.contains(seen)


def test_unknown_observation_is_refused():
    with pytest.raises(ValueError, match="'radar'; expected one of features, latent, pixels"):
        DreamCarRacing("radar")


def test_equal_environments_share_a_compiled_step():
    assert DreamCarRacing() == DreamCarRacing()
    assert hash(DreamCarRacing("latent")) == hash(DreamCarRacing("latent"))
    assert DreamCarRacing() != DreamCarRacing(continuous=False)
    assert DreamCarRacing() != DreamCarRacing().with_transition_gradients()


def test_first_frames_start_without_a_carry_and_middles_with_theirs(env, params, world):
    keys = jax.random.split(jax.random.key(0), 64)
    _, first = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    assert {tuple(z) for z in np.asarray(first.z)} <= {
        tuple(z) for z in np.asarray(world.starts.first_z)
    }
    np.testing.assert_array_equal(first.carry.h, 0.0)
    _, middle = jax.vmap(env.reset, in_axes=(0, None))(keys, params.replace(start_middle=1.0))
    for z, h, c in zip(middle.z, middle.carry.h, middle.carry.c, strict=True):
        row = np.flatnonzero((np.asarray(world.starts.z) == np.asarray(z)).all(axis=1))
        np.testing.assert_array_equal(world.starts.h[row[0]], h)
        np.testing.assert_array_equal(world.starts.c[row[0]], c)


def test_dreams_carry_the_motion_on(env, random_world):
    world = random_world(2, mdn_rnn={"motion": True})
    params = DreamParams(world_model=world, start_middle=1.0)
    key = jax.random.key(0)
    _, state = env.reset(key, params)
    motion = np.asarray(state.carry.motion)
    assert (np.asarray(world.starts.motion) == motion).all(axis=1).any()
    _, after, *_ = env.step_env(key, state, jnp.zeros(3), params)
    driven = world.mdn_rnn.motion.drive(jnp.asarray(motion), jnp.zeros(3))
    np.testing.assert_allclose(after.carry.motion[:-1], driven, atol=1e-5)
    assert -1.0 < after.carry.motion[-1] < 0.0
    _, first = env.reset(key, params.replace(start_middle=0.0))
    np.testing.assert_array_equal(first.carry.motion, 0.0)


def test_every_start_is_drawn(env, params, world):
    keys = jax.random.split(jax.random.key(0), 400)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params.replace(start_middle=0.5))
    assert len({tuple(z) for z in np.asarray(state.z)}) == 6 + 10
    assert 0.4 < np.mean(np.any(np.asarray(state.carry.h) != 0, axis=1)) < 0.6


def test_mask_is_all_ones_without_dropout_and_holds_its_share_with(env, params):
    keys = jax.random.split(jax.random.key(0), 100)
    _, plain = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    np.testing.assert_array_equal(plain.mask, 1.0)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params.replace(dropout=0.1))
    assert set(np.unique(state.mask)) == {0.0, np.float32(1 / 0.9)}
    assert abs(np.mean(state.mask == 0) - 0.1) < 0.01


def test_persistent_noise_is_that_of_the_frame_before_and_alike_in_size(env, params):
    """What drew z, over dreams: standard normal, and correlated from frame to frame as asked."""
    keys = jax.random.split(jax.random.key(0), 200)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    step = jax.vmap(env.step_env, in_axes=(0, 0, None, None))
    noise = []
    for number in range(12):
        keys = jax.random.split(jax.random.key(1 + number), 200)
        _, state, *_ = step(keys, state, jnp.zeros(3), params.replace(persistence=0.6))
        noise.append(np.asarray(state.noise))
    before, after = np.stack(noise[6:-1]), np.stack(noise[7:])
    assert noise[0].shape == (200, 2 * 32)
    assert abs(np.std(after) - 1.0) < 0.02 and abs(np.mean(after)) < 0.02
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1] - 0.6) < 0.02
    assert abs(np.corrcoef(before[:, :, 0].ravel(), after[:, :, 1].ravel())[0, 1]) < 0.1


def test_the_first_frame_of_persistent_noise_has_the_same_direction_as_fresh(env, params):
    """Noise begins at 0, so that the first frame's is the fresh one, less wild."""
    _, state = env.reset(jax.random.key(0), params)
    step = lambda **changes: env.step_env(  # noqa: E731
        jax.random.key(1), state, jnp.zeros(3), params.replace(temperature=1e-3, **changes)
    )[1]
    np.testing.assert_array_equal(step().noise, 0.0)
    lasting = step(persistence=0.6).noise
    np.testing.assert_allclose(lasting, 0.8 * step(persistence=1e-7).noise, rtol=1e-4)
    assert np.std(lasting) > 0.5


def test_actions_outside_the_box_act_as_its_edge(env, params):
    _, state = env.reset(jax.random.key(0), params)
    inside = env.step(jax.random.key(1), state, jnp.array([1.0, 0.0, 1.0]), params)
    outside = env.step(jax.random.key(1), state, jnp.array([9.0, -np.inf, np.inf]), params)
    np.testing.assert_array_equal(inside[0], outside[0])


def test_nan_actions_count_as_no_input_and_leave_the_state_finite(env, params):
    _, state = env.reset(jax.random.key(0), params)
    idle = env.step(jax.random.key(1), state, jnp.zeros(3), params)
    nan = env.step(jax.random.key(1), state, jnp.full(3, np.nan), params)
    np.testing.assert_array_equal(idle[0], nan[0])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(nan[1]))


def test_wild_params_leave_the_state_finite(env, params):
    wild = params.replace(temperature=50.0, dropout=0.9, track_tiles=1e9)
    outcome = drive(env, wild, 200)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(outcome))
    assert np.max(np.abs(outcome[1].z)) <= Z_LIMIT


def test_discrete_actions_are_the_continuous_ones(params):
    discrete, continuous = DreamCarRacing(continuous=False), DreamCarRacing()
    _, state = discrete.reset(jax.random.key(0), params)
    for index, action in enumerate(DISCRETE_ACTIONS):
        assert np.all((action >= ACTION_LOW) & (action <= ACTION_HIGH))
        a = discrete.step(jax.random.key(1), state, index, params)
        b = continuous.step(jax.random.key(1), state, action, params)
        np.testing.assert_array_equal(a[0], b[0])


def test_float64_numpy_actions_are_taken(env, params):
    _, state = env.reset(jax.random.key(0), params)
    env.step(jax.random.key(1), state, np.array([0.1, 0.2, 0.3]), params)


def test_state_at_begins_where_it_is_told(env, params, world):
    z, carry = jnp.full(32, 20.0), Carry(h=jnp.full(256, 0.1), c=jnp.full(256, 0.2))
    state = env.state_at(jax.random.key(0), z, carry, params)
    np.testing.assert_array_equal(state.z, Z_LIMIT)
    np.testing.assert_array_equal(state.carry.h, carry.h)
    assert state.time == 0 and state.tiles == 0


def test_return_has_gradients_through_time_only_when_asked_for(env, params):
    _, state = env.reset(jax.random.key(0), params)

    def total(actions, env):
        def body(state, inputs):
            _, state, reward, _, _ = env.step_env(*inputs[:1], state, inputs[1], params)
            return state, reward

        keys = jax.random.split(jax.random.key(1), len(actions))
        return jax.lax.scan(body, state, (keys, actions))[1].sum()

    actions = jnp.full((8, 3), 0.5)
    slopes = jax.grad(total)(actions, env.with_transition_gradients())
    assert np.all(np.isfinite(slopes)) and np.all(np.any(slopes != 0, axis=1))
    detached = jax.grad(total)(actions[:2], env)
    later = jax.grad(lambda a: total(jnp.stack([a, actions[1]]), env))(actions[0])
    np.testing.assert_allclose(later, detached[0])
    assert np.max(np.abs(slopes[0] - detached[0])) > 1e-7


def test_an_ensemble_of_worlds_is_one_vmap(env, random_world):
    each = [DreamParams(world_model=random_world(seed)) for seed in range(2)]
    ensemble = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *each)
    key, action = jax.random.key(0), jnp.array([0.3, 0.2, 0.0])
    _, states = jax.vmap(env.reset, in_axes=(None, 0))(key, ensemble)
    batch = jax.vmap(env.step, in_axes=(None, 0, None, 0))(key, states, action, ensemble)
    for index, params in enumerate(each):
        _, state = env.reset(key, params)
        alone = env.step(key, state, action, params)
        np.testing.assert_allclose(batch[0][index], alone[0], atol=1e-4)
        np.testing.assert_allclose(batch[2][index], alone[2], atol=1e-4)


def test_spaces_of_the_state_hold_the_state(env, params):
    _, state = env.reset(jax.random.key(0), params)
    spaces = env.state_space(params).spaces
    for name, space in spaces.items():
        assert np.all(space.contains(getattr(state, name))), name
