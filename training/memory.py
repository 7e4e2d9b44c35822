"""Fitting M: what happens next, given the latent that the driver saw and what it did."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from training.dataset import Windows, WindowStream
from training.fit import fit
from training.latents import LatentShard
from wm_env import mdn
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.mdn_rnn import MDNRNN, Carry, MDNRNNConfig, Prediction
from wm_env.world_model import Z_LIMIT


@dataclass(frozen=True)
class MemoryConfig:
    """How M is fitted.

    M sees the posterior means, as the driver does, plus noise of standard deviation `latent_noise`,
    which keeps the density from becoming needle-sharp. `posterior_noise` adds that share of V's own
    uncertainty (1: posterior samples, as in the paper). Each window draws from `own_shares` the
    share of its steps at which M sees its own sample instead of the real latent (scheduled
    sampling, Bengio et al. 2015). Without it M has never seen what its dreams look like once they
    stray: it then puts the car back on the road, and whoever is evolved there drives blind. The
    weights of tiles and off-field are the seed project's, over log-likelihoods instead of its
    squared errors.
    """

    mdn_rnn: MDNRNNConfig = MDNRNNConfig()
    latent_noise: float = 0.02
    posterior_noise: float = 0.0
    own_shares: tuple[float, ...] = (0.0, 0.3, 0.6)
    tiles_weight: float = 10.0
    off_field_weight: float = 10.0
    batch: int = 128
    length: int = 100
    burn_in: int = 20
    steps: int = 4000
    learning_rate: float = 1.5e-3
    clip: float = 1.0
    seed: int = 0


class MemoryState(NamedTuple):
    """M and its optimizer's state."""

    mdn_rnn: MDNRNN
    optimizer: optax.OptState


def hidden_states(mdn_rnn: MDNRNN, z: Float[Array, "t z"], actions: Float[Array, "t a"]) -> Carry:
    """The carries [t, h] after each (z_t, a_t), from h = 0."""

    def advance(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, Carry]:
        carry = mdn_rnn.advance_carry(*inputs, carry)
        return carry, carry

    return jax.lax.scan(advance, mdn_rnn.initial_carry(), (z, actions))[1]


def half_dreamt(
    mdn_rnn: MDNRNN,
    z: Float[Array, "t z"],
    actions: Float[Array, "t a"],
    *,
    shares: Float[Array, " n"],
    key: Array,
    mask: Float[Array, " h"] | None = None,
) -> Prediction:
    """What M expects of each step [t, ...] where some latents are its own samples.

    One of `shares` is drawn for all steps; no gradient flows through the samples.
    """
    key_share, key_own, key_samples = jax.random.split(key, 3)
    share = jax.random.choice(key_share, shares)
    own = jax.random.bernoulli(key_own, share, (len(z),)).at[0].set(False)

    def advance(
        state: tuple[Carry, Array], inputs: tuple[Array, ...]
    ) -> tuple[tuple[Carry, Array], Prediction]:
        carry, dreamt = state
        seen, action, is_own, key = inputs
        prediction, carry = mdn_rnn.step(jnp.where(is_own, dreamt, seen), action, carry, mask=mask)
        dreamt = jnp.clip(mdn.sample(prediction.mixture, key=key), -Z_LIMIT, Z_LIMIT)
        return (carry, jax.lax.stop_gradient(dreamt)), prediction

    inputs = (z, actions, own, jax.random.split(key_samples, len(z)))
    return jax.lax.scan(advance, (mdn_rnn.initial_carry(), z[0]), inputs)[1]


