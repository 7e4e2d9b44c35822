"""Stride-2 convolutions as large matmuls: XLA's CPU gradients of strided convolutions are naive.

Patches are slices of rows of pairs of pixels. A transposed kernel of even size k is one of size k/2
and stride 1 that gives 2x2 blocks of pixels (sub-pixel convolution), one of odd size is painted
pixel by pixel, and where the input is a single pixel nothing overlaps. Both directions, forwards
and backwards, are then slices, additions and matmuls. Results equal `lax.conv_general_dilated` and
`lax.conv_transpose` with VALID padding; tests compare values and gradients.
"""

import functools
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
                f"Conv2x got kernel size {size}; expected an even one, for pairs of pixels"
            )
        fan_in = size * size * channels
        key_kernel, key_bias = jax.random.split(key)
        self.kernel = _fan_in_uniform(key_kernel, (size, size, channels, out), fan_in)
        self.bias = _fan_in_uniform(key_bias, (out,), fan_in)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 out"]:
        """Convolve one image; callers vmap, and the matmul then takes all images at once."""
        size, _, channels, out = self.kernel.shape
        height, width = x.shape[0] // 2, x.shape[1] // 2
        rows, columns = (x.shape[0] - size) // 2 + 1, (x.shape[1] - size) // 2 + 1
        # Pixels 2j and 2j + 1 of a row lie side by side, as what the kernel has for them does.
        pairs = x[: 2 * height, : 2 * width].reshape(height, 2, width, 2 * channels)
        offsets = itertools.product(range(size), range(size // 2))
        patches = [pairs[i // 2 : i // 2 + rows, i % 2, j : j + columns] for i, j in offsets]
        patches = jnp.concatenate(patches, axis=-1).reshape(rows * columns, -1)
        features = patches @ self.kernel.astype(x.dtype).reshape(-1, out)
        return features.reshape(rows, columns, out) + self.bias.astype(x.dtype)[None, None]


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
        if x.shape[:2] != (1, 1):
            return self.packed()(x)
        # Nothing overlaps. A matmul a pixel leaves the kernel as it lies: that of V has 13 MB.
        size, _, channels, out = self.kernel.shape
        kernel = self.kernel.astype(x.dtype).reshape(size * size, channels, out)
        pixels = jnp.broadcast_to(x, (size * size, 1, channels)) @ kernel
        return pixels.reshape(size, size, out) + self.bias.astype(x.dtype)[None, None]

    def packed(self) -> "PackedConvTranspose2x":
        """The same layer with its kernel as the matmul reads it, for many calls of it."""
        size = self.kernel.shape[0]
        matrix = _pixels_matrix(self.kernel) if size % 2 else _blocks_matrix(self.kernel)
        return PackedConvTranspose2x(matrix, self.bias, size)


class PackedConvTranspose2x(eqx.Module):
    """A ConvTranspose2x to be called only: `ConvTranspose2x.packed` gives it."""

    matrix: Float[Array, "gathered painted"]
    bias: Float[Array, " out"]
    size: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 out"]:
        """Paint one image; callers vmap."""
        height, width, _ = x.shape
        paint = _paint_pixels if self.size % 2 else _paint_blocks
        blocks = paint(x, self.matrix.astype(x.dtype), self.size)
        rows, columns, _ = blocks.shape
        image = blocks.reshape(rows, columns, 2, 2, -1).transpose(0, 2, 1, 3, 4)
        image = image.reshape(2 * rows, 2 * columns, -1)
        image = image[: 2 * height + self.size - 2, : 2 * width + self.size - 2]
        return image + self.bias.astype(x.dtype)[None, None]


def _blocks_matrix(kernel: Float[Array, "k k c out"]) -> Float[Array, "gathered painted"]:
    """For k/2 input pixels of a row, the k/2 x 2x2 pixels of a column that they paint."""
    size, _, channels, out = kernel.shape
    half = size // 2
    # For each offset of blocks, in reverse along rows, the 2x2 pixels that one input pixel paints.
    blocks = kernel.reshape(half, 2, half, 2, channels, out)[:, :, ::-1]
    return blocks.transpose(2, 4, 0, 1, 3, 5).reshape(half * channels, half * 4 * out)


def _paint_blocks(
    x: Float[Array, "h w c"], matrix: Float[Array, "gathered painted"], size: int
) -> Float[Array, "h2 w2 blocks"]:
    """Each input pixel on blocks of output: gather along rows, one matmul, paint along columns.

    Gathering both ways would make k * k copies of the input before the matmul, painting both ways
    k * k pieces of the output after it: half and half there are only k of each.
    """
    edge = size // 2 - 1
    # With rows of zeros around the others the sums need not look for edges at each number. Where
    # such rows are few, multiplying them costs less.
    around = edge if x.shape[0] >= 8 * edge else 0
    height, width = x.shape[0] + 2 * around, x.shape[1] + edge
    padded = jnp.pad(x, ((around, around), (edge, edge), (0, 0)))
    patches = jnp.concatenate([padded[:, j : j + width] for j in range(edge + 1)], axis=-1)
    painted = (patches.reshape(height * width, -1) @ matrix).reshape(height, width, -1)
    # split, not indexing: its gradient is one concatenation instead of k padded sums.
    pieces = jnp.split(painted, edge + 1, axis=-1)
    zero, kept = jnp.zeros((), x.dtype), (0, 0, 0)
    shifted = (
        jax.lax.pad(piece, zero, ((i - around, edge - i - around, 0), kept, kept))
        for i, piece in enumerate(pieces)
    )
    return functools.reduce(jnp.add, shifted)


def _pixels_matrix(kernel: Float[Array, "k k c out"]) -> Float[Array, "c painted"]:
    """For an input pixel, the k x k pixels that it paints."""
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def _paint_pixels(
    x: Float[Array, "h w c"], matrix: Float[Array, "c painted"], size: int
) -> Float[Array, "h2 w2 blocks"]:
    """The same of an odd kernel, which is no whole number of blocks: one matmul, paint both ways.

    Padded to whole blocks, and gathered with its borders, that of V's decoder would cost twice the
    multiplications (docs/performance.md).
    """
    height, width, edge = x.shape[0], x.shape[1], size // 2
    painted = (x.reshape(height * width, -1) @ matrix).reshape(height, width, -1)
    pieces = jnp.split(painted, size * size, axis=-1)
    corners = [jnp.zeros((height + edge, width + edge, pieces[0].shape[-1]), x.dtype)] * 4
    for (p, q), piece in zip(itertools.product(range(size), repeat=2), pieces, strict=True):
        (i, row), (j, column) = divmod(p, 2), divmod(q, 2)
        placed = jnp.pad(piece, ((i, edge - i), (j, edge - j), (0, 0)))
        corners[2 * row + column] += placed
    return jnp.concatenate(corners, axis=-1)
