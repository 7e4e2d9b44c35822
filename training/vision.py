"""Fitting V on frames of every driver, mirrored half of the time where the task is symmetric.

The loss is the squared error plus beta times the KL divergence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, UInt8

from training.dataset import ImageStream, held_out_images
from training.devices import is_first, own_share, wait_for_all
from training.fit import FitConfig, adam, data_name, fit
from training.pictures import vision_pictures
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.preprocess import mirror
from wm_env.shard import Shard
from wm_env.task import CAR_RACING, Task
from wm_env.vae import VAE, VAEConfig
from wm_env.weights import digest_of

# By how much a colour exceeds the others where it stands out, of intensities in [0, 1]: half of
# what green does on the darker of CarRacing's two kinds of grass. On road it does not at all.
_STANDS_OUT = 0.2


@dataclass(frozen=True)
class VisionConfig(FitConfig):
    """How V is fitted.

    beta 0.1 without `tolerance`, the nats of KL a dimension that cost nothing, instead of the
    paper's 1 and 0.5: its posterior was mostly noise, and controllers evolved on it did not
    transfer. `emphasis` is how many times the squared error counts where an image shows more than
    the task's `ground`; of a task without one it has no effect.
    """

    vae: VAEConfig = VAEConfig()
    beta: float = 0.1
    tolerance: float = 0.0
    emphasis: float = 1.0
    steps: int = 2600
    clip: float = 200.0
    bfloat16: bool = False
    pictures_every: int = 300
    group: int = 32  # of images whose gradient is computed at once on a CPU: fits its caches


class VisionState(NamedTuple):
    """V and its optimizer's state."""

    vae: VAE
    optimizer: optax.OptState


