"""The road and the speed, as a scripted driver reads them from raw frames.

The dashboard's wheel-speed bars are among what it reads; the world model never sees those.
"""

import numpy as np
from numpy.typing import NDArray

from agents.drivers.driver import Frames

CAR_COLUMN, CAR_ROW = 47.5, 66  # where the car's nose is in a 96x96 frame


def road_centres(frames: Frames, rows: int = 20) -> NDArray[np.float64]:
    """Follow the grey road upwards from the car.

    Args:
        frames: uint8 [n, 96, 96, 3].
        rows: how many rows to follow, two pixels apart.

    Returns:
        [n, rows]: the road's centre column in each row, from the car's nose forwards; a row whose
        road is far away gives its nearest pixel (so that a lost car turns back), a row without road
        the last centre.
    """
    strip = frames[:, CAR_ROW - 2 * rows + 2 : CAR_ROW + 1 : 2]
    red, green, blue = np.moveaxis(strip, -1, 0).astype(np.int16, order="C")
    road = (abs(red - green) < 14) & (abs(green - blue) < 14) & (green > 60) & (green < 200)
    seen = road.any(axis=2)
    columns = np.arange(float(frames.shape[2]))
    column_and_one = np.stack([columns, np.ones_like(columns)], axis=1)
    centre = np.full(len(frames), CAR_COLUMN)
    centres = []
    for row in reversed(range(rows)):
        distance = abs(columns - centre[:, None])
        total, count = ((road[:, row] & (distance < 20)) @ column_and_one).T
        far = seen[:, row] & (count == 0)
        centre = np.where(count > 0, total / np.maximum(count, 1.0), centre)
        if far.any():
            centre[far] = np.where(road[far, row], distance[far], np.inf).argmin(axis=1)
        centres.append(centre)
    return np.stack(centres, axis=1)


def wheel_speed(frames: Frames) -> NDArray[np.float64]:
    """Speed [n] in units of the dashboard's blue wheel bars: 10 is slow, 30 fast in a corner.

    Gymnasium prints the score, in grey, over all bars but the edge of the right rear wheel's.
    """
    bars = frames[:, 84:, 16:27].astype(np.int16)
    red, blue = bars[..., 0], bars[..., 2]
    all_four = np.maximum(blue - 2 * red, 0).sum(axis=(1, 2)) / 255.0
    grey = (blue > 40) & (abs(blue - red) < 8)
    edge = (blue - red)[:, :, 10].sum(axis=1) / 101.0  # rows, of which one is 7.5 of all four
    right_rear = 7.5 * (edge + 0.4)  # EnvPool rounds up to whole rows
    return np.where(grey.any(axis=(1, 2)), right_rear, all_four)
