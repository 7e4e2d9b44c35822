"""Scripted drivers that fill a dataset: M learns what they do, so each says what that is.

A driver acts for a batch of cars at once: `act(frames uint8 [n, 96, 96, 3])` gives actions float32
[n, 3] (steer [-1, 1], gas [0, 1], brake [0, 1]). It is seeded, owns its noise, and lives for one
episode a car. Scripted drivers read the raw frame, the dashboard's wheel-speed bars included, which
the world model never sees. Their noise matters more than their skill: without it the action tells M
what the road looks like, and in the dream the road then obeys the driver.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Actions = NDArray[np.float32]

_CAR_COLUMN, _CAR_ROW = 47.5, 66  # where the car's nose is in a 96x96 frame
_LOW = np.array([-1.0, 0.0, 0.0], np.float32)
_HIGH = np.array([1.0, 1.0, 1.0], np.float32)


class Driver(Protocol):
    """Whatever acts for a batch of cars."""

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3] for frames [n, 96, 96, 3]."""
        ...


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
    strip = frames[:, _CAR_ROW - 2 * rows + 2 : _CAR_ROW + 1 : 2].astype(np.int16)
    red, green, blue = strip[..., 0], strip[..., 1], strip[..., 2]
    road = (abs(red - green) < 14) & (abs(green - blue) < 14) & (green > 60) & (green < 200)
    columns = np.arange(frames.shape[2])
    centre = np.full(len(frames), _CAR_COLUMN)
    centres = []
    for row in range(rows - 1, -1, -1):
        distance = np.where(road[:, row], abs(columns[None] - centre[:, None]), np.inf)
        near = distance < 20
        count = near.sum(axis=1)
        nearest = np.where(np.isfinite(distance.min(axis=1)), distance.argmin(axis=1), centre)
        centre = np.where(count > 0, (near * columns).sum(axis=1) / np.maximum(count, 1), nearest)
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


@dataclass(frozen=True)
class Style:
    """Ranges from which each car draws how it is driven in this episode.

    pace scales the target speed (1 finishes laps at about 910), grip the steering gain, noise the
    standard deviation of correlated noise on every action, burst_rate the chance a step of a wrong
    manoeuvre that lasts `burst_steps`, blind the share of these that go straight on at some gas,
    give_up the chance a step of leaving the road for good at full gas.
    """

    pace: tuple[float, float] = (0.6, 1.3)
    grip: tuple[float, float] = (0.7, 1.8)
    noise: tuple[float, float] = (0.0, 0.3)
    burst_rate: float = 0.004
    burst_steps: tuple[int, int] = (4, 16)
    blind: float = 0.0
    give_up: float = 0.0


class ActionNoise:
    """Correlated noise on actions and bursts of wrong ones, each car drawing its own size of both.

    The noise is AR(1) with a standard deviation drawn from U(*style.noise), scaled to each action,
    and a memory of 0, 0.6 or 0.9.
    """

    def __init__(self, cars: int, random: np.random.Generator, style: Style):
        self._random, self._style = random, style
        self._sigma = random.uniform(*style.noise, (cars, 1)) * np.array([1.0, 0.6, 0.5])
        self._memory = random.choice([0.0, 0.6, 0.9], (cars, 1))
        self._noise = np.zeros((cars, 3))
        self._burst = np.zeros((cars, 3))
        self._burst_left = np.zeros(cars, np.int64)
        self._gone = np.zeros(cars, bool)

    def disturb(self, actions: NDArray[np.floating]) -> Actions:
        """The actions [n, 3] with the next step's noise, within their ranges."""
        actions = actions + self._next_noise()
        self._start_bursts()
        actions = np.where((self._burst_left > 0)[:, None], self._burst, actions)
        return np.clip(actions, _LOW, _HIGH).astype(np.float32)

    def _next_noise(self) -> NDArray[np.float64]:
        fresh = self._random.normal(size=self._noise.shape) * self._sigma
        self._noise = self._memory * self._noise + np.sqrt(1.0 - self._memory**2) * fresh
        return self._noise

    def _start_bursts(self) -> None:
        cars = len(self._gone)
        self._gone |= self._random.random(cars) < self._style.give_up
        self._burst_left -= 1
        starts = (self._burst_left <= 0) & (
            (self._random.random(cars) < self._style.burst_rate) | self._gone
        )
        steps = self._random.integers(*self._style.burst_steps, cars)
        wrong = self._random.uniform([-1.0, 0.0, -1.0], [1.0, 1.0, 1.0], (cars, 3))
        blind = self._gone | (self._random.random(cars) < self._style.blind)
        bend = np.where(self._gone, 0.02, 0.15) * wrong[:, 0]
        straight = np.stack([bend, 0.2 + 0.4 * wrong[:, 1], np.zeros(cars)], axis=1)
        fresh = np.where(blind[:, None], straight, wrong)
        self._burst_left = np.where(starts, steps, self._burst_left)
        self._burst = np.where(starts[:, None], fresh, self._burst)


