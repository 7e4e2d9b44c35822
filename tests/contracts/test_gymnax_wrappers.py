"""gymnax's own wrappers over the dream: each gives the values that its definition asks for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax import wrappers
from gymnax.experimental import RolloutWrapper

from wm_env import dream
from wm_env.dream import DreamCarRacing, DreamParams

pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # the wrappers multiply floats by booleans

LANES, STEPS, LIMIT = 3, 30, 7


@pytest.fixture(scope="module")
def params(random_world, with_outcomes):
    """Falls about every tenth step and a short time limit, so that both ends happen."""
    eventful = with_outcomes(random_world(2), log_tiles=-1.0, off_field=-2.2)
    return DreamParams(world_model=eventful, start_middle=0.5, max_steps_in_episode=LIMIT)


@pytest.fixture(scope="module")
def env():
    return DreamCarRacing()


@pytest.fixture(scope="module")
def play():
    """`play(env, params, record)`: scanned steps of a batch, `record(outcome)` as [t, lane]."""

    def play(env, params, record):
        key_reset, key_steps = jax.random.split(jax.random.key(5))
        reset = jax.vmap(env.reset, in_axes=(0, None))
        step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

        def body(state, inputs):
            outcome = step(inputs[0], state, inputs[1], params)
            return outcome[1], record(outcome)

        first, state = reset(jax.random.split(key_reset, LANES), params)
        keys = jax.random.split(key_steps, (STEPS, LANES))
        actions = jax.random.uniform(jax.random.key(6), (STEPS, LANES, 3))
        return first, jax.lax.scan(body, state, (keys, actions))[1]

    return jax.jit(play, static_argnames=("env", "record"))


@pytest.fixture(scope="module")
def plain(env, params, play):
    """What the environment itself gives: first observation, and its six values step by step."""
    first, outcomes = play(env, params, tuple)
    assert np.any(outcomes[3]) and np.any(outcomes[4])
    return first, outcomes


def same(got, want):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), got, want)


def test_the_legacy_step_gives_five_values_and_merges_the_ends_into_done(env, params, play, plain):
    first, outcomes = play(wrappers.LegacyStepAPIWrapper(env), params, tuple)
    obs, state, reward, terminated, truncated, info = plain[1]
    same(first, plain[0])
    assert len(outcomes) == 5
    same(outcomes[:3], (obs, state, reward))
    np.testing.assert_array_equal(outcomes[3], terminated | truncated)
    np.testing.assert_array_equal(outcomes[4]["terminated"], terminated)
    np.testing.assert_array_equal(outcomes[4]["truncated"], truncated)
    same(outcomes[4], info)


def test_the_log_knows_return_and_length_of_every_episode(env, params, play, plain):
    _, (obs, state, reward, terminated, truncated, info) = play(
        wrappers.LogWrapper(env), params, tuple
    )
    same((obs, state.env_state, reward, terminated, truncated), plain[1][:5])
    same(info["final_observation"], plain[1][5]["final_observation"])
    done = np.asarray(terminated | truncated)
    np.testing.assert_array_equal(info["returned_episode"], done)
    for lane in range(LANES):
        total, length, returned = 0.0, 0, (0.0, 0, False)
        for t in range(STEPS):
            total, length = total + float(reward[t, lane]), length + 1
            if done[t, lane]:
                total, length, returned = 0.0, 0, (total, length, True)
            logged = [
                info[f"returned_episode_{name}"][t, lane]
                for name in ("returns", "lengths", "valid")
            ]
            assert logged == [pytest.approx(returned[0], abs=1e-3), *returned[1:]]
            assert state.episode_returns[t, lane] == pytest.approx(total, abs=1e-3)
            assert state.episode_lengths[t, lane] == length


def test_flattened_pixels_are_the_pixels_in_a_row(params):
    env = DreamCarRacing("pixels")
    flat = wrappers.FlattenObservationWrapper(env)
    params = params.replace(max_steps_in_episode=1)
    space, key = flat.observation_space(params), jax.random.key(1)
    assert space.shape == (64 * 64 * 3,) and space.dtype == jnp.uint8
    obs, state = flat.reset(key, params)
    after, _, *_, truncated, info = flat.step(key, state, jnp.zeros(3), params)
    want, _, *_, want_info = env.step(key, state, jnp.zeros(3), params)
    assert truncated and space.contains(obs) and space.contains(after)
    pairs = [
        (obs, env.reset(key, params)[0]),
        (after, want),
        (info["final_observation"], want_info["final_observation"]),
    ]
    for got, image in pairs:
        assert got.shape == space.shape and got.dtype == jnp.uint8 and np.ptp(got) > 0
        np.testing.assert_allclose(np.asarray(got, int), np.ravel(image).astype(int), atol=1)
    assert np.any(after != info["final_observation"])


@pytest.fixture
def shipped(params, monkeypatch):
    """The world of the default parameters, which some wrappers ask the environment for."""
    monkeypatch.setattr(dream, "_shipped_world", lambda *_: params.world_model)


def test_a_sticky_action_is_the_last_one_as_often_as_its_own_draws_say(params, shipped):
    env = DreamCarRacing("latent", continuous=False)
    sticky = wrappers.StickyActionWrapper(env, sticky_action_prob=0.5)
    _, state = sticky.reset(jax.random.key(0), params)
    last, repeated, wanted = 0, [], np.random.default_rng(3).integers(5, size=12)
    for key, action in zip(jax.random.split(jax.random.key(1), 12), wanted, strict=True):
        key_replay, key_step = jax.random.split(key)
        repeated.append(bool(jax.random.bernoulli(key_replay, 0.5)))
        last = last if repeated[-1] else int(action)
        expected = env.step(key_step, state.env_state, last, params)
        obs, state, *others = sticky.step(key, state, action, params)
        assert state.last_action == last
        same((obs, state.env_state, *others), expected)
    assert 0 < sum(repeated) < 12


def test_only_discrete_actions_can_stick(env, shipped):
    with pytest.raises(ValueError, match="requires a Discrete action space"):
        wrappers.StickyActionWrapper(env, 0.5)


def test_the_dm_discount_is_zero_at_a_fall_and_one_at_the_time_limit(env, params, play, plain):
    class Stepped(wrappers.GymnaxToDmEnvWrapper):
        """The wrapper with its time step in the places that a scan of six values expects."""

        def reset(self, key, params):
            begin = super().reset(key, params)
            return begin, begin

        def step(self, key, state, action, params):
            after = super().step(key, state, action, params)
            return after, after

    begin, (after, _) = play(Stepped(env), params, tuple)
    obs, state, reward, terminated, _, info = plain[1]
    same(begin.observation, plain[0])
    np.testing.assert_array_equal(begin.discount, np.ones(LANES))
    same((after.observation, after.state, after.reward), (obs, state, reward))
    same(after.final_observation, info["final_observation"])
    np.testing.assert_array_equal(after.discount, 1.0 - np.asarray(terminated))


@pytest.fixture
def own_metadata(monkeypatch):
    """gymnax's adapter writes into the metadata that all of Gymnasium's environments share."""
    monkeypatch.setattr(wrappers.GymnaxToGymWrapper, "metadata", {"render_modes": []})


def test_gymnaxs_gym_adapter_steps_the_same_dream(env, params, own_metadata):
    adapter = wrappers.GymnaxToGymWrapper(env, params, seed=8)
    assert adapter.observation_space.shape == (288,) and adapter.action_space.shape == (3,)
    key, key_reset = jax.random.split(jax.random.key(4))
    obs, _ = adapter.reset(seed=4)
    want, state = env.reset(key_reset, params)
    same(obs, want)
    ends = 0
    for action in np.random.default_rng(0).uniform(0, 1, (LIMIT + 1, 3)).astype(np.float32):
        key, key_step = jax.random.split(key)
        want, state, *others = env.step(key_step, state, action, params)
        got = adapter.step(action)
        same(got, (want, *others))
        assert adapter.observation_space.contains(np.asarray(got[0]))
        ends += int(got[2] | got[3])
    assert ends > 0
    adapter.reset(seed=4, options={"env_params": params.replace(max_steps_in_episode=1)})
    assert adapter.step(np.zeros(3, np.float32))[3]


def test_gymnaxs_vector_adapter_steps_the_same_dreams(env, params):
    adapter = wrappers.GymnaxToVectorGymWrapper(env, LANES, params, seed=8)
    obs, _ = adapter.reset(seed=4)
    assert obs.shape == adapter.observation_space.shape
    split = jax.vmap(jax.random.split)
    keys, keys_reset = split(jax.random.split(jax.random.key(4), LANES)).T
    want, state = jax.vmap(env.reset, in_axes=(0, None))(keys_reset, params)
    step, ends = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None))), 0
    same(obs, want)
    for action in np.random.default_rng(0).uniform(0, 1, (LIMIT, LANES, 3)).astype(np.float32):
        keys, keys_step = split(keys).T
        want, state, *others = step(keys_step, state, action, params)
        got = adapter.step(action)
        same(got, (want, *others))
        ends += np.sum(got[2] | got[3])
    assert ends >= LANES


def test_gymnaxs_vector_adapter_steps_pixels_too(params):
    pixels = DreamCarRacing("pixels")
    adapter = wrappers.GymnaxToVectorGymWrapper(pixels, 2, params, seed=8)
    adapter.reset(seed=4)
    seen = adapter.step(np.zeros((2, 3), np.float32))[0]
    assert seen.shape == (2, 64, 64, 3) and seen.dtype == np.uint8
    assert len(np.unique(seen)) > 1


def test_gymnaxs_rollout_returns_the_rewards_up_to_the_first_end(env, params, shipped):
    def linear(weight, observation, key):
        return jnp.tanh(observation @ weight)

    roll = RolloutWrapper(linear, env=env, env_params=params, num_env_steps=STEPS)
    weights = 0.1 * jax.random.normal(jax.random.key(1), (2, 288, 3))
    obs, action, reward, after, done, total = roll.population_rollout(
        jax.random.split(jax.random.key(2), LANES), weights
    )
    assert obs.shape == (2, LANES, STEPS, 288) and total.shape == (2, LANES, 1)
    same(action[1], jnp.tanh(obs[1] @ weights[1]))
    first_end = np.argmax(done, axis=2)
    assert np.all(np.any(done, axis=2)) and np.all(first_end < LIMIT)
    counted = np.arange(STEPS) <= first_end[..., None]
    same(total[..., 0], np.sum(np.where(counted, reward, 0.0), axis=2))
    same(after[:, :, :-1], obs[:, :, 1:])
