"""A sheet: titled blocks of labelled rows of images, as one PNG that needs no other explanation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wm_env.rendering import filmstrip
from wm_env.storage import appearing_whole

AMBER = "#d98200"

_DPI = 100
_SCALE = 2  # screen pixels a pixel of V's images, so that they stay sharp
_LEFT, _TOP, _EDGE = 190, 16, 14  # pixels: row labels, above the title, around
_LINE = 20  # pixels a line of text


@dataclass(frozen=True)
class Strip:
    """A row of images, uint8 [n, h, w, 3], its label, and a note in the corner of each image."""

    label: str
    images: np.ndarray
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Block:
    """Strips under one title and one label a column; the first `marked` columns stand out."""

    title: str
    columns: Sequence[str]
    strips: Sequence[Strip]
    marked: int = 0


def write_sheet(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write the blocks under one another; the first line of `title` is the headline."""
    images = [_image(block) for block in blocks]
    heads = [_lines(block.title) + max(map(_lines, block.columns)) for block in blocks]
    heights = [
        _LINE * head + _EDGE + _SCALE * len(image)
        for head, image in zip(heads, images, strict=True)
    ]
    above = _TOP + _LINE * (_lines(title) + 1)
    headline, _, rest = title.partition("\n")
    widths = [
        _EDGE + max(_text_width(headline, 15), _text_width(rest, 10.5)),
        *(_LEFT + _text_width(block.title, 12) for block in blocks),
        *(_LEFT + _EDGE + _SCALE * image.shape[1] for image in images),
    ]
    width = max(widths)
    height = above + sum(heights) + _EDGE
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
    figure.text(_EDGE / width, 1 - _TOP / height, headline, fontsize=15, weight="bold", va="top")
    figure.text(_EDGE / width, 1 - (_TOP + 1.4 * _LINE) / height, rest, fontsize=10.5, va="top")
    for block, image, tall in zip(blocks, images, heights, strict=True):
        above += tall
        size = _SCALE * image.shape[1] / width, _SCALE * len(image) / height
        axis = figure.add_axes((_LEFT / width, 1 - above / height, *size))
        _draw(axis, block, image)
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with appearing_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, pil_kwargs={"compress_level": 3})


def _image(block: Block) -> np.ndarray:
    """The strips of a block; where one is shorter than the block is wide, white."""
    rows = [
        np.pad(
            strip.images,
            ((0, len(block.columns) - len(strip.images)), (0, 0), (0, 0), (0, 0)),
            constant_values=255,
        )
        for strip in block.strips
    ]
    return filmstrip(np.concatenate(rows), len(block.columns))


def _draw(axis: Axes, block: Block, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    columns, rows = len(block.columns), len(block.strips)
    lefts, tops = np.arange(columns) * width / columns, np.arange(rows) * height / rows
    axis.imshow(image, interpolation="nearest", extent=(0, width, height, 0))
    axis.set_xticks(lefts + width / columns / 2, block.columns)
    axis.set_yticks(tops + height / rows / 2, [strip.label for strip in block.strips])
    axis.tick_params(
        length=0, labelsize=10, top=True, labeltop=True, bottom=False, labelbottom=False
    )
    axis.spines[:].set_visible(False)
    axis.set_title(block.title, loc="left", fontsize=12, weight="bold")
    for top, strip in zip(tops, block.strips, strict=True):
        for left, note in zip(lefts, strip.notes, strict=False):
            axis.text(left + 2, top + 2, note, fontsize=8, color="white", va="top").set_bbox(
                {"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0}
            )
    if block.marked:
        axis.add_patch(
            Rectangle((0, 0), lefts[block.marked] - 1, height - 1, fill=False, ec=AMBER, lw=3)
        )


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _text_width(text: str, size: float) -> int:
    """Pixels that suffice for the longest line; measured, matplotlib's bold takes 0.85 size."""
    return round(0.85 * size * max(map(len, text.split("\n"))))
