"""Stride-2 convolutions as large matmuls: XLA's CPU gradients of strided convolutions are naive.

A kernel of even size k and stride 2 is a kernel of size k/2 and stride 1 over 2x2 blocks of pixels
(space-to-depth); its transpose paints k/2 x k/2 overlapping blocks (sub-pixel convolution). Both
directions, forwards and backwards, are then slices, additions and one matmul. Results equal
`lax.conv_general_dilated` and `lax.conv_transpose` with VALID padding; tests compare values and
gradients.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _fan_in_uniform(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    """Uniform in +-1/sqrt(fan_in): the usual initial range of convolution and linear layers."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class Conv2x(eqx.Module):
    """Convolution with an even square kernel, stride 2, no padding.

    [h, w, c] -> [(h-k)//2+1, (w-k)//2+1, out]. kernel is [k, k, c, out] (HWIO), bias [out].
    """

    kernel: Float[Array, "k k c out"]
    bias: Float[Array, " out"]

    def __init__(self, channels: int, out: int, size: int, *, key: Array):
        if size % 2:
            raise ValueError(
                f"Conv2x got kernel size {size}; expected an even one, for 2x2 blocks of pixels"
            )
        fan_in = size * size * channels
        key_kernel, key_bias = jax.random.split(key)
        self.kernel = _fan_in_uniform(key_kernel, (size, size, channels, out), fan_in)
        self.bias = _fan_in_uniform(key_bias, (out,), fan_in)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 out"]:
        """Convolve one image; callers vmap, and the matmul then takes all images at once."""
        size, _, channels, out = self.kernel.shape
        half = size // 2
        height, width = x.shape[0] // 2, x.shape[1] // 2
        blocks = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, channels)
        blocks = blocks.transpose(0, 2, 1, 3, 4).reshape(height, width, 4 * channels)
        rows, columns = height - half + 1, width - half + 1
        patches = jnp.concatenate(
            [blocks[i : i + rows, j : j + columns] for i in range(half) for j in range(half)],
            axis=-1,
        )
        kernel = self.kernel.reshape(half, 2, half, 2, channels, out).transpose(0, 2, 1, 3, 4, 5)
        features = patches.reshape(rows * columns, -1) @ kernel.reshape(-1, out).astype(x.dtype)
        return (features + self.bias.astype(x.dtype)[None]).reshape(rows, columns, out)


class ConvTranspose2x(eqx.Module):
    """Transposed convolution with a square kernel, stride 2, no padding.

    [h, w, c] -> [2h+k-2, 2w+k-2, out]. kernel is [k, k, c, out]: input pixel (i, j) paints
    x @ kernel[p, q] on output pixel (2i+p, 2j+q).
    """

    kernel: Float[Array, "k k c out"]
    bias: Float[Array, " out"]

    def __init__(self, channels: int, out: int, size: int, *, key: Array):
        # Each output pixel is painted by about (k/2)^2 input pixels, which is the fan-in that
        # matters here.
        fan_in = channels * max(1, size * size // 4)
        key_kernel, key_bias = jax.random.split(key)
        self.kernel = _fan_in_uniform(key_kernel, (size, size, channels, out), fan_in)
        self.bias = _fan_in_uniform(key_bias, (out,), fan_in)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 out"]:
        """Paint one image; callers vmap."""
        size, _, channels, out = self.kernel.shape
        half = (size + 1) // 2
        height, width, _ = x.shape
        even = jnp.pad(self.kernel, ((0, 2 * half - size), (0, 2 * half - size), (0, 0), (0, 0)))
        # [c, half, half, 2, 2, out]: for each block offset, the 2x2 pixels that are painted there.
        kernel = even.reshape(half, 2, half, 2, channels, out).transpose(4, 0, 2, 1, 3, 5)
        painted = x.reshape(-1, channels) @ kernel.reshape(channels, -1).astype(x.dtype)
        painted = painted.reshape(height, width, -1)
        rows, columns = height + half - 1, width + half - 1
        # split, not indexing: its gradient is one concatenation instead of half^2 padded sums.
        blocks = sum(
            jnp.pad(piece, ((i, half - 1 - i), (j, half - 1 - j), (0, 0)))
            for (i, j), piece in zip(
                itertools.product(range(half), repeat=2),
                jnp.split(painted, half * half, axis=-1),
                strict=True,
            )
        )
        image = jnp.asarray(blocks).reshape(rows, columns, 2, 2, out).transpose(0, 2, 1, 3, 4)
        image = image.reshape(2 * rows, 2 * columns, out)[
            : 2 * height + size - 2, : 2 * width + size - 2
        ]
        return image + self.bias.astype(x.dtype)[None, None]
