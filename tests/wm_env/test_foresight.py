"""Foresight: what M expects beside a real drive, and what it dreams alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env import mdn
from wm_env.foresight import dream_on, foresee


@pytest.fixture(scope="module")
def drive():
    """Latents [7, z] and actions [6, 3]."""
    random = np.random.default_rng(0)
    z = random.normal(size=(7, 32)).astype(np.float32)
    return jnp.asarray(z), jnp.asarray(random.uniform(0, 1, (6, 3)).astype(np.float32))


@pytest.mark.parametrize("shared", [False, True])
def test_foresight_is_what_m_expects_of_each_step(random_world, drive, shared):
    (z, actions), world = drive, random_world(2, mdn_rnn={"shared_mixture": shared})
    foresight, carry = foresee(world, z, actions), world.mdn_rnn.initial_carry()
    for t, action in enumerate(actions):
        expected, carry = world.mdn_rnn.step(z[t], action, carry)
        told = jax.tree.map(lambda rows, t=t: rows[t], foresight)
        np.testing.assert_allclose(told.z, mdn.mean(expected.mixture), atol=1e-5)
        np.testing.assert_allclose(told.tiles, world.mdn_rnn.expected_tiles(expected), rtol=1e-4)
        np.testing.assert_allclose(told.off_field, jax.nn.sigmoid(expected.off_field), rtol=1e-4)
        surprise = -mdn.log_prob(expected.mixture, z[t + 1]).sum()
        np.testing.assert_allclose(told.surprise, surprise, rtol=1e-4)


def test_to_dream_on_is_to_advance_with_a_key_a_step(world, drive):
    z, actions = drive[0][3], drive[1]
    carry, key = world.burn_in(drive[0][:4], actions[:3]), jax.random.key(4)
    dreamt = dream_on(world, z, carry, actions, key=key, temperature=0.7)
    for t, own in enumerate(jax.random.split(key, 6)):
        step = world.advance(z, actions[t], carry, key=own, temperature=0.7)
        z, carry = step.z, step.carry
        np.testing.assert_allclose(dreamt.z[t], z, atol=1e-3)
        np.testing.assert_allclose(dreamt.tiles[t], step.tiles, rtol=1e-3)
        np.testing.assert_allclose(dreamt.carry.h[t], carry.h, atol=1e-4)
