"""Where in an episode the road is lost: rare frames, of which a dream must know more than most."""

import numpy as np
from jaxtyping import Bool, Num

from agents.laps import LOST_FRAMES

_FAST = 3  # tiles in the half second before the road is lost: the car was on its way
_AROUND = 25  # frames before and after the last tile in which the car does not follow its road


def losses(tiles: Num[np.ndarray, "t"]) -> np.ndarray:
    """The steps at which the road is lost: those after the last tile of a car on its way."""
    hit = np.concatenate([[0], np.cumsum(np.asarray(tiles) > 0)])
    steps = np.arange(LOST_FRAMES, len(tiles) - LOST_FRAMES + 1)
    last = hit[steps] > hit[steps - 1]
    gone = hit[steps + LOST_FRAMES] == hit[steps]
    return steps[last & gone & (hit[steps] - hit[steps - LOST_FRAMES] >= _FAST)]


def around_losses(tiles: Num[np.ndarray, "t"]) -> Bool[np.ndarray, "t"]:
    """The steps within half a second of those."""
    near = np.zeros(len(tiles), bool)
    for step in losses(tiles):
        near[max(0, step - _AROUND) : step + _AROUND] = True
    return near
