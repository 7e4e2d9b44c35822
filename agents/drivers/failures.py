"""The driver that fails on purpose: the end of an episode must occur in the data."""

import numpy as np
from numpy.typing import NDArray

from agents.drivers.action_noise import Style
from agents.drivers.driver import HIGH, LOW, Actions, Frames
from agents.drivers.heuristic import HeuristicDriver

_MANNERS = ("away", "reckless", "spin", "grass")
_LEAVING = 0.005  # a step, the chance of a car that fails to go away


class FailuresDriver(HeuristicDriver):
    """Drives well at first, then fails in a manner drawn for each car, and leaves at last.

    M learns grass, spins and the edge of the field with its -100, and what led there. The manners:

        reckless  full gas, the steering drawn anew every 5 steps or so
        spin      full lock one way and gas, with taps of the brake
        grass     along the road, but beside it
        away      nearly straight on at some gas, across the grass and off the field
    """

    style = Style(pace=(0.8, 1.5), give_up=0.01)

    def __init__(self, cars: int, seed: int):
        super().__init__(cars, seed)
        self._manner = self._random.choice(_MANNERS, cars)
        self._side = self._random.choice([-1.0, 1.0], cars)
        self._drawn = self._random.uniform([-1.0, 0.0], [1.0, 1.0], (cars, 2))

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3] for frames [n, 96, 96, 3]."""
        actions = super().act(frames)
        leaves = self._noise.gone & (self._random.random(len(actions)) < _LEAVING)
        self._manner = np.where(leaves, "away", self._manner)
        fails = self._noise.gone & (self._manner != "grass")
        return np.where(fails[:, None], self._fail(), actions)

    def _follow(
        self, centres: NDArray[np.float64], speed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        aside = np.where(self._noise.gone & (self._manner == "grass"), 18.0 * self._side, 0.0)
        return super()._follow(centres + aside[:, None], speed)

    def _fail(self) -> Actions:
        cars = len(self._drawn)
        steps = np.where(self._manner == "away", 60, 5)  # that a draw is held, on average
        fresh = self._random.uniform([-1.0, 0.0], [1.0, 1.0], (cars, 2))
        again = self._random.random(cars) < 1.0 / steps
        self._drawn = np.where(again[:, None], fresh, self._drawn)
        tap = self._random.random(cars) < 0.1
        (steer, gas), none = self._drawn.T, np.zeros(cars)
        manners = {
            "reckless": [steer, none + 1.0, none],
            "spin": [self._side, 0.5 + 0.5 * gas, 0.8 * tap],
            "away": [0.02 * steer, 0.2 + 0.4 * gas, none],
        }
        actions = np.zeros((cars, 3))
        for manner, action in manners.items():
            mine = self._manner == manner
            actions[mine] = np.stack(action, axis=1)[mine]
        return np.clip(actions, LOW, HIGH).astype(np.float32)
