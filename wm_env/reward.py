"""CarRacing's reward rule, and what it tells: tiles hit, track tiles N, the fall off the field.

A frame costs 0.1, each of N tiles pays 1000/N once, and -100 replaces the reward of the step in
which the car leaves the playing field. Source: Gymnasium, envs/box2d/car_racing.py.
"""

from typing import Any

import numpy as np

TRACK_REWARD = 1000.0  # of all tiles together
FRAME_REWARD = -0.1
OFF_FIELD_REWARD = -100.0

# CarRacing-v3's tracks have about 230 to 340 tiles, so that a payment tells how many it was for.
TYPICAL_TRACK_TILES = 281


def is_off_field(rewards: Any) -> Any:
    """Whether the car left the field, for a reward or an array of them."""
    return np.asarray(rewards) <= OFF_FIELD_REWARD + 1.0


def paid_for_tiles(rewards: Any) -> np.ndarray:
    """The part of each reward that tiles paid, 0 where none was hit."""
    paid = np.asarray(rewards, np.float64) - FRAME_REWARD
    return np.where(paid > 0.5, paid, 0.0)


def recover_track_tiles(rewards: Any) -> int:
    """N from the rewards of one episode, or 0 when no tile was hit.

    The least payment is the surest. It may be for two tiles: the first step always pays the two
    under the car.
    """
    paid = paid_for_tiles(rewards)
    least = np.min(paid, initial=np.inf, where=paid > 0.0)
    return int(_track_tiles(least)) if np.isfinite(least) else 0


class TileCounter:
    """Counts the tiles of many episodes at once from their rewards alone, N being unknown."""

    def __init__(self, lanes: int):
        self._paid = np.zeros(lanes)
        self._least = np.full(lanes, np.inf)
        self._tiles = np.zeros(lanes)

    def restart(self, lanes: np.ndarray) -> None:
        """Begin new episodes where the mask `lanes` says so."""
        self._paid[lanes] = 0.0
        self._least[lanes] = np.inf
        self._tiles[lanes] = 0.0

    def count(self, rewards: np.ndarray) -> np.ndarray:
        """Tiles so far, float64 [lanes], after one more step that paid `rewards` [lanes]."""
        paid = paid_for_tiles(rewards)
        if paid.any():  # most frames pay for none
            self._paid += paid
            self._least = np.where(paid > 0.0, np.minimum(self._least, paid), self._least)
            known = np.isfinite(self._least)
            track_tiles = _track_tiles(np.where(known, self._least, TRACK_REWARD))
            tiles = np.rint(self._paid * track_tiles / TRACK_REWARD)
            self._tiles = np.where(known, tiles, 0.0)
        return self._tiles.copy()


def _track_tiles(payment: Any) -> Any:
    count = np.maximum(1.0, np.rint(payment * TYPICAL_TRACK_TILES / TRACK_REWARD))
    return np.rint(TRACK_REWARD * count / payment)
