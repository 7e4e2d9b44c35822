"""V: a convolutional variational autoencoder from 64x64 images to 32 latent numbers and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from wm_env.convolution import Conv2x, ConvTranspose2x, PackedConvTranspose2x


@dataclass(frozen=True)
class VAEConfig:
    """V's sizes, and what it shows; the sizes are those of Ha & Schmidhuber (2018), figure 22.

    `sampled` shows everyone, drivers and M alike, draws of the posterior instead of its means.
    """

    latent_size: int = 32
    encoder_channels: tuple[int, int, int, int] = (32, 64, 128, 256)  # kernels 4, stride 2
    decoder_channels: tuple[int, int, int] = (128, 64, 32)  # kernels 5, 5, 6, 6, stride 2
    sampled: bool = False


class Posterior(eqx.Module):
    """What V believes of an image: a Gaussian for each latent dimension; mu [z], log_sigma [z]."""

    mu: Float[Array, " z"]
    log_sigma: Float[Array, " z"]

    def sample(self, *, key: Array) -> Float[Array, " z"]:
        """One draw z ~ N(mu, sigma)."""
        return self.mu + jnp.exp(self.log_sigma) * jax.random.normal(
            key, self.mu.shape, self.mu.dtype
        )


class VAE(eqx.Module):
    """V. Unbatched: `jax.vmap(vae.latent)(images)`.

    Source: Ha & Schmidhuber (2018), A.1. It may be fitted in bfloat16 (`VisionConfig.bfloat16`):
    `encode` and `decode` compute in the dtype they are given and return float32.
    """

    encoder: tuple[Conv2x, ...]
    to_posterior: eqx.nn.Linear
    from_latent: eqx.nn.Linear
    decoder: tuple[ConvTranspose2x, ...]
    config: VAEConfig = eqx.field(static=True)

    def __init__(self, config: VAEConfig = VAEConfig(), *, key: Array):  # noqa: B008 (frozen)
        key_encoder, key_posterior, key_latent, key_decoder = jax.random.split(key, 4)
        down = (3, *config.encoder_channels)
        keys = jax.random.split(key_encoder, 4)
        self.encoder = tuple(Conv2x(down[i], down[i + 1], 4, key=keys[i]) for i in range(4))
        flat = 2 * 2 * config.encoder_channels[-1]
        self.to_posterior = eqx.nn.Linear(flat, 2 * config.latent_size, key=key_posterior)
        self.from_latent = eqx.nn.Linear(config.latent_size, flat, key=key_latent)
        up = (flat, *config.decoder_channels, 3)
        keys = jax.random.split(key_decoder, 4)
        self.decoder = tuple(
            ConvTranspose2x(up[i], up[i + 1], size, key=keys[i])
            for i, size in enumerate((5, 5, 6, 6))
        )
        self.config = config

    def encode(
        self, image: Shaped[Array, "64 64 3"], *, dtype: DTypeLike = jnp.float32
    ) -> Posterior:
        """The posterior of an image, uint8 [64, 64, 3] or float in [0, 1]."""
        x = image.astype(dtype) / 255.0 if image.dtype == jnp.uint8 else image.astype(dtype)
        for layer in self.encoder:
            x = jax.nn.relu(layer(x))
        mu, log_sigma = jnp.split(self.to_posterior(x.reshape(-1).astype(jnp.float32)), 2)
        return Posterior(mu, jnp.clip(log_sigma, -8.0, 4.0))

    def latent(self, image: Shaped[Array, "64 64 3"]) -> Float[Array, " z"]:
        """What the driver and M see: the posterior's mean, or a draw of it where V is `sampled`.

        The draw is a function of the image. Were it another one for M than for the driver, the
        action would tell M what the driver saw, and the dream would obey whoever drives in it.
        """
        posterior = self.encode(image)
        return posterior.sample(key=_key_of(image)) if self.config.sampled else posterior.mu

    def decode(
        self, z: Float[Array, " z"], *, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "64 64 3"]:
        """The image of a latent, float32 in [0, 1]."""
        return _painted(self._first_pixels(z, dtype), self.decoder[1:])

    def packed(self) -> "PackedDecoder":
        """The decoder laid out for many images: its first two layers are then one.

        Nothing is nonlinear between the paper's dense layer and its first transposed convolution,
        which reads a single pixel.
        """
        bias = self._first_pixels(jnp.zeros(self.config.latent_size))
        units = jax.vmap(self._first_pixels)(jnp.eye(self.config.latent_size))
        layers = tuple(layer.packed() for layer in self.decoder[1:])
        return PackedDecoder(weight=units - bias[None], bias=bias, layers=layers)

    def _first_pixels(
        self, z: Float[Array, " z"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "rows columns c"]:
        return self.decoder[0](self.from_latent(z).astype(dtype).reshape(1, 1, -1))


class PackedDecoder(eqx.Module):
    """A V to decode with only: `VAE.packed` gives it. Its images equal V's but for rounding."""

    weight: Float[Array, "z rows columns c"]
    bias: Float[Array, "rows columns c"]
    layers: tuple[PackedConvTranspose2x, ...]

    def packed(self) -> "PackedDecoder":
        return self

    def decode(self, z: Float[Array, " z"]) -> Float[Array, "64 64 3"]:
        """The image of a latent, float32 in [0, 1]."""
        x = jnp.tensordot(z, self.weight, axes=1) + self.bias
        return _painted(x, self.layers)


def _painted(
    x: Float[Array, "rows columns c"], layers: Sequence[Callable[[Array], Array]]
) -> Float[Array, "64 64 3"]:
    """The image that the layers after the first make of its pixels."""
    for layer in layers:
        x = layer(jax.nn.relu(x))
    return jax.nn.sigmoid(x.astype(jnp.float32))


def _key_of(image: Shaped[Array, "64 64 3"]) -> Array:
    """A key that follows from an image, uint8 or float in [0, 1], and from its pixels' places."""
    if image.dtype != jnp.uint8:
        image = jnp.round(255.0 * image)
    pixels = image.astype(jnp.uint32).reshape(-1)
    places = 2 * jnp.arange(pixels.size, dtype=jnp.uint32) + 1
    return jax.random.key(jnp.sum(pixels * places, dtype=jnp.uint32))
