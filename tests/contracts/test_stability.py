"""The shipped world stays in its range for as long as anyone dreams, whatever the driver does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_env
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.reward import FRAME_REWARD, OFF_FIELD_REWARD
from wm_env.world_model import Z_LIMIT

TEMPERATURES = (0.1, 0.5, 1.0, 2.0)
CORNERS = np.array(list(itertools.product((-1, 1), (0, 1), (0, 1))), np.float32)


@pytest.fixture(scope="module")
def params():
    return DreamParams(world_model=wm_env.load_world("carracing"))


def drivers():
    """25 pairs of actions, for even and odd steps, and the share of steps of random corners."""
    held = [(corner, corner, 0.0) for corner in CORNERS]
    turned = [(corner, CORNERS[-1 - index], 0.0) for index, corner in enumerate(CORNERS)]
    idle, gas, brake = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    straight = [(action, action, 0.0) for action in (idle, gas, brake)] + [(gas, brake, 0.0)]
    # Far outside the space, and what is no number at all.
    outside = [(np.full(3, np.inf), np.full(3, -1e30), 0.0), (np.full(3, np.nan), gas, 0.0)]
    chance = [(idle, idle, 1.0), (gas, gas, 0.5), (brake, gas, 0.1)]
    return held + turned + straight + outside + chance


def dream(params, lanes, steps, key):
    """Extremes over one uninterrupted dream of `lanes`: (even, odd, chance, temperature) each."""
    env = DreamCarRacing("latent")
    even, odd, chance, temperature = (jnp.asarray(np.stack(x), jnp.float32) for x in lanes)

    def frame(now, t):
        state, seen = now
        key_now = jax.random.fold_in(key, t)
        key_step, key_chance, key_corner = jax.random.split(key_now, 3)
        count = len(chance)
        corner = jnp.asarray(CORNERS)[jax.random.randint(key_corner, (count,), 0, len(CORNERS))]
        given = jnp.where(t % 2 == 0, even, odd)
        wild = jax.random.uniform(key_chance, (count,)) < chance
        z, state, reward, _, _ = jax.vmap(
            lambda k, s, a, tau: env.step_env(k, s, a, params.replace(temperature=tau))
        )(
            jax.random.split(key_step, count),
            # A lap pays no further tiles; with none counted, rewards stay what a step earns.
            state.replace(tiles=jnp.zeros_like(state.tiles)),
            jnp.where(wild[:, None], corner, given),
            temperature,
        )
        # Maxima propagate NaN.
        now_seen = {
            "z": jnp.max(jnp.abs(z), axis=1),
            "h": jnp.max(jnp.abs(state.carry.h), axis=1),
            "c": jnp.max(jnp.abs(state.carry.c), axis=1),
            "best": reward,
            "worst": -reward,
        }
        return (state, jax.tree.map(jnp.maximum, seen, now_seen)), None

    key_reset, key = jax.random.split(key)
    _, state = jax.vmap(env.reset_env, in_axes=(0, None))(
        jax.random.split(key_reset, len(chance)), params.replace(start_middle=0.5, dropout=0.1)
    )
    c_begin = jnp.max(jnp.abs(state.carry.c), axis=1)
    nothing = {name: jnp.full(len(chance), -1e9) for name in ("z", "h", "c", "best", "worst")}
    (state, seen), _ = jax.lax.scan(frame, (state, nothing), jnp.arange(steps))
    return state, seen, c_begin


def check(state, seen, c_begin, steps):
    for name, extreme in seen.items():
        assert np.all(np.isfinite(extreme)), name
    assert np.all(seen["z"] <= Z_LIMIT)
    assert np.all(seen["h"] <= 1.0)
    # Each step adds less than 1 to a cell and forgets a share of it.
    assert np.all(seen["c"] <= c_begin + steps)
    assert np.all(-seen["worst"] >= OFF_FIELD_REWARD)
    assert np.all(seen["best"] <= 1000 / 281 * 8 + FRAME_REWARD + 1e-3)
    assert np.all(state.time == steps)


@pytest.mark.slow
def test_a_million_steps_of_adversarial_driving_stay_in_range(params):
    lanes = [(*driver, tau) for driver in drivers() for tau in TEMPERATURES]
    steps = 10_000
    assert len(lanes) * steps == 1_000_000
    run = jax.jit(lambda p, k: dream(p, list(zip(*lanes, strict=True)), steps, k))
    check(*run(params, jax.random.key(0)), steps)


@pytest.mark.slow
def test_one_long_dream_stays_in_range(params):
    chosen = [drivers()[index] for index in (0, 10, 17, 22)]
    lanes = [(*driver, tau) for driver, tau in zip(chosen, TEMPERATURES, strict=True)]
    steps = 100_000
    run = jax.jit(lambda p, k: dream(p, list(zip(*lanes, strict=True)), steps, k))
    check(*run(params, jax.random.key(1)), steps)


def test_numbers_that_are_none_count_as_no_input(params):
    env = DreamCarRacing("latent")
    step = jax.jit(env.step_env)
    key_reset, key_step = jax.random.split(jax.random.key(3))
    _, state = env.reset_env(key_reset, params)
    nan, inf = np.nan, np.inf
    idle = step(key_step, state, jnp.zeros(3), params)[0]
    for action, meant in (
        ([nan, nan, nan], [0.0, 0.0, 0.0]),
        ([nan, 1.0, 0.0], [0.0, 1.0, 0.0]),
        ([1.0, nan, 0.0], [1.0, 0.0, 0.0]),
        ([inf, 1e30, -inf], [1.0, 1.0, 0.0]),
    ):
        got = step(key_step, state, jnp.array(action, jnp.float32), params)
        want = step(key_step, state, jnp.array(meant, jnp.float32), params)
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert np.all(np.isfinite(got[0])) and np.isfinite(got[2])
        assert np.array_equal(got[0], idle) == (not any(meant)), "actions matter"
