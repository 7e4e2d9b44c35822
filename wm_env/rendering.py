"""Pictures of a dream: what CarRacing-v3 would show as `rgb_array`, and sheets of many frames.

V sees rows 0 to 83 of CarRacing's 96, so its image fills the upper 7/8 of the screen; the dashboard
below carries the score, as the real one does.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

SCREEN_SHAPE = (400, 600, 3)  # CarRacing-v3's rgb_array

_VIEW_ROWS = 350  # 84 of 96 rows of the screen
_GAP = 2
_LABEL_ROWS = 18


def screen(image: np.ndarray, score: float | None = None) -> np.ndarray:
    """V's image, uint8 [64, 64, 3], as a CarRacing screen, uint8 [400, 600, 3], with the score."""
    frame = np.zeros(SCREEN_SHAPE, np.uint8)
    frame[:_VIEW_ROWS] = upscale(image, _VIEW_ROWS, SCREEN_SHAPE[1])
    if score is not None:
        text = text_image(f"{score:.0f}", 30)
        height, width = text.shape[:2]
        top = _VIEW_ROWS + (SCREEN_SHAPE[0] - _VIEW_ROWS - height) // 2
        frame[top : top + height, 12 : 12 + width] = text
    return frame


def upscale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3], smoothly scaled."""
    pygame = _pygame()
    surface = pygame.surfarray.make_surface(np.swapaxes(image, 0, 1))
    scaled = pygame.transform.smoothscale(surface, (width, height))
    return np.swapaxes(pygame.surfarray.array3d(scaled), 0, 1)


def text_image(text: str, size: int) -> np.ndarray:
    """White text on black, uint8 [rows, columns, 3]."""
    pygame = _pygame()
    drawn = _font(size).render(text, True, (255, 255, 255), (0, 0, 0))
    return np.swapaxes(pygame.surfarray.array3d(drawn), 0, 1)


def filmstrip(images: np.ndarray, columns: int) -> np.ndarray:
    """Frames uint8 [n, h, w, 3] in rows of `columns`, left to right, with thin black gaps."""
    images = np.asarray(images)
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), np.uint8)
    for index, image in enumerate(images):
        top = index // columns * (height + _GAP)
        left = index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def contact_sheet(rows: Sequence[np.ndarray], labels: Sequence[str] | None = None) -> np.ndarray:
    """Rows of frames, each uint8 [n, h, w, 3], under one another, each below its label.

    Raises:
        ValueError: not one label for each row.
    """
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"got {len(labels)} labels for {len(rows)} rows; give one for each row.")
    strips = [filmstrip(row, len(row)) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    parts = []
    for index, strip in enumerate(strips):
        if labels is not None:
            parts.append(_label(labels[index], width))
        parts.append(np.pad(strip, ((0, _GAP), (0, width - strip.shape[1]), (0, 0))))
    return np.concatenate(parts)


def side_by_side(
    left: np.ndarray, right: np.ndarray, labels: tuple[str, str] = ("real", "dream")
) -> np.ndarray:
    """Two frames, or two videos [t, h, w, 3], next to each other below their labels.

    Raises:
        ValueError: their shapes differ.
    """
    if left.shape != right.shape:
        raise ValueError(
            f"left is {left.shape} and right is {right.shape}; expected equal shapes. "
            "Upscale or cut one of them first."
        )
    width = left.shape[-2]
    head = np.concatenate(
        [_label(labels[0], width), np.zeros((_LABEL_ROWS, _GAP, 3), np.uint8)]
        + [_label(labels[1], width)],
        axis=1,
    )
    gap = np.zeros((*left.shape[:-2], _GAP, 3), np.uint8)
    body = np.concatenate([left, gap, right], axis=-2)
    return np.concatenate([np.broadcast_to(head, (*body.shape[:-3], *head.shape)), body], axis=-3)


class Window:
    """A window on the desktop for `render_mode="human"`."""

    def __init__(self, fps: int, title: str = "DreamCarRacing"):
        pygame = _pygame()
        pygame.display.init()
        self._fps = fps
        self._clock = pygame.time.Clock()
        self._surface = pygame.display.set_mode((SCREEN_SHAPE[1], SCREEN_SHAPE[0]))
        pygame.display.set_caption(title)

    def show(self, frame: np.ndarray) -> None:
        """Show uint8 [400, 600, 3] and wait for the rest of the frame's time."""
        pygame = _pygame()
        pygame.event.pump()
        pygame.surfarray.blit_array(self._surface, np.swapaxes(frame, 0, 1))
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        _pygame().display.quit()


def _label(text: str, width: int) -> np.ndarray:
    label = np.zeros((_LABEL_ROWS, width, 3), np.uint8)
    drawn = text_image(text, 14)[:_LABEL_ROWS, :width]
    label[: drawn.shape[0], : drawn.shape[1]] = drawn
    return label


def _font(size: int) -> Any:
    # Not kept: whoever calls pygame.quit, as Gymnasium's play does, spoils every font made before.
    pygame = _pygame()
    pygame.font.init()
    return pygame.font.Font(None, size)


def _pygame() -> Any:
    # Its greeting would end up among results on stdout.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    return pygame
