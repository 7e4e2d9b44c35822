"""What M is fitted to: how a window of real driving goes on, in nats, tiles and falls."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float

from training.dataset import Windows
from training.fit import FitConfig
from wm_env import mdn
from wm_env.mdn_rnn import MDNRNN, Carry, MDNRNNConfig, Prediction
from wm_env.reward import TYPICAL_TRACK_TILES
from wm_env.world_model import Z_LIMIT


@dataclass(frozen=True)
class MemoryConfig(FitConfig):
    """How M is fitted.

    M sees the posterior means, as the driver does, plus noise of standard deviation `latent_noise`,
    which keeps the density from becoming needle-sharp. `posterior_noise` adds that share of V's own
    uncertainty (1: posterior samples). Drivers do not see it, so what they do then tells M what the
    road was like; where V is `sampled`, they see the draws that M does. Each window draws from
    `own_shares` the share of its steps at which M sees its own sample instead of the real latent
    (scheduled sampling, Bengio et al. 2015). Without it M has never seen what its dreams look like
    once they stray: it then puts the car back on the road, and whoever is evolved there drives
    blind, unless it has seen posterior samples, which stray as much. But where M saw a sample, what
    the driver did tells it what the road really was, so that dreamt roads come to obey the driver;
    not `own_foretold`, such a step's next latent is not M's to foretell, and the samples are only
    what it has lived through.

    An M that follows the car's motion is told it at each step; what the part that keeps track of it
    makes of a frame, on the ground that was there, is compared with the next, as is where M saw the
    car: errors are squared, beyond 1 linear.

    Frames around those at which the road is lost weigh `trouble_weight` times as much as others:
    only there does what the car does not tell what the road is like. Held-out losses are weighed
    alike, and so cannot be compared with those of another weight. The parts of the loss are weighed
    too; expecting more tiles than were hit costs `asymmetry` times as
    much, and missing a fall `fall_weight` times as much as inventing one. The seed project's are
    10, 10, 5 and 1, over squared errors. `length` None fits on whole episodes, from h = 0.
    `members` M's of different seeds are fitted at once, on the same windows, for an ensemble.
    """

    mdn_rnn: MDNRNNConfig = MDNRNNConfig()
    latent_noise: float = 0.02
    posterior_noise: float = 0.0
    own_shares: tuple[float, ...] = (0.0, 0.3, 0.6)
    own_foretold: bool = True
    next_z_weight: float = 1.0
    tiles_weight: float = 10.0
    off_field_weight: float = 10.0
    motion_weight: float = 3.0
    trouble_weight: float = 1.0
    asymmetry: float = 1.0
    fall_weight: float = 1.0
    length: int | None = 100
    burn_in: int = 20
    members: int = 1
    steps: int = 4000
    learning_rate: float = 1.5e-3
    warm_up: int = 50
    every: int = 50


def memory_loss(
    mdn_rnn: MDNRNN, window: Windows, *, key: Array, config: MemoryConfig
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Sum over a window's steps of nats for z', tiles and off-field, each weighed; and its parts.

    Source: Ha & Schmidhuber (2018), A.2, for the mixture; the other heads replace the seed's
    reward and done.
    """
    key_noise, key_mask, key_dream = jax.random.split(key, 3)
    deviation = config.latent_noise + config.posterior_noise * jnp.exp(window.log_sigma)
    z = jnp.asarray(window.z) + deviation * jax.random.normal(key_noise, window.z.shape)
    mask = _dropout_mask(key_mask, config.mdn_rnn)
    known = jnp.asarray(window.motion)
    predictions, motion, own = half_dreamt(
        mdn_rnn,
        z[:-1],
        jnp.asarray(window.actions),
        shares=config.own_shares,
        mask=mask,
        key=key_dream,
        told=known[1:],
    )
    next_z = -jnp.sum(jax.vmap(mdn.log_prob)(predictions.mixture, z[1:]), axis=1)
    if not config.own_foretold:
        next_z = jnp.where(own, 0.0, next_z)
    falls = window.off_field * (config.fall_weight - 1.0) + 1.0
    off_field = falls * optax.sigmoid_binary_cross_entropy(predictions.off_field, window.off_field)
    tiles = _tiles_loss(predictions.tiles, window, config)
    parts = {"next_z": next_z, "tiles": tiles, "off_field": off_field}
    if mdn_rnn.motion is not None and motion is not None:
        # A frame at a time: errors of a spinning car grow so fast that they would drown the others.
        driven = jax.vmap(mdn_rnn.motion.drive)(known[:-1], jnp.asarray(window.actions))
        found = jnp.concatenate([driven, motion[:, -1:]], axis=1)
        parts["motion"] = 2.0 * jnp.sum(optax.huber_loss(found, known[1:]), axis=1)
    parts = {name: jnp.sum(part * window.weight) for name, part in parts.items()}
    loss = sum(getattr(config, f"{name}_weight") * part for name, part in parts.items())
    return jnp.asarray(loss), parts


