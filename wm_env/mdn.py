"""Mixture density over the next latent: one mixture of normals for each latent dimension, or one
for all of them.

Source: Bishop 1994, "Mixture density networks"; Ha & Schmidhuber 2018, "World models", appendix A.2
(temperature as in Ha & Eck 2017, "A neural representation of sketch drawings", section 3.3).
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Without the lower bound a latent dimension that hardly moves drives its density to infinity.
LOG_SIGMA_MIN = -5.0
LOG_SIGMA_MAX = 3.0

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)

# Below this a temperature only asks for the likeliest component; dividing by less would overflow.
_LEAST_LOGIT_TEMPERATURE = 1e-6

_BLOCK = 8  # dimensions of a latent that are solved for before the next are looked at


class Mixture(eqx.Module):
    """`k` normals for each of `z` latent dimensions.

    `logits` are of the components, `raw_log_sigma` is the log of the standard deviation before it
    is bounded: a draw has to normalise the ones and bound the other for what it chose only. With
    m = z every dimension chooses its component by itself, with m = 1 all share one choice. With
    `whitening`, unit lower triangular, the mixtures are those of y = whitening @ latent: dimensions
    of the latent vary together.
    """

    logits: Float[Array, "m k"]
    mu: Float[Array, "z k"]
    raw_log_sigma: Float[Array, "z k"]
    whitening: Float[Array, "z z"] | None = None

    @property
    def log_pi(self) -> Float[Array, "m k"]:
        """Log weights of the components, normalised over `k`."""
        return jax.nn.log_softmax(self.logits, axis=1)

    @property
    def log_sigma(self) -> Float[Array, "z k"]:
        """Log standard deviations, in LOG_SIGMA_MIN..LOG_SIGMA_MAX."""
        return _bounded(self.raw_log_sigma)


def log_prob(mixture: Mixture, z: Float[Array, "z"]) -> Float[Array, "m"]:
    """Log density of each latent dimension in nats; [1], of all, where they share a choice.

    With whitening they are those of y, whose sum is that of z: its determinant is 1.

    Source: Bishop 1994, equations 22-29.
    """
    if mixture.whitening is not None:
        z = mixture.whitening @ z
    log_sigma = mixture.log_sigma
    residual = (z[:, None] - mixture.mu) * jnp.exp(-log_sigma)
    log_normal = -0.5 * residual**2 - log_sigma - _HALF_LOG_TWO_PI
    if len(mixture.logits) == 1:
        log_normal = jnp.sum(log_normal, axis=0, keepdims=True)
    return jax.nn.logsumexp(mixture.log_pi + log_normal, axis=1)


def mean(mixture: Mixture) -> Float[Array, "z"]:
    """Expectation of each latent dimension at temperature 1."""
    return _to_latent(mixture, _mean(mixture))


def variance(mixture: Mixture) -> Float[Array, "z"]:
    """Variance of each latent dimension at temperature 1 (law of total variance)."""
    pi = jnp.exp(mixture.log_pi)
    centred = mixture.mu - _mean(mixture)[:, None]
    own = jnp.sum(pi * (jnp.exp(2.0 * mixture.log_sigma) + centred**2), axis=1)
    if mixture.whitening is None:
        return own
    columns = jax.vmap(_solve, in_axes=(None, 0))(mixture.whitening, jnp.eye(len(own)))
    return own @ jnp.square(columns)


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
    value is differentiable in `mu` and `raw_log_sigma` (reparameterised); the choice of a component
    passes no gradient.
    """
    tau = jnp.maximum(temperature, _LEAST_LOGIT_TEMPERATURE)
    logits = mixture.logits / tau
    # Component by component: a reduction over so short an axis would be a pass of its own.
    weights = jnp.exp(logits - functools.reduce(jnp.maximum, _columns(logits))[:, None])
    threshold = uniform[: len(weights)] * functools.reduce(jnp.add, _columns(weights))
    # Inverse CDF, unrolled over the few components: one uniform a choice, where Gumbel noise would
    # need k of them.
    components = zip(*map(_columns, (weights, mixture.mu, mixture.raw_log_sigma)), strict=True)
    below, mu, raw = next(components)
    for weight, further_mu, further_raw in components:
        further = threshold >= below
        mu = jnp.where(further, further_mu, mu)
        raw = jnp.where(further, further_raw, raw)
        below = below + weight
    return _to_latent(mixture, mu + jnp.exp(_bounded(raw)) * jnp.sqrt(temperature) * normal)


def _columns(array: Float[Array, "n k"]) -> list[Float[Array, "n"]]:
    return [array[:, component] for component in range(array.shape[1])]


def _bounded(raw: Float[Array, "..."]) -> Float[Array, "..."]:
    # A soft floor: a hard clip would pass no gradient to a component that has become too narrow.
    floored = LOG_SIGMA_MIN + jax.nn.softplus(raw - LOG_SIGMA_MIN)
    return jnp.minimum(floored, LOG_SIGMA_MAX)


def _mean(mixture: Mixture) -> Float[Array, "z"]:
    return jnp.sum(jnp.exp(mixture.log_pi) * mixture.mu, axis=1)


def _to_latent(mixture: Mixture, y: Float[Array, "z"]) -> Float[Array, "z"]:
    return y if mixture.whitening is None else _solve(mixture.whitening, y)


def _solve(whitening: Float[Array, "z z"], y: Float[Array, "z"]) -> Float[Array, "z"]:
    """The latent whose whitening @ latent is y, by forward substitution in blocks.

    XLA's triangular solve takes six times as long for a batch of such small ones on a CPU.
    """
    latent = y[:0]
    for begin in range(0, len(y), _BLOCK):
        rows = whitening[begin : begin + _BLOCK]
        block = y[begin : begin + _BLOCK] - rows[:, :begin] @ latent
        for index in range(len(block) - 1):
            column = jnp.where(jnp.arange(len(block)) > index, rows[:, begin + index], 0.0)
            block = block - column * block[index]
        latent = jnp.concatenate([latent, block])
    return latent