def memory_loss(
    mdn_rnn: MDNRNN, window: Windows, *, key: Array, config: MemoryConfig
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Sum over a window's steps of nats for z', tiles and off-field, each weighted; and its parts.

    Tiles are Poisson: their log-likelihood is tiles * log(rate) - rate, up to a constant of the
    data. Source: Ha & Schmidhuber (2018), A.2, for the mixture; the other heads replace the seed's
    reward and done.
    """
    key_noise, key_mask, key_dream = jax.random.split(key, 3)
    deviation = config.latent_noise + config.posterior_noise * jnp.exp(window.log_sigma)
    z = jnp.asarray(window.z) + deviation * jax.random.normal(key_noise, window.z.shape)
    rate = config.mdn_rnn.dropout
    mask = None
    if rate > 0.0:
        keep = jax.random.bernoulli(key_mask, 1.0 - rate, (config.mdn_rnn.hidden_size,))
        mask = jnp.where(keep, 1.0 / (1.0 - rate), 0.0)
    shares = jnp.asarray(config.own_shares)
    predictions = half_dreamt(
        mdn_rnn, z[:-1], jnp.asarray(window.actions), shares=shares, mask=mask, key=key_dream
    )
    next_z = -jnp.sum(jax.vmap(mdn.log_prob)(predictions.mixture, z[1:]), axis=1)
    log_tiles = jnp.minimum(predictions.log_tiles, 3.0)
    tiles = jnp.exp(log_tiles) - window.tiles * log_tiles
    off_field = optax.sigmoid_binary_cross_entropy(predictions.off_field, window.off_field)
    parts = {"next_z": next_z, "tiles": tiles, "off_field": off_field}
    parts = {name: jnp.sum(part * window.weight) for name, part in parts.items()}
    loss = (
        parts["next_z"]
        + config.tiles_weight * parts["tiles"]
        + config.off_field_weight * parts["off_field"]
    )
    return loss, parts


def _optimizer(config: MemoryConfig) -> optax.GradientTransformation:
    warm = min(50, config.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warm, config.steps, config.learning_rate * 0.02
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))


def new_state(config: MemoryConfig, mdn_rnn: MDNRNN | None = None) -> MemoryState:
    """A fresh M (or one to fine-tune) with a fresh optimizer."""
    mdn_rnn = mdn_rnn or MDNRNN(config.mdn_rnn, key=jax.random.key(config.seed))
    return MemoryState(mdn_rnn, _optimizer(config).init(eqx.filter(mdn_rnn, eqx.is_array)))


def fit_memory(
    shards: list[LatentShard], config: MemoryConfig, out: Path, *, begin_from: MDNRNN | None = None
) -> MDNRNN:
    """Fit M on latents; resumes from `out/checkpoint.safetensors`, leaves metrics in `out`."""
    optimizer = _optimizer(config)

    def batch_loss(mdn_rnn: MDNRNN, windows: Windows, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, len(windows.z))
        losses, parts = jax.vmap(
            lambda window, key: memory_loss(mdn_rnn, window, key=key, config=config)
        )(windows, keys)
        count = jnp.maximum(windows.weight.sum(), 1.0)
        return losses.sum() / count, jax.tree.map(lambda part: part.sum() / count, parts)

    @eqx.filter_jit(donate="all-except-first")
    def train_step(
        windows: Windows, state: MemoryState, key: Array
    ) -> tuple[MemoryState, dict[str, Array]]:
        (loss, parts), gradient = eqx.filter_value_and_grad(batch_loss, has_aux=True)(
            state.mdn_rnn, windows, key
        )
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        return MemoryState(eqx.apply_updates(state.mdn_rnn, updates), optimizer_state), {
            "loss": loss,
            **parts,
        }

    state, start = new_state(config, begin_from), 0
    if (out / "checkpoint.safetensors").exists():
        state, start = load_checkpoint(state, out / "checkpoint.safetensors", asdict(config))
    stream = partial(
        WindowStream, shards, length=config.length, burn_in=config.burn_in, seed=config.seed
    )
    held_out = next(stream(batch=min(32, len(shards)), held_out=True, group=96).batches())
    evaluate = eqx.filter_jit(batch_loss)

    def validate(state: MemoryState) -> dict[str, float]:
        loss, parts = evaluate(state.mdn_rnn, held_out, jax.random.key(1))
        return {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}

    state = fit(
        "M",
        state,
        lambda state, windows, key: train_step(windows, state, key),
        stream(batch=config.batch).batches(start),
        steps=config.steps,
        start=start,
        out=out,
        config=asdict(config),
        key=jax.random.key(config.seed + 1),
        examples_a_batch=config.batch * config.length,
        validate=validate,
        every=50,
    )
    save_checkpoint(state.mdn_rnn, config.steps, out / "mdn_rnn.safetensors")
    return state.mdn_rnn


def load_memory(config: MemoryConfig, out: Path) -> MDNRNN:
    """The M that `fit_memory` left in `out`."""
    return load_checkpoint(new_state(config).mdn_rnn, out / "mdn_rnn.safetensors")[0]
