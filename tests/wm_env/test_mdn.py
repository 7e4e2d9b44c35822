"""The mixture density against scipy; its sampler against the moments of the temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from wm_env import mdn

LATENTS, COMPONENTS = 4, 5


@pytest.fixture(scope="module")
def mixture():
    keys = jax.random.split(jax.random.key(3), 3)
    shape = (LATENTS, COMPONENTS)
    return mdn.Mixture(
        logits=jax.random.normal(keys[0], shape),
        mu=2.0 * jax.random.normal(keys[1], shape),
        raw_log_sigma=0.5 * jax.random.normal(keys[2], shape) - 0.5,
    )


def tempered(mixture, tau):
    """pi, mu and sigma at a temperature, in float64 numpy."""
    logits = np.asarray(mixture.log_pi, np.float64) / tau
    pi = np.exp(logits - logits.max(axis=1, keepdims=True))
    pi /= pi.sum(axis=1, keepdims=True)
    sigma = np.exp(np.asarray(mixture.log_sigma, np.float64)) * np.sqrt(tau)
    return pi, np.asarray(mixture.mu, np.float64), sigma


def draws(mixture, tau, count=100_000, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(
        jax.jit(jax.vmap(lambda key: mdn.sample(mixture, key=key, temperature=tau)))(keys)
    )


def test_log_prob_equals_scipy(mixture):
    z = jnp.array([-3.0, 0.0, 0.4, 5.0])
    pi, mu, sigma = tempered(mixture, 1.0)
    expected = np.log((pi * stats.norm.pdf(np.asarray(z)[:, None], mu, sigma)).sum(axis=1))
    np.testing.assert_allclose(mdn.log_prob(mixture, z), expected, rtol=1e-4)


def test_log_prob_is_finite_far_from_every_component(mixture):
    value, slope = jax.value_and_grad(lambda z: mdn.log_prob(mixture, z).sum())(
        jnp.full(LATENTS, 1e3)
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


def test_density_integrates_to_one(mixture):
    grid = jnp.linspace(-20.0, 20.0, 20_001)
    density = jax.vmap(lambda x: jnp.exp(mdn.log_prob(mixture, jnp.full(LATENTS, x))))(grid)
    np.testing.assert_allclose(np.trapezoid(density, grid, axis=0), 1.0, rtol=1e-3)


def test_mean_and_variance_equal_the_closed_form(mixture):
    pi, mu, sigma = tempered(mixture, 1.0)
    mean = (pi * mu).sum(axis=1)
    variance = (pi * (sigma**2 + mu**2)).sum(axis=1) - mean**2
    np.testing.assert_allclose(mdn.mean(mixture), mean, rtol=1e-4)
    np.testing.assert_allclose(mdn.variance(mixture), variance, rtol=1e-4)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 1.3, 3.0])
def test_samples_have_the_moments_of_the_temperature(mixture, tau):
    pi, mu, sigma = tempered(mixture, tau)
    mean = (pi * mu).sum(axis=1)
    variance = (pi * (sigma**2 + mu**2)).sum(axis=1) - mean**2
    samples = draws(mixture, tau)
    standard_error = np.sqrt(variance / len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * standard_error)
    np.testing.assert_allclose(samples.var(axis=0), variance, rtol=0.05)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
def test_samples_follow_the_tempered_distribution(mixture, tau):
    pi, mu, sigma = tempered(mixture, tau)
    samples = draws(mixture, tau, count=20_000, seed=1)
    for latent in range(LATENTS):

        def cdf(x, latent=latent):
            return (pi[latent] * stats.norm.cdf(x[:, None], mu[latent], sigma[latent])).sum(axis=1)

        assert stats.kstest(samples[:, latent], cdf).pvalue > 1e-4


def test_latent_dimensions_are_drawn_independently(mixture):
    correlation = np.corrcoef(draws(mixture, 1.0), rowvar=False)
    assert np.max(np.abs(correlation - np.eye(LATENTS))) < 0.02


def test_temperature_zero_is_the_mean_of_the_likeliest_component(mixture):
    sampled = mdn.sample(mixture, key=jax.random.key(0), temperature=0.0)
    likeliest = np.argmax(mixture.log_pi, axis=1)
    np.testing.assert_array_equal(sampled, np.asarray(mixture.mu)[np.arange(LATENTS), likeliest])


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_extreme_uniforms_choose_a_component(mixture, uniform):
    noise = jnp.zeros(LATENTS)
    z = mdn.sample_from_noise(mixture, jnp.full(LATENTS, uniform, jnp.float32), noise)
    edge = mixture.mu[:, 0] if uniform == 0.0 else mixture.mu[:, -1]
    np.testing.assert_array_equal(z, edge)


def test_samples_carry_gradients_of_mean_and_spread(mixture):
    key = jax.random.key(5)
    slopes = jax.grad(lambda m: mdn.sample(m, key=key, temperature=1.2).sum())(mixture)
    np.testing.assert_allclose(slopes.mu.sum(axis=1), 1.0)
    assert np.all(np.abs(slopes.raw_log_sigma).sum(axis=1) > 0)
    np.testing.assert_array_equal(slopes.logits, 0.0)


@pytest.fixture(scope="module")
def shared(mixture):
    return mdn.Mixture(mixture.logits[:1], mixture.mu, mixture.raw_log_sigma)


def test_one_choice_for_all_dimensions_has_the_density_of_a_joint_mixture(shared):
    z = jnp.array([-1.0, 0.0, 0.4, 1.0])
    pi, mu, sigma = tempered(shared, 1.0)
    joint = stats.norm.pdf(np.asarray(z)[:, None], mu, sigma).prod(axis=0)
    assert mdn.log_prob(shared, z).shape == (1,)
    np.testing.assert_allclose(mdn.log_prob(shared, z), np.log((pi * joint).sum()), rtol=1e-4)


def test_one_choice_for_all_dimensions_gives_their_samples_the_covariance_of_the_means(shared):
    pi, mu, sigma = tempered(shared, 1.0)
    centred = mu - (pi * mu).sum(axis=1, keepdims=True)
    expected = (pi * centred) @ centred.T + np.diag((pi * sigma**2).sum(axis=1))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.max(np.abs(expected - np.diag(np.diag(expected))) / scale) > 0.1
    assert np.max(np.abs(np.cov(draws(shared, 1.0), rowvar=False) - expected) / scale) < 0.03


def test_moments_of_a_shared_choice_are_those_of_its_margins(shared):
    own = mdn.Mixture(jnp.repeat(shared.logits, LATENTS, 0), shared.mu, shared.raw_log_sigma)
    np.testing.assert_allclose(mdn.mean(shared), mdn.mean(own), rtol=1e-5)
    np.testing.assert_allclose(mdn.variance(shared), mdn.variance(own), rtol=1e-5)


@pytest.fixture(scope="module")
def correlated():
    """One normal of eleven dimensions that vary together: more than are solved for in a block."""
    size, keys = 11, jax.random.split(jax.random.key(4), 3)
    below = jnp.tril(0.4 * jax.random.normal(keys[0], (size, size)), -1)
    return mdn.Mixture(
        logits=jnp.zeros((size, 1)),
        mu=jax.random.normal(keys[1], (size, 1)),
        raw_log_sigma=0.3 * jax.random.normal(keys[2], (size, 1)),
        whitening=jnp.eye(size) + below,
    )


def moments(mixture):
    """Mean and covariance of one whitened normal, in float64 numpy."""
    inverse = np.linalg.inv(np.asarray(mixture.whitening, np.float64))
    variance = np.exp(2.0 * np.asarray(mixture.log_sigma[:, 0], np.float64))
    return inverse @ np.asarray(mixture.mu[:, 0]), inverse * variance @ inverse.T


def test_the_density_of_a_correlated_normal_equals_scipys(correlated):
    z = jnp.linspace(-1.0, 2.0, 11)
    expected = stats.multivariate_normal(*moments(correlated)).logpdf(z)
    np.testing.assert_allclose(mdn.log_prob(correlated, z).sum(), expected, rtol=1e-4)


def test_correlated_moments_are_those_of_the_normal(correlated):
    mean, covariance = moments(correlated)
    np.testing.assert_allclose(mdn.mean(correlated), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mdn.variance(correlated), np.diag(covariance), rtol=1e-4)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_correlated_samples_vary_as_the_normal_does_times_the_temperature(correlated, tau):
    mean, covariance = moments(correlated)
    drawn = draws(correlated, tau)
    spread = np.sqrt(tau * np.diag(covariance))
    np.testing.assert_allclose((drawn.mean(axis=0) - mean) / spread, 0.0, atol=0.02)
    error = (np.cov(drawn.T) - tau * covariance) / np.outer(spread, spread)
    np.testing.assert_allclose(error, 0.0, atol=0.03)