class HalfDreamt(NamedTuple):
    """What M expects of each step, the motion in its carry after it, if any, and whether it saw its
    own sample there."""

    prediction: Prediction
    motion: Float[Array, "t m"] | None
    own: Bool[Array, " t"]


def half_dreamt(
    mdn_rnn: MDNRNN,
    z: Float[Array, "t z"],
    actions: Float[Array, "t a"],
    *,
    shares: tuple[float, ...],
    key: Array,
    mask: Float[Array, " h"] | None = None,
    told: Float[Array, "t m"] | None = None,
) -> HalfDreamt:
    """What M expects of each step [t, ...] where some latents are its own samples.

    One of `shares` is drawn for all steps; no gradient flows through the samples. `told` is the
    motion after each step, see `MDNRNN.advance_carry`.
    """
    if not any(shares):
        carries = mdn_rnn.unroll(z, actions, mask=mask, told=told)
        predictions = jax.vmap(mdn_rnn.predict)(carries.h)
        return HalfDreamt(predictions, carries.motion, own=jnp.zeros(len(z), bool))
    key_share, key_own, key_uniform, key_normal = jax.random.split(key, 4)
    share = jax.random.choice(key_share, jnp.asarray(shares))
    own = jax.random.bernoulli(key_own, share, (len(z),)).at[0].set(False)

    def advance(
        state: tuple[Carry, Array], inputs: tuple[Any, ...]
    ) -> tuple[tuple[Carry, Array], tuple]:
        carry, dreamt = state
        seen, action, told, is_own, uniform, normal = inputs
        seen = jnp.where(is_own, dreamt, seen)
        prediction, carry = mdn_rnn.step(seen, action, carry, mask=mask, told=told)
        dreamt = mdn.sample_from_noise(prediction.mixture, uniform, normal)
        dreamt = jax.lax.stop_gradient(jnp.clip(dreamt, -Z_LIMIT, Z_LIMIT))
        return (carry, dreamt), (prediction, carry.motion)

    # The noise of all steps at once: in the scan a key and three draws a step would cost more.
    noise = jax.random.uniform(key_uniform, z.shape), jax.random.normal(key_normal, z.shape)
    begin = mdn_rnn.initial_carry(), z[0]
    after = jax.lax.scan(advance, begin, (z, actions, told, own, *noise))[1]
    return HalfDreamt(*after, own=own)


def _tiles_loss(
    output: Float[Array, " t"], window: Windows, config: MemoryConfig
) -> Float[Array, " t"]:
    """Half the deviance of a Poisson rate, or squared error: 0 where the expectation is right."""
    target = jnp.asarray(window.tiles)
    if config.mdn_rnn.tiles == "poisson":
        log_rate = jnp.minimum(output, 3.0)
        expected = jnp.exp(log_rate)
        loss = expected - target + xlogy(target, target) - target * log_rate
    else:
        if config.mdn_rnn.tiles == "reward":
            target = target * (TYPICAL_TRACK_TILES / window.track_tiles)
        expected, loss = output, jnp.square(output - target)
    return jnp.where(expected > target, config.asymmetry, 1.0) * loss


def _dropout_mask(key: Array, config: MDNRNNConfig) -> Float[Array, " h"] | None:
    if config.dropout == 0.0:
        return None
    keep = jax.random.bernoulli(key, 1.0 - config.dropout, (config.hidden_size,))
    return jnp.where(keep, 1.0 / (1.0 - config.dropout), 0.0)
