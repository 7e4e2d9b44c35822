"""Ten thousand steps in one scan: dreams stay in their ranges and begin anew when they end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.world_model import Z_LIMIT

STEPS, LANES, LIMIT = 10_000, 4, 1000


@pytest.fixture(scope="module")
def traced():
    """How often the program below was traced."""
    return []


@pytest.fixture(scope="module")
def play(traced):
    env = DreamCarRacing("latent")
    reset = jax.vmap(env.reset, in_axes=(0, None))
    step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    @jax.jit
    def play(key, params):
        traced.append(None)
        key_reset, key_steps = jax.random.split(key)

        def body(state, key):
            keys = jax.random.split(key, LANES)
            actions = jax.vmap(env.action_space(params).sample)(keys)
            observation, state, reward, terminated, truncated, info = step(
                keys, state, actions, params
            )
            h = jnp.max(jnp.abs(state.carry.h), axis=1)
            c = jnp.max(jnp.abs(state.carry.c), axis=1)
            return state, {
                "z": jnp.max(jnp.abs(observation), axis=1),
                "h": h,
                "c": c,
                "time": state.time,
                "tiles": info["tiles"],
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                "lap_finished": info["lap_finished"],
                "off_field": info["off_field"],
            }

        _, state = reset(jax.random.split(key_reset, LANES), params)
        return jax.lax.scan(body, state, jax.random.split(key_steps, STEPS))[1]

    return play


@pytest.fixture(scope="module")
def params(world, with_outcomes):
    """A fall about every thousandth step, and no lap before about seven hundred."""
    rare = with_outcomes(world, log_tiles=float(np.log(0.4)), off_field=-7.0)
    return DreamParams(world_model=rare, start_middle=0.5, max_steps_in_episode=LIMIT)


@pytest.fixture(scope="module")
def seen(play, params):
    return {name: np.asarray(value) for name, value in play(jax.random.key(0), params).items()}


def test_every_number_is_finite_and_in_its_range(seen):
    for name, value in seen.items():
        assert value.shape == (STEPS, LANES) and np.all(np.isfinite(value)), name
    assert seen["z"].max() <= Z_LIMIT and seen["h"].max() <= 1.0
    assert 0.0 <= seen["tiles"].min() and seen["tiles"].max() <= 281.0
    assert seen["reward"].min() == -100.0


def test_every_end_begins_an_episode_and_nothing_else_does(seen):
    done = seen["terminated"] | seen["truncated"]
    np.testing.assert_array_equal(seen["time"] == 0, done)
    before = np.concatenate([np.zeros((1, LANES), int), seen["time"][:-1]])
    np.testing.assert_array_equal(seen["time"], np.where(done, 0, before + 1))
    np.testing.assert_array_equal(seen["truncated"], before + 1 == LIMIT)
    np.testing.assert_array_equal(seen["terminated"], seen["lap_finished"] | seen["off_field"])
    assert np.all(done.sum(axis=0) >= STEPS // LIMIT)
    assert seen["lap_finished"].any() and seen["off_field"].any()


def test_ten_thousand_steps_pay_what_their_tiles_and_falls_say(seen):
    """Tiles do not leak from an episode into the next, nor does a sum drift."""
    done = seen["terminated"] | seen["truncated"]
    before = np.concatenate([np.zeros((1, LANES)), np.where(done, 0.0, seen["tiles"])[:-1]])
    paid = 1000.0 / 281.0 * (seen["tiles"] - before) - 0.1
    expected = np.where(seen["off_field"], -100.0, paid)
    np.testing.assert_allclose(seen["reward"], expected, atol=1e-3)


def test_other_keys_worlds_and_numbers_run_in_the_same_program(
    seen, play, params, traced, random_world, with_outcomes
):
    other = with_outcomes(random_world(9), log_tiles=-30.0)
    params = params.replace(world_model=other, temperature=2.0, max_steps_in_episode=500)
    quiet = play(jax.random.key(1), params)
    assert len(traced) == 1
    assert quiet["truncated"].sum() == LANES * STEPS // 500 and not quiet["terminated"].any()
    np.testing.assert_allclose(quiet["reward"].sum(axis=0), -0.1 * STEPS, rtol=1e-4)
