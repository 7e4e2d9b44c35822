"""Drivers that follow the road that they see: well, with slips, too fast, at random, or blindly."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.drivers.action_noise import ActionNoise, Style
from agents.drivers.driver import Actions, Frames
from agents.drivers.road import CAR_COLUMN, road_centres, wheel_speed


class HeuristicDriver:
    """Follows the road that it sees, slower where it bends, with noise.

    M learns what good driving looks like, and how the car answers small errors. The return is about
    500 on average, 910 without noise at pace and grip 1.
    """

    style: ClassVar[Style] = Style()

    def __init__(self, cars: int, seed: int):
        self._random = np.random.default_rng(seed)
        self._pace = self._random.uniform(*self.style.pace, cars)
        self._grip = self._random.uniform(*self.style.grip, cars)
        self._noise = ActionNoise(cars, self._random, self.style)

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3] for frames [n, 96, 96, 3]."""
        return self._noise.disturb(self._follow(road_centres(frames), wheel_speed(frames)))

    def _follow(
        self, centres: NDArray[np.float64], speed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        near, far, farthest = centres[:, 5], centres[:, 12], centres[:, 18]
        angle_near = np.arctan2(near - CAR_COLUMN, 16.0)
        angle_far = np.arctan2(far - CAR_COLUMN, 30.0)
        bend = abs(np.arctan2(farthest - near, 26.0)) + 0.5 * abs(angle_far)
        target = self._pace * np.clip(34.0 - 26.0 * bend, 9.0, 34.0)
        steer = np.clip(self._grip * (0.6 * angle_near + 0.8 * angle_far), -1.0, 1.0)
        gas = np.clip(0.15 * (target - speed), 0.0, 1.0)
        brake = np.clip(0.1 * (speed - target - 3.0), 0.0, 0.8)
        return np.stack([steer, gas, brake], axis=1)


class RecoveryDriver(HeuristicDriver):
    """Follows the road with many short bursts of wrong manoeuvres, and saves the slide.

    M learns how a car gets back onto the road.
    """

    style = Style(pace=(0.7, 1.1), noise=(0.05, 0.3), burst_rate=0.015, burst_steps=(4, 12))


class AggressiveDriver(HeuristicDriver):
    """Follows the road too fast, so that it slides out of corners.

    M learns the limit of friction.
    """

    style = Style(pace=(1.15, 1.6), grip=(1.0, 2.2), noise=(0.0, 0.3))


class ExploreDriver(HeuristicDriver):
    """Follows the road, but does something random about a third of the time.

    M learns what each action does in each place, as no action tells what the road is like.
    """

    style = Style(pace=(0.5, 1.2), noise=(0.1, 0.6), burst_rate=0.05, burst_steps=(3, 20))


class BlindDriver(HeuristicDriver):
    """Follows the road, but now and then goes straight on for 0.3 to 1.5 seconds, bend or not.

    M learns that speed does not tell that the road is straight.
    """

    style = Style(pace=(0.7, 1.4), burst_rate=0.012, burst_steps=(15, 75), blind=0.8)


class SwappedDriver(HeuristicDriver):
    """Follows the road, but often does for 0.2 to 1.2 seconds what another car's driver does.

    M learns that what a driver does tells nothing of the road: where it does, a dreamt bend melts
    away before the car that drives straight on.
    """

    style = Style(pace=(0.6, 1.5), burst_rate=0.006, burst_steps=(10, 60), borrowed=0.9)
