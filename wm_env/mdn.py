"""Mixture density over the next latent: one mixture of normals for each latent dimension, or one
for all of them.

Source: Bishop 1994, "Mixture density networks"; Ha & Schmidhuber 2018, "World models", appendix A.2
(temperature as in Ha & Eck 2017, "A neural representation of sketch drawings", section 3.3).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)

# Below this a temperature only asks for the likeliest component; dividing by less would overflow.
_LEAST_LOGIT_TEMPERATURE = 1e-6


class Mixture(eqx.Module):
    """`k` normals for each of `z` latent dimensions.

    `log_pi` is normalised over `k`; `log_sigma` is the log of the standard deviation. With m = z
    every dimension chooses its component by itself, with m = 1 all share one choice.
    """

    log_pi: Float[Array, "m k"]
    mu: Float[Array, "z k"]
    log_sigma: Float[Array, "z k"]


def log_prob(mixture: Mixture, z: Float[Array, "z"]) -> Float[Array, "m"]:
    """Log density of each latent dimension in nats; [1], of all, where they share a choice.

    Source: Bishop 1994, equations 22-29.
    """
    residual = (z[:, None] - mixture.mu) * jnp.exp(-mixture.log_sigma)
    log_normal = -0.5 * residual**2 - mixture.log_sigma - _HALF_LOG_TWO_PI
    if len(mixture.log_pi) == 1:
        log_normal = jnp.sum(log_normal, axis=0, keepdims=True)
    return jax.nn.logsumexp(mixture.log_pi + log_normal, axis=1)


def mean(mixture: Mixture) -> Float[Array, "z"]:
    """Expectation of each latent dimension at temperature 1."""
    return jnp.sum(jnp.exp(mixture.log_pi) * mixture.mu, axis=1)


def variance(mixture: Mixture) -> Float[Array, "z"]:
    """Variance of each latent dimension at temperature 1 (law of total variance)."""
    pi = jnp.exp(mixture.log_pi)
    centred = mixture.mu - mean(mixture)[:, None]
    return jnp.sum(pi * (jnp.exp(2.0 * mixture.log_sigma) + centred**2), axis=1)


def sample(
    mixture: Mixture, *, key: PRNGKeyArray, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "z"]:
    """Draw every latent dimension; a `temperature` >= 0 calms the dream (< 1) or stirs it (> 1)."""
    key_mixture, key_noise = jax.random.split(key)
    size = mixture.mu.shape[:1]
    uniform = jax.random.uniform(key_mixture, size)
    normal = jax.random.normal(key_noise, size)
    return sample_from_noise(mixture, uniform, normal, temperature=temperature)


def sample_from_noise(
    mixture: Mixture,
    uniform: Float[Array, "z"],
    normal: Float[Array, "z"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "z"]:
    """The draw that `uniform` in [0, 1) and standard `normal` numbers stand for.

    Temperature divides the logits and multiplies the variance (Ha & Eck 2017, equation 8). The
    value is differentiable in `mu` and `log_sigma` (reparameterised); the choice of a component
    passes no gradient.
    """
    tau = jnp.maximum(temperature, _LEAST_LOGIT_TEMPERATURE)
    logits = mixture.log_pi / tau
    weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    threshold = uniform[: len(weights)] * jnp.sum(weights, axis=1)
    # Inverse CDF, unrolled over the few components: one uniform a choice, where Gumbel noise would
    # need k of them.
    mu, log_sigma, below = mixture.mu[:, 0], mixture.log_sigma[:, 0], weights[:, 0]
    for component in range(1, mixture.mu.shape[1]):
        further = threshold >= below
        mu = jnp.where(further, mixture.mu[:, component], mu)
        log_sigma = jnp.where(further, mixture.log_sigma[:, component], log_sigma)
        below = below + weights[:, component]
    return mu + jnp.exp(log_sigma) * jnp.sqrt(temperature) * normal
