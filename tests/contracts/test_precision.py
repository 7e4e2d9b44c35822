"""In bfloat16 the dream is the same dream, but for the rounding of M's matmuls."""

import gymnasium as gym
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_env
from agents.linear import linear_policy, load_linear


def halved(world):
    return world.mdn_rnn.gate_weight, world.mdn_rnn.head_weight


def test_only_the_weights_of_ms_matmuls_change(world):
    coarse = world.with_precision("bfloat16")
    assert {weight.dtype for weight in halved(coarse)} == {jnp.dtype(jnp.bfloat16)}
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, world, coarse)
    assert sum(not kept for kept in jax.tree.leaves(same)) == 2
    assert world.with_precision("float32") is world
    for weight, fine in zip(halved(coarse), halved(world), strict=True):
        np.testing.assert_allclose(weight.astype(jnp.float32), fine, rtol=2**-8)


def test_a_step_is_that_of_float32_up_to_rounding_and_stays_float32(world):
    z, a = jnp.linspace(-2.0, 2.0, 32), jnp.array([0.5, 0.2, 0.0])
    carry = world.mdn_rnn.initial_carry()
    fine, coarse = (
        one.advance(z, a, carry, key=jax.random.key(0))
        for one in (world, world.with_precision("bfloat16"))
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, fine, coarse))
    np.testing.assert_allclose(coarse.carry.h, fine.carry.h, atol=0.02)
    assert np.any(np.asarray(coarse.carry.h) != np.asarray(fine.carry.h))


def test_every_way_in_takes_it(world):
    env = gym.make("DreamCarRacing-v0", world_model=world, precision="bfloat16")
    envs = gym.make_vec("DreamCarRacing-v0", num_envs=2, world_model=world, precision="bfloat16")
    core, params = gymnax.make("DreamCarRacing-v0", world_model=world, precision="bfloat16")
    for world_model in (
        env.unwrapped.params.world_model,
        envs.params.world_model,
        params.world_model,
    ):
        assert world_model.mdn_rnn.gate_weight.dtype == jnp.bfloat16
    for one, action in ((env, [0.0, 1.0, 0.0]), (envs, [[0.0, 1.0, 0.0]] * 2)):
        one.reset(seed=0)
        assert one.step(np.array(action, np.float32))[0].dtype == np.float32
    shipped = gymnax.make("DreamCarRacing-v0", precision="bfloat16")
    assert shipped[1].world_model is shipped[0].default_params.world_model  # cast once


@pytest.mark.parametrize(
    "make",
    [
        lambda **named: gym.make("DreamCarRacing-v0", **named),
        lambda **named: gym.make_vec("DreamCarRacing-v0", num_envs=2, **named),
        lambda **named: gymnax.make("DreamCarRacing-v0", **named),
    ],
)
def test_an_unknown_precision_is_refused(world, make):
    with pytest.raises(ValueError, match="precision is 'float16'; expected one of float32, bfl"):
        make(world_model=world, precision="float16")


@pytest.mark.slow
def test_the_shipped_driver_earns_the_same_within_noise():
    controller, _ = load_linear("carracing_controller", features=288)
    fine, coarse = (
        wm_env.evaluate(
            linear_policy,
            controller,
            env="dream",
            seeds=range(64),
            dream={"precision": precision},
            progress=False,
        )
        for precision in ("float32", "bfloat16")
    )
    print({"float32": fine.mean, "bfloat16": coarse.mean})
    assert abs(coarse.mean - fine.mean) < np.hypot(fine.ci95, coarse.ci95)
