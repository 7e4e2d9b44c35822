"""The one way from a frame to the image that V sees: crop, then shrink to 64x64.

Of CarRacing's frames rows 84 to 95 hold the dashboard, whose score text differs between Gymnasium
versions and simulators, so they are cut off (Ha & Schmidhuber, 2018, do the same). The remaining
84x96 pixels become 64x64 by exact area averaging in integers: 96 columns to 64 is a ratio of 3:2,
84 rows to 64 one of 21:16. Integers make numpy and JAX agree bit for bit, on every machine. JAX is
imported only for JAX arrays: workers that collect do without it, which saves each a second and
memory.
"""

import importlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

FRAME_SHAPE = (96, 96, 3)
IMAGE_SHAPE = (64, 64, 3)


@dataclass(frozen=True)
class Preprocess:
    """Crops and shrinks the frames of one simulator to V's input.

    Args:
        source: what shows such frames, for errors.
        frame_shape: (height, width, 3).
        visible_rows: rows from the top that V sees; all of them unless told.
    """

    source: str
    frame_shape: tuple[int, int, int]
    visible_rows: int | None = None

    def __call__(self, frames: Any) -> Any:
        """V's images of frames.

        Args:
            frames: uint8 [..., height, width, 3], RGB as the source shows them; a numpy or a JAX
                array.

        Returns:
            uint8 [..., 64, 64, 3], of the kind that was given; numpy and JAX results are equal bit
            for bit.

        Raises:
            ValueError: when the shape or the dtype is another.

        Source: Ha & Schmidhuber (2018), A.1 (64x64 inputs); their code crops the dashboard in the
        same way.
        """
        height, width, colours = self.frame_shape
        if frames.shape[-3:] != self.frame_shape or frames.dtype != np.uint8:
            raise ValueError(
                f"preprocess got frames of shape {frames.shape} and dtype {frames.dtype}; expected "
                f"uint8 [..., {height}, {width}, {colours}], the frames of {self.source}. Pass "
                "them raw, before any other resizing."
            )
        xp = _namespace(frames)
        lead = frames.shape[:-3]
        row_weights, column_weights = self._weights
        # Small matmuls: sums stay below 2**24, so float32 holds them exactly whatever their order.
        pixels = frames[..., : self.visible_rows, :, :].astype(np.float32)
        blocks = pixels.reshape(-1, row_weights.shape[1], width * colours)
        rows = _exact_matmul(xp, xp.asarray(row_weights), blocks)
        rows = rows.reshape(-1, column_weights.shape[0])
        sums = _exact_matmul(xp, rows, xp.asarray(column_weights))
        total = row_weights.shape[1] * (column_weights.shape[0] // colours)  # of the weights
        whole = np.uint16 if 255 * total + total // 2 <= np.iinfo(np.uint16).max else np.uint32
        rounded = (sums.astype(whole) + whole(total // 2)) // whole(total)
        return rounded.astype(np.uint8).reshape(*lead, *IMAGE_SHAPE)

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """[out, in] for blocks of rows, and [in * 3, out * 3] for blocks of columns."""
        height, width, colours = self.frame_shape
        rows = _overlaps(self.visible_rows or height, IMAGE_SHAPE[0])
        columns = _overlaps(width, IMAGE_SHAPE[1])
        return rows, np.ascontiguousarray(np.kron(columns.T, np.eye(colours, dtype=np.float32)))


def _overlaps(source: int, target: int) -> np.ndarray:
    """[out, in] overlaps, in 1/out of a source pixel, of `target` pixels with `source` ones.

    Only of the least block that repeats: 84 rows are four times 21, which become 16.
    """
    blocks = math.gcd(source, target)
    ins, outs = source // blocks, target // blocks
    low, high = np.arange(outs)[:, None] * ins, np.arange(1, outs + 1)[:, None] * ins
    begin, end = np.arange(ins) * outs, np.arange(1, ins + 1) * outs
    return np.maximum(0, np.minimum(high, end) - np.maximum(low, begin)).astype(np.float32)


preprocess = Preprocess("CarRacing-v3", FRAME_SHAPE, visible_rows=84)


def _namespace(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else importlib.import_module("jax.numpy")


def _exact_matmul(xp: Any, left: Any, right: Any) -> Any:
    return xp.matmul(left, right, **({} if xp is np else {"precision": "highest"}))


def mirror(images: Any) -> Any:
    """Flip images [..., height, width, 3] left to right: CarRacing is symmetric in this."""
    return images[..., ::-1, :]
