"""The one way from a CarRacing frame to the image that V sees.

Rows 84 to 95 hold the dashboard, whose score text differs between Gymnasium versions and
simulators, so they are cut off (Ha & Schmidhuber, 2018, do the same). The remaining 84x96 pixels
become 64x64 by exact area averaging in integers: 96 columns to 64 is a ratio of 3:2, 84 rows to 64
one of 21:16. Integers make numpy and JAX agree bit for bit, on every machine. JAX is imported only
for JAX arrays: workers that collect do without it, which saves each a second and memory.
"""

import importlib
from typing import Any

import numpy as np

FRAME_SHAPE = (96, 96, 3)
IMAGE_SHAPE = (64, 64, 3)

_VISIBLE_ROWS = 84
_ROW_BLOCK, _ROW_BLOCK_OUT = 21, 16  # 84 = 4 * 21 rows become 64 = 4 * 16


def _row_weights() -> np.ndarray:
    """[16, 21] overlaps, in 1/16 of a source row, of 16 output rows with their 21 source rows."""
    weights = np.zeros((_ROW_BLOCK_OUT, _ROW_BLOCK), np.float32)
    for out in range(_ROW_BLOCK_OUT):
        low, high = out * _ROW_BLOCK, (out + 1) * _ROW_BLOCK
        for row in range(_ROW_BLOCK):
            weights[out, row] = max(0, min(high, 16 * (row + 1)) - max(low, 16 * row))
    return weights


_ROW_WEIGHTS = _row_weights()
# Three source pixels a, b, c give the two pixels (2a + b) / 3 and (b + 2c) / 3, colour by colour.
_COLUMN_WEIGHTS = np.kron([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]], np.eye(3)).astype(np.float32)


def preprocess(frames: Any) -> Any:
    """Crop and shrink CarRacing frames to V's input.

    Args:
        frames: uint8 [..., 96, 96, 3], RGB as CarRacing-v3 returns them; a numpy or a JAX array.

    Returns:
        uint8 [..., 64, 64, 3], of the kind that was given; numpy and JAX results are equal bit for
        bit.

    Raises:
        ValueError: when the shape or the dtype is another.

    Source: Ha & Schmidhuber (2018), A.1 (64x64 inputs); their code crops the dashboard in the same
    way.
    """
    if frames.shape[-3:] != FRAME_SHAPE or frames.dtype != np.uint8:
        raise ValueError(
            f"preprocess got frames of shape {frames.shape} and dtype {frames.dtype}; expected "
            "uint8 [..., 96, 96, 3], the observation of CarRacing-v3. Pass the raw observation, "
            "before any other resizing."
        )
    xp = _namespace(frames)
    lead = frames.shape[:-3]
    # Small matmuls: sums stay below 2**24, so float32 holds them exactly whatever their order.
    pixels = frames[..., :_VISIBLE_ROWS, :, :].astype(np.float32)
    blocks = pixels.reshape(-1, _ROW_BLOCK, FRAME_SHAPE[1] * 3)
    rows = _exact_matmul(xp, xp.asarray(_ROW_WEIGHTS), blocks)
    sums = _exact_matmul(xp, rows.reshape(-1, 9), xp.asarray(_COLUMN_WEIGHTS))
    rounded = (sums.astype(np.uint16) + np.uint16(31)) // np.uint16(63)
    return rounded.astype(np.uint8).reshape(*lead, *IMAGE_SHAPE)


def _namespace(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else importlib.import_module("jax.numpy")


def _exact_matmul(xp: Any, left: Any, right: Any) -> Any:
    return xp.matmul(left, right, **({} if xp is np else {"precision": "highest"}))


def mirror(images: Any) -> Any:
    """Flip images [..., height, width, 3] left to right: CarRacing is symmetric in this."""
    return images[..., ::-1, :]


def mirror_action(actions: Any) -> Any:
    """Negate the steering of actions [..., 3] (steer, gas, brake), to match `mirror`."""
    return actions * np.asarray([-1.0, 1.0, 1.0], actions.dtype)
