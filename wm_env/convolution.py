"""Stride-2 convolutions as large matmuls: XLA's CPU gradients of strided convolutions are naive.

A kernel of even size k and stride 2 is a kernel of size k/2 and stride 1 over 2x2 blocks of pixels
(space-to-depth), and its transpose one that gives 2x2 blocks (sub-pixel convolution). Both
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
        kernel = self.kernel.astype(x.dtype).reshape(half, 2, half, 2, channels, out)
        kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
        features = _convolve(blocks, kernel.reshape(half, half, 4 * channels, out))
        return features + self.bias.astype(x.dtype)[None, None]


class ConvTranspose2x(eqx.Module):
    """Transposed convolution with a square kernel, stride 2, no padding.

    [h, w, c] -> [2h+k-2, 2w+k-2, out]. kernel is [k, k, c, out]: input pixel (i, j) paints
    x @ kernel[p, q] on output pixel (2i+p, 2j+q).
    """

    kernel: Float[Array, "k k c out"]
    bias: Float[Array, " out"]
    rows: Float[Array, "gathered painted"] | None  # see `laid_out`

    def __init__(self, channels: int, out: int, size: int, *, key: Array):
        # Each output pixel is painted by about (k/2)^2 input pixels, which is the fan-in that
        # matters here.
        fan_in = channels * max(1, size * size // 4)
        key_kernel, key_bias = jax.random.split(key)
        self.kernel = _fan_in_uniform(key_kernel, (size, size, channels, out), fan_in)
        self.bias = _fan_in_uniform(key_bias, (out,), fan_in)
        self.rows = None

    def laid_out(self) -> "ConvTranspose2x":
        """The same layer, which keeps its kernel as the matmul reads it too.

        To lay it out at each call takes as long as to paint one image; for a batch that is nothing.
        """
        return eqx.tree_at(lambda layer: layer.rows, self, _rows(self.kernel), is_leaf=_is_none)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 out"]:
        """Paint one image; callers vmap."""
        size, _, channels, out = self.kernel.shape
        height, width, _ = x.shape
        if height == width == 1:
            # Nothing overlaps. A matmul for each pixel leaves the kernel as it lies: V's has 13 MB.
            kernel = self.kernel.astype(x.dtype).reshape(size * size, channels, out)
            image = jnp.broadcast_to(x, (size * size, 1, channels)) @ kernel
            image = image.reshape(size, size, out)
        else:
            rows = _rows(self.kernel) if self.rows is None else self.rows
            blocks = _transpose_convolve(x, rows.astype(x.dtype), (size + 1) // 2)
            high, wide, _ = blocks.shape
            image = blocks.reshape(high, wide, 2, 2, out).transpose(0, 2, 1, 3, 4)
            image = image.reshape(2 * high, 2 * wide, out)
            image = image[: 2 * height + size - 2, : 2 * width + size - 2]
        return image + self.bias.astype(x.dtype)[None, None]


def _is_none(node: object) -> bool:
    return node is None


def _rows(kernel: Float[Array, "k k c out"]) -> Float[Array, "gathered painted"]:
    """For each offset of blocks, the 2x2 pixels that one input pixel paints there: as a matrix from
    the offsets along a row and the channels to those along a column, the pixels and `out`."""
    size, _, channels, out = kernel.shape
    half = (size + 1) // 2
    missing = 2 * half - size
    even = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    even = even.reshape(half, 2, half, 2, channels, out)[:, :, ::-1]
    return even.transpose(2, 4, 0, 1, 3, 5).reshape(half * channels, half * 4 * out)


def _convolve(
    x: Float[Array, "h w c"], kernel: Float[Array, "k k c out"]
) -> Float[Array, "h2 w2 out"]:
    """Convolution with stride 1: patches, then one matmul."""
    size, _, _, out = kernel.shape
    rows, columns = x.shape[0] - size + 1, x.shape[1] - size + 1
    offsets = itertools.product(range(size), repeat=2)
    patches = jnp.concatenate([x[i : i + rows, j : j + columns] for i, j in offsets], axis=-1)
    features = patches.reshape(rows * columns, -1) @ kernel.reshape(-1, out)
    return features.reshape(rows, columns, out)


def _transpose_convolve(
    x: Float[Array, "h w c"], rows: Float[Array, "gathered painted"], size: int
) -> Float[Array, "h2 w2 out"]:
    """Transposed convolution with stride 1: gather along rows, one matmul, paint along columns.

    Gathering both ways would make k * k copies of the input before the matmul, painting both ways
    k * k pieces of the output after it: half and half there are only k of each.
    """
    height, width, edge = x.shape[0], x.shape[1] + size - 1, size - 1
    padded = jnp.pad(x, ((0, 0), (edge, edge), (0, 0)))
    patches = jnp.concatenate([padded[:, j : j + width] for j in range(size)], axis=-1)
    painted = (patches.reshape(height * width, -1) @ rows).reshape(height, width, -1)
    # split, not indexing: its gradient is one concatenation instead of k padded sums.
    pieces = jnp.split(painted, size, axis=-1)
    return sum(
        (jnp.pad(piece, ((i, edge - i), (0, 0), (0, 0))) for i, piece in enumerate(pieces)),
        start=jnp.zeros((height + edge, width, pieces[0].shape[-1]), x.dtype),
    )
