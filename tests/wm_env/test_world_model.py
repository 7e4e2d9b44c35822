"""WorldModel: alignment, finite dreams, and metadata that never forks a compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.mdn_rnn import Carry
from wm_env.world_model import Z_LIMIT, Metadata, WorldModel


def dream(world, steps, *, temperature=1.0, action=(0.2, 0.5, 0.0)):
    """A plain loop of `advance` under one action: the steps, stacked."""

    def body(now, key):
        z, carry = now
        step = world.advance(z, jnp.array(action), carry, key=key, temperature=temperature)
        return (step.z, step.carry), step

    start = world.starts.first_z[0], world.mdn_rnn.initial_carry()
    return jax.lax.scan(body, start, jax.random.split(jax.random.key(0), steps))[1]


def test_advance_predicts_from_the_carry_after_the_action(world):
    z, action = world.starts.first_z[0], jnp.array([0.1, 1.0, 0.0])
    step = world.advance(z, action, world.mdn_rnn.initial_carry(), key=jax.random.key(0))
    prediction, carry = world.mdn_rnn.step(z, action, world.mdn_rnn.initial_carry())
    np.testing.assert_array_equal(step.carry.h, carry.h)
    np.testing.assert_allclose(step.tiles, jnp.exp(prediction.log_tiles), rtol=1e-6)


def test_samples_of_advance_follow_the_mixture(world):
    z, action = world.starts.first_z[0], jnp.array([0.1, 1.0, 0.0])
    carry = world.mdn_rnn.initial_carry()
    keys = jax.random.split(jax.random.key(1), 20_000)
    steps = jax.jit(jax.vmap(lambda key: world.advance(z, action, carry, key=key)))(keys)
    prediction, _ = world.mdn_rnn.step(z, action, carry)
    pi = np.exp(prediction.mixture.log_pi)
    mean = (pi * prediction.mixture.mu).sum(axis=1)
    second = (pi * (np.exp(2 * prediction.mixture.log_sigma) + prediction.mixture.mu**2)).sum(
        axis=1
    )
    deviation = np.sqrt(second - mean**2)
    assert np.all(np.abs(steps.z.mean(axis=0) - mean) < 5 * deviation / np.sqrt(20_000))
    np.testing.assert_allclose(steps.z.std(axis=0), deviation, rtol=0.05)
    expected = float(jax.nn.sigmoid(prediction.off_field))
    assert abs(steps.off_field.mean() - expected) < 5 * np.sqrt(expected / 20_000)


def test_wild_dreams_stay_finite(world):
    steps = dream(world, 300, temperature=100.0)
    assert np.all(np.isfinite(steps.z))
    assert np.max(np.abs(steps.z)) <= Z_LIMIT
    assert np.all(np.isfinite(steps.carry.c))
    assert np.all(np.isfinite(steps.tiles))


def test_burn_in_equals_a_loop(world):
    z = jax.random.normal(jax.random.key(4), (5, 32))
    actions = jax.random.uniform(jax.random.key(5), (4, 3))
    carry = world.mdn_rnn.initial_carry()
    for t in range(4):
        carry = world.mdn_rnn.advance_carry(z[t], actions[t], carry)
    np.testing.assert_allclose(world.burn_in(z, actions).h, carry.h, atol=1e-5)


def test_burn_in_of_one_latent_is_the_initial_carry(world):
    carry = world.burn_in(world.starts.first_z[:1], jnp.zeros((0, 3)))
    np.testing.assert_array_equal(carry.h, np.zeros(256))


def test_encode_and_decode_speak_images(world):
    image = jnp.full((64, 64, 3), 120, jnp.uint8)
    z = world.encode(image)
    assert z.shape == (32,) and np.max(np.abs(z)) <= Z_LIMIT
    assert world.decode(z).shape == (64, 64, 3) and world.decode(z).dtype == jnp.uint8


def test_features_are_z_then_h(world):
    z, h = jnp.arange(32.0), jnp.linspace(0.0, 1.0, 256)
    np.testing.assert_array_equal(world.features(z, h), np.concatenate([z, h]))


def test_worlds_that_differ_in_metadata_share_one_program(world):
    other = dataclasses.replace(world, metadata=Metadata({"score": 906}))
    traces = []

    @jax.jit
    def latent(model, z):
        traces.append(1)
        return model.mdn_rnn.advance_carry(
            z, jnp.zeros(3), Carry(h=jnp.zeros(256), c=jnp.zeros(256))
        ).h

    latent(world, world.starts.first_z[0])
    latent(other, world.starts.first_z[0])
    assert len(traces) == 1
    assert other.metadata["score"] == 906


def test_metadata_must_be_json():
    with pytest.raises(TypeError, match="JSON"):
        Metadata({"array": np.zeros(3)})


def test_parts_of_different_sizes_are_refused(world, random_world):
    small = random_world(mdn_rnn={"latent_size": 8})
    with pytest.raises(ValueError, match="latent_size is 8 but M expects 32"):
        WorldModel(small.vae, world.mdn_rnn, world.starts)


def test_an_ensemble_is_a_vmapped_world(random_world):
    worlds = [random_world(seed) for seed in range(2)]
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *worlds)
    z, carry = worlds[0].starts.first_z[0], worlds[0].mdn_rnn.initial_carry()
    key, action = jax.random.key(0), jnp.zeros(3)
    batched = jax.vmap(lambda world: world.advance(z, action, carry, key=key).z)(ensemble)
    for index, world in enumerate(worlds):
        alone = world.advance(z, action, carry, key=key).z
        np.testing.assert_allclose(batched[index], alone, atol=1e-4)
