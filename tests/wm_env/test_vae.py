"""What V shows of an image: the posterior's mean, or a draw that is the same for all who look."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from wm_env.vae import VAE, VAEConfig

SMALL = VAEConfig(latent_size=4, encoder_channels=(2,) * 4, decoder_channels=(2,) * 3)
IMAGES = jax.random.randint(jax.random.key(1), (200, 64, 64, 3), 0, 256).astype(jnp.uint8)


@pytest.fixture(scope="module")
def means():
    return VAE(SMALL, key=jax.random.key(0))


@pytest.fixture(scope="module")
def draws():
    return VAE(dataclasses.replace(SMALL, sampled=True), key=jax.random.key(0))


def test_v_shows_the_mean_of_its_posterior(means):
    np.testing.assert_array_equal(means.latent(IMAGES[0]), means.encode(IMAGES[0]).mu)


def test_or_draws_of_it_whose_noise_is_standard_normal(draws):
    posterior = jax.vmap(draws.encode)(IMAGES)
    noise = (jax.vmap(draws.latent)(IMAGES) - posterior.mu) / jnp.exp(posterior.log_sigma)
    assert stats.kstest(np.asarray(noise).ravel(), "norm").pvalue > 1e-3


def test_whoever_looks_at_an_image_sees_the_same_draw(draws):
    alone = draws.latent(IMAGES[3])
    np.testing.assert_allclose(jax.jit(jax.vmap(draws.latent))(IMAGES)[3], alone, atol=1e-5)
    as_floats = IMAGES[3].astype(jnp.float32) / 255.0
    np.testing.assert_allclose(draws.latent(as_floats), alone, atol=1e-5)


def test_images_with_the_same_pixels_in_other_places_are_drawn_apart(draws):
    one, other = (
        (draws.latent(image) - draws.encode(image).mu) / jnp.exp(draws.encode(image).log_sigma)
        for image in (IMAGES[0], IMAGES[0][::-1])
    )
    assert np.min(np.abs(one - other)) > 1e-3


@pytest.mark.parametrize("config", [SMALL, VAEConfig()], ids=["small", "paper"])
def test_the_packed_decoder_paints_what_v_does(config):
    vae = VAE(config, key=jax.random.key(0))
    packed = vae.packed()
    z = jax.random.normal(jax.random.key(1), (3, config.latent_size))
    np.testing.assert_allclose(jax.vmap(packed.decode)(z), jax.vmap(vae.decode)(z), atol=1e-5)
    assert packed.packed() is packed