def vision_loss(
    vae: VAE,
    image: UInt8[Array, "64 64 3"],
    *,
    key: Array,
    beta: float,
    tolerance: float = 0.0,
    emphasis: float = 1.0,
    ground: int | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Squared error summed over pixels plus beta * KL, of one image.

    In nats and squared intensities, of intensities in [0, 1]. A KL below `tolerance` nats a
    dimension costs what that would, so that nothing is won by lowering it further. Where the image
    is not of the `ground` colour errors count `emphasis` times, in the loss alone.

    Source: Kingma & Welling (2014), eq. 10; Higgins et al. (2017) for beta; Ha & Schmidhuber's
    code for the tolerance.
    """
    posterior = vae.encode(image, dtype=dtype)
    decoded = vae.decode(posterior.sample(key=key), dtype=dtype)
    intensities = image.astype(jnp.float32) / 255.0
    errors = jnp.square(decoded - intensities)
    weighted = jnp.where(_shows_ground(intensities, ground)[..., None], errors, emphasis * errors)
    mu, log_sigma = posterior.mu, posterior.log_sigma
    kl = 0.5 * jnp.sum(jnp.square(mu) + jnp.exp(2.0 * log_sigma) - 2.0 * log_sigma - 1.0)
    sigma = jnp.mean(jnp.exp(log_sigma))
    cost = beta * jnp.maximum(kl, tolerance * len(mu))
    parts = {"squared_error": jnp.sum(errors), "kl": kl, "sigma": sigma}
    return jnp.sum(weighted) + cost, parts


def _shows_ground(image: Float[Array, "64 64 3"], ground: int | None) -> Bool[Array, "64 64"]:
    """Where one colour stands out; everywhere, where the task has no such."""
    if ground is None:
        return jnp.ones(image.shape[:2], bool)
    others = [image[..., colour] for colour in range(3) if colour != ground]
    return image[..., ground] - jnp.maximum(*others) > _STANDS_OUT


def new_state(config: VisionConfig) -> VisionState:
    """A fresh V with its optimizer."""
    vae = VAE(config.vae, key=jax.random.key(config.seed))
    return VisionState(vae, adam(config).init(eqx.filter(vae, eqx.is_array)))


def make_batch_loss(
    config: VisionConfig, task: Task = CAR_RACING
) -> Callable[[VAE, Array, Array], tuple[Array, dict[str, Array]]]:
    """`batch_loss(vae, images [b, 64, 64, 3], keys [b])`: the mean loss and its parts."""
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32

    def batch_loss(vae: VAE, images: Array, keys: Array) -> tuple[Array, dict[str, Array]]:
        losses, parts = jax.vmap(
            lambda image, key: vision_loss(
                vae,
                image,
                key=key,
                beta=config.beta,
                tolerance=config.tolerance,
                emphasis=config.emphasis,
                ground=task.ground,
                dtype=dtype,
            )
        )(images, keys)
        return losses.mean(), jax.tree.map(jnp.mean, parts)

    return batch_loss


def make_train_step(
    config: VisionConfig, task: Task = CAR_RACING
) -> Callable[[VisionState, Array | np.ndarray, Array], tuple[VisionState, dict[str, Array]]]:
    """`train_step(state, images uint8 [b, 64, 64, 3], key)`, compiled.

    The state that goes in is used up. Images of a symmetric task are mirrored half of the time.
    """
    optimizer = adam(config)
    gradient_of = eqx.filter_value_and_grad(make_batch_loss(config, task), has_aux=True)
    group = config.group if jax.default_backend() == "cpu" else config.batch

    @eqx.filter_jit(donate="all-except-first")
    def train_step(
        images: Array, state: VisionState, key: Array
    ) -> tuple[VisionState, dict[str, Array]]:
        key_flip, key_sample = jax.random.split(key)
        if task.symmetric:
            flip = jax.random.bernoulli(key_flip, 0.5, (len(images), 1, 1, 1))
            images = jnp.where(flip, mirror(images), images)
        keys = jax.random.split(key_sample, len(images))
        groups = len(images) // group if len(images) % group == 0 else 1

        def grouped(array: Array) -> Array:
            # Every group takes from everywhere, so that each has a share of every device's part.
            return array.reshape(-1, groups, *array.shape[1:]).swapaxes(0, 1)

        def add(gradient: VAE, part: tuple[Array, Array]) -> tuple[VAE, dict[str, Array]]:
            (loss, parts), more = gradient_of(state.vae, *part)
            return jax.tree.map(jnp.add, gradient, more), {"loss": loss, **parts}

        gradient, metrics = jax.lax.scan(
            add,
            jax.tree.map(jnp.zeros_like, eqx.filter(state.vae, eqx.is_array)),
            (grouped(images), grouped(keys)),
        )
        gradient = jax.tree.map(lambda sum_: sum_ / groups, gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer)
        vae = eqx.apply_updates(state.vae, updates)
        return VisionState(vae, optimizer_state), jax.tree.map(jnp.mean, metrics)

    return lambda state, images, key: train_step(jnp.asarray(images), state, key)


def fit_vision(
    shards: list[Shard], config: VisionConfig, out: Path, *, begin_from: VAE | None = None
) -> VAE:
    """Fit V on a store, a fresh one or `begin_from`; goes on from `out/checkpoint.safetensors`.

    Leaves `vae.safetensors`, metrics and pictures in `out`.
    """
    state = new_state(config)
    if begin_from is not None:
        state = VisionState(begin_from, adam(config).init(eqx.filter(begin_from, eqx.is_array)))
    held_out, drivers = held_out_images(shards, 256)
    task = shards[0].task
    batch_loss = make_batch_loss(config, task)

    @jax.jit
    def evaluate(vae: VAE, images: Array) -> tuple[Array, dict[str, Array]]:
        return batch_loss(vae, images, jax.random.split(jax.random.key(1), len(images)))

    def validate(vae: VAE) -> dict[str, float]:
        loss, parts = evaluate(vae, held_out)
        return {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}

    def batches(step: int) -> Iterator[np.ndarray]:
        share = config.batch // jax.process_count()
        return ImageStream(own_share(shards), batch=share, seed=config.seed).batches(step)

    vae = fit(
        "V",
        state,
        make_train_step(config, task),
        batches,
        validate,
        config=config,
        data=data_name([shard.manifest["checksums"]["images"] for shard in shards]),
        out=out,
        begun_from=None if begin_from is None else digest_of(begin_from),
        pictures=lambda vae: vision_pictures(vae, held_out, drivers, out),
    )
    if is_first():
        save_checkpoint(vae, config.steps, out / "vae.safetensors")
    wait_for_all("V is written")
    return vae


def load_vision(config: VisionConfig, out: Path) -> VAE:
    """The V that `fit_vision` left in `out`."""
    return load_checkpoint(new_state(config).vae, out / "vae.safetensors")[0]
