"""WorldModel: alignment, finite dreams, and metadata that never forks a compiled program."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env import world_model
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
    np.testing.assert_allclose(step.tiles, jnp.exp(prediction.tiles), rtol=1e-6)


@pytest.fixture(scope="module")
def draws(world):
    """The mixture of one prediction, whose components lie apart, and samples of `advance` from it.

    `draws[1](temperature)` are 20,000 steps.
    """
    m = world.mdn_rnn
    keys = jax.random.split(jax.random.key(6), 2)
    size = m.config.mixtures * m.config.latent_size
    bias = m.head_bias.at[:size].set(jax.random.normal(keys[0], (size,)))
    bias = bias.at[size : 2 * size].set(jax.random.uniform(keys[1], (size,), minval=-3, maxval=3))
    bias = bias.at[2 * size : 3 * size].set(-0.5)
    apart = eqx.tree_at(lambda w: w.mdn_rnn.head_bias, world, bias)
    z, action, carry = world.starts.first_z[0], jnp.array([0.1, 1.0, 0.0]), m.initial_carry()
    keys = jax.random.split(jax.random.key(1), 20_000)

    @jax.jit
    def at(temperature):
        return jax.vmap(
            lambda key: apart.advance(z, action, carry, key=key, temperature=temperature)
        )(keys)

    return apart.mdn_rnn.step(z, action, carry)[0], at


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3, 2.0])
def test_samples_of_advance_follow_the_mixture(draws, temperature):
    """Temperature divides the logits and multiplies the variance of each component."""
    prediction, at = draws
    steps, count = at(temperature), 20_000
    mixture, mu = prediction.mixture, np.asarray(prediction.mixture.mu)
    pi = np.exp(np.asarray(mixture.log_pi) / temperature)
    pi /= pi.sum(axis=1, keepdims=True)
    variance = np.exp(2 * np.asarray(mixture.log_sigma)) * temperature
    mean = (pi * mu).sum(axis=1)
    offset = mu - mean[:, None]
    deviation = np.sqrt((pi * (variance + offset**2)).sum(axis=1))
    fourth = (pi * (offset**4 + 6 * offset**2 * variance + 3 * variance**2)).sum(axis=1)
    of_mean = deviation / np.sqrt(count)
    assert np.all(np.abs(steps.z.mean(axis=0) - mean) < 5 * of_mean)
    of_variance = np.sqrt((fourth - deviation**4) / count)
    assert np.all(np.abs(steps.z.var(axis=0) - deviation**2) < 5 * of_variance)
    expected = float(jax.nn.sigmoid(prediction.off_field))
    of_share = np.sqrt(expected * (1 - expected) / count)
    assert abs(steps.off_field.mean() - expected) < 5 * of_share


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


@pytest.fixture(scope="module")
def decoded(world):
    """More latents than are decoded at once, and the image of each by itself."""
    z = 10.0 * jax.random.normal(jax.random.key(0), (70, world.latent_size))  # images unlike
    alone = jax.jit(lambda one: world.decode(one))
    return z, np.stack([alone(one) for one in z]).astype(int)


def test_images_of_many_latents_are_those_of_each(world, decoded):
    z, alone = decoded
    together = jax.jit(jax.vmap(world.decode))(z)
    np.testing.assert_allclose(together, alone, atol=1)
    nested = jax.vmap(jax.vmap(world.decode))(z.reshape(2, 35, -1))
    np.testing.assert_allclose(nested.reshape(alone.shape), alone, atol=1)
    in_groups = "scan" in str(jax.make_jaxpr(jax.vmap(world.decode))(z))
    assert in_groups == (jax.default_backend() == "cpu" and jax.device_count() == 1)


def test_worlds_of_their_own_show_their_own_images(world, random_world, decoded, monkeypatch):
    monkeypatch.setattr(world_model, "_DECODED_AT_ONCE", 1)
    z, alone = decoded
    worlds = jax.tree.map(lambda *leaves: jnp.stack(leaves), world, random_world(1))
    images = jax.vmap(lambda one, z: one.decode(z))(worlds, z[:2])
    np.testing.assert_allclose(images[0], alone[0], atol=1)
    np.testing.assert_allclose(images[1], random_world(1).decode(z[1]), atol=1)


def test_an_image_has_no_gradient(world, decoded):
    def darkness(z):
        return jnp.sum(jax.vmap(world.decode)(z).astype(jnp.float32)) + jnp.sum(z)

    np.testing.assert_array_equal(jax.grad(darkness)(decoded[0]), 1.0)
