"""Fitting M: what happens next, given the latent that the driver saw and what it did."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from safetensors import safe_open

from training.dataset import Windows, WindowStream
from training.devices import is_first, own_share, wait_for_all
from training.fit import FitConfig, adam, data_name, fit
from training.latents import LatentShard
from wm_env import mdn
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.mdn_rnn import MDNRNN, Carry, MDNRNNConfig, Prediction
from wm_env.world_model import Z_LIMIT


@dataclass(frozen=True)
class MemoryConfig(FitConfig):
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
    length: int = 100
    burn_in: int = 20
    steps: int = 4000
    learning_rate: float = 1.5e-3
    warm_up: int = 50
    every: int = 50


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


def new_state(config: MemoryConfig, mdn_rnn: MDNRNN | None = None) -> MemoryState:
    """A fresh M (or one to fine-tune) with a fresh optimizer."""
    mdn_rnn = mdn_rnn or MDNRNN(config.mdn_rnn, key=jax.random.key(config.seed))
    return MemoryState(mdn_rnn, adam(config).init(eqx.filter(mdn_rnn, eqx.is_array)))


def make_batch_loss(
    config: MemoryConfig,
) -> Callable[[MDNRNN, Windows, Array], tuple[Array, dict[str, Array]]]:
    """`batch_loss(mdn_rnn, windows [b, ...], key)`: the mean loss of a step, and its parts."""

    def batch_loss(mdn_rnn: MDNRNN, windows: Windows, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, len(windows.z))
        losses, parts = jax.vmap(
            lambda window, key: memory_loss(mdn_rnn, window, key=key, config=config)
        )(windows, keys)
        count = jnp.maximum(windows.weight.sum(), 1.0)
        return losses.sum() / count, jax.tree.map(lambda part: part.sum() / count, parts)

    return batch_loss


def make_train_step(
    config: MemoryConfig,
) -> Callable[[MemoryState, Windows, Array], tuple[MemoryState, dict[str, Array]]]:
    """`train_step(state, windows [b, ...], key)`, compiled. The state that goes in is used up."""
    optimizer = adam(config)
    gradient_of = eqx.filter_value_and_grad(make_batch_loss(config), has_aux=True)

    @eqx.filter_jit(donate="all-except-first")
    def train_step(
        windows: Windows, state: MemoryState, key: Array
    ) -> tuple[MemoryState, dict[str, Array]]:
        (loss, parts), gradient = gradient_of(state.mdn_rnn, windows, key)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        mdn_rnn = eqx.apply_updates(state.mdn_rnn, updates)
        return MemoryState(mdn_rnn, optimizer_state), {"loss": loss, **parts}

    return lambda state, windows, key: train_step(windows, state, key)


def fit_memory(
    shards: list[LatentShard], config: MemoryConfig, out: Path, *, begin_from: MDNRNN | None = None
) -> MDNRNN:
    """Fit M on latents; goes on from `out/checkpoint.safetensors`.

    Leaves `mdn_rnn.safetensors` and metrics in `out`. `begin_from` is used up.
    """
    stream = partial(WindowStream, length=config.length, burn_in=config.burn_in, seed=config.seed)
    validating = min(32, sum(len(shard.rows) > 1 for shard in shards))  # those that hold one out
    held_out = next(stream(shards, batch=max(1, validating), held_out=True, group=96).batches())
    batch_loss = make_batch_loss(config)
    evaluate = jax.jit(lambda mdn_rnn, windows: batch_loss(mdn_rnn, windows, jax.random.key(1)))

    def validate(mdn_rnn: MDNRNN) -> dict[str, float]:
        loss, parts = evaluate(mdn_rnn, held_out)
        return {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}

    def batches(step: int) -> Iterator[Windows]:
        share = config.batch // jax.process_count()
        return stream(own_share(shards), batch=share).batches(step)

    mdn_rnn = fit(
        "M",
        new_state(config, begin_from),
        make_train_step(config),
        batches,
        validate,
        config=config,
        data=data_name([_mark(shard) for shard in shards]),
        out=out,
        unit=config.length,
    )
    if is_first():
        save_checkpoint(mdn_rnn, config.steps, out / "mdn_rnn.safetensors")
    wait_for_all("M is written")
    return mdn_rnn


def _mark(shard: LatentShard) -> str:
    """What a latent file was made from: the V and the images."""
    with safe_open(shard.path, framework="numpy") as file:
        return json.dumps(file.metadata(), sort_keys=True)


def load_memory(config: MemoryConfig, out: Path) -> MDNRNN:
    """The M that `fit_memory` left in `out`."""
    return load_checkpoint(new_state(config).mdn_rnn, out / "mdn_rnn.safetensors")[0]