class TrackDriver:
    """Follows the road that it sees, slower where it bends, with noise.

    M learns what good driving looks like, and how the car answers small errors.
    """

    def __init__(self, cars: int, seed: int, style: Style | None = None):
        style = style or Style()
        random = np.random.default_rng(seed)
        self._pace = random.uniform(*style.pace, cars)
        self._grip = random.uniform(*style.grip, cars)
        self._noise = ActionNoise(cars, random, style)

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3] for frames [n, 96, 96, 3]."""
        return self._noise.disturb(self._follow(frames))

    def _follow(self, frames: Frames) -> NDArray[np.float64]:
        centres = road_centres(frames)
        near, far, farthest = centres[:, 5], centres[:, 12], centres[:, 18]
        angle_near = np.arctan2(near - _CAR_COLUMN, 16.0)
        angle_far = np.arctan2(far - _CAR_COLUMN, 30.0)
        bend = abs(np.arctan2(farthest - near, 26.0)) + 0.5 * abs(angle_far)
        target = self._pace * np.clip(34.0 - 26.0 * bend, 9.0, 34.0)
        speed = wheel_speed(frames)
        steer = np.clip(self._grip * (0.6 * angle_near + 0.8 * angle_far), -1.0, 1.0)
        gas = np.clip(0.15 * (target - speed), 0.0, 1.0)
        brake = np.clip(0.1 * (speed - target - 3.0), 0.0, 0.8)
        return np.stack([steer, gas, brake], axis=1)


class BrownianDriver:
    """A smooth random walk over actions: M learns the car, grass, spinning and standing still."""

    def __init__(self, cars: int, seed: int):
        self._random = np.random.default_rng(seed)
        self._walk = self._random.uniform([-0.3, 0.0, -0.8], [0.3, 0.9, 0.0], (cars, 3))

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3]; the frames are not looked at."""
        self._walk += self._random.normal(scale=[0.14, 0.08, 0.08], size=self._walk.shape)
        low, high = np.array([-1.0, -0.2, -1.0]), np.array([1.0, 1.0, 0.6])
        self._walk = np.where(self._walk > high, 2 * high - self._walk, self._walk)
        self._walk = np.where(self._walk < low, 2 * low - self._walk, self._walk)
        return np.clip(self._walk, _LOW, _HIGH).astype(np.float32)


class RandomDriver:
    """Independent uniform actions: the paper's random policy, which hardly leaves the start."""

    def __init__(self, cars: int, seed: int):
        self._random = np.random.default_rng(seed)
        self._cars = cars

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3]; the frames are not looked at."""
        return self._random.uniform(_LOW, _HIGH, (self._cars, 3)).astype(np.float32)


# recovery: wrong manoeuvres and saving them. aggressive: the limit of friction. failures: off the
# road for good, across the grass to the edge of the field, whose -100 must occur in the data.
# explore: a third of the time something random, so that no action tells what the road is like.
# blind: straight on for up to 1.5 seconds, so that speed does not tell that the road is straight.
RECOVERY = Style(pace=(0.7, 1.1), noise=(0.05, 0.3), burst_rate=0.015, burst_steps=(4, 12))
AGGRESSIVE = Style(pace=(1.15, 1.6), grip=(1.0, 2.2), noise=(0.0, 0.3))
EXPLORE = Style(pace=(0.5, 1.2), noise=(0.1, 0.6), burst_rate=0.05, burst_steps=(3, 20))
BLIND = Style(pace=(0.7, 1.4), burst_rate=0.012, burst_steps=(15, 75), blind=0.8)
FAILURES = Style(pace=(0.8, 1.5), give_up=0.006, burst_steps=(30, 90))

DRIVERS: dict[str, Callable[[int, int], Driver]] = {
    "random": RandomDriver,
    "brownian": BrownianDriver,
    "track": TrackDriver,
    "recovery": lambda cars, seed: TrackDriver(cars, seed, RECOVERY),
    "aggressive": lambda cars, seed: TrackDriver(cars, seed, AGGRESSIVE),
    "explore": lambda cars, seed: TrackDriver(cars, seed, EXPLORE),
    "blind": lambda cars, seed: TrackDriver(cars, seed, BLIND),
    "failures": lambda cars, seed: TrackDriver(cars, seed, FAILURES),
}


def make_driver(name: str, cars: int, seed: int) -> Driver:
    """A driver by its name in `DRIVERS`, for `cars` cars.

    Raises:
        ValueError: for a name that is not there.
    """
    if name not in DRIVERS:
        raise ValueError(f"unknown driver {name!r}; expected one of {', '.join(sorted(DRIVERS))}")
    return DRIVERS[name](cars, seed)
