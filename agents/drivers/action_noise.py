"""Noise on a driver's actions, without which the action would tell M what the road looks like."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.drivers.driver import Actions
from wm_env.task import CAR_RACING, Task


@dataclass(frozen=True)
class Style:
    """Ranges from which each car draws how it is driven in this episode.

    pace scales the target speed (1 finishes laps at about 910), grip the steering gain, noise the
    standard deviation of correlated noise on every action, burst_rate the chance a step of a wrong
    manoeuvre that lasts `burst_steps`, blind the share of these that go straight on at some gas,
    borrowed the share that do what another car's driver does meanwhile, on its own road, give_up
    the chance a step of driving properly no more.
    """

    pace: tuple[float, float] = (0.6, 1.3)
    grip: tuple[float, float] = (0.7, 1.8)
    noise: tuple[float, float] = (0.0, 0.3)
    burst_rate: float = 0.004
    burst_steps: tuple[int, int] = (4, 16)
    blind: float = 0.0
    borrowed: float = 0.0
    give_up: float = 0.0


class ActionNoise:
    """Correlated noise on actions and bursts of wrong ones, each car drawing its own size of both.

    The noise is AR(1) with a standard deviation drawn from U(*style.noise), scaled to each action,
    and a memory of 0, 0.6 or 0.9.

    Attributes:
        gone: bool [n], the cars that have given up by now.
    """

    def __init__(
        self, cars: int, random: np.random.Generator, style: Style, task: Task = CAR_RACING
    ):
        self._random, self._style = random, style
        self._low, self._high, size = task.low, task.high, task.action_size
        # A wrong manoeuvre leaves what can rest at rest half of the time.
        resting = np.array([control.rests for control in task.controls])
        self._wrong_low = np.where(resting, 2.0 * self._low - self._high, self._low)
        scale = np.array([control.noise for control in task.controls])
        self._sigma = random.uniform(*style.noise, (cars, 1)) * scale
        self._memory = random.choice([0.0, 0.6, 0.9], (cars, 1))
        self._noise = np.zeros((cars, size))
        self._burst = np.zeros((cars, size))
        self._burst_left = np.zeros(cars, np.int64)
        self._driver = np.arange(cars)  # whose actions a car carries out
        self.gone = np.zeros(cars, bool)

    def disturb(self, actions: NDArray[np.floating]) -> Actions:
        """The actions [n, a] with the next step's noise, within their ranges."""
        noise = self._next_noise()
        self._start_bursts()
        actions = actions[self._driver] + noise
        wrong = (self._burst_left > 0) & (self._driver == np.arange(len(actions)))
        actions = np.where(wrong[:, None], self._burst, actions)
        return np.clip(actions, self._low, self._high).astype(np.float32)

    def _next_noise(self) -> NDArray[np.float64]:
        fresh = self._random.normal(size=self._noise.shape) * self._sigma
        self._noise = self._memory * self._noise + np.sqrt(1.0 - self._memory**2) * fresh
        return self._noise

    def _start_bursts(self) -> None:
        cars = len(self.gone)
        self.gone |= self._random.random(cars) < self._style.give_up
        self._burst_left -= 1
        starts = (self._burst_left <= 0) & (self._random.random(cars) < self._style.burst_rate)
        steps = self._random.integers(*self._style.burst_steps, cars)
        fresh = self._random.uniform(self._wrong_low, self._high, self._burst.shape)
        blind = self._random.random(cars) < self._style.blind
        if blind.any():  # a way of CarRacing's drivers alone
            straight = fresh * [0.15, 0.4, 0.0] + [0.0, 0.2, 0.0]
            fresh = np.where(blind[:, None], straight, fresh)
        self._burst_left = np.where(starts, steps, self._burst_left)
        self._burst = np.where(starts[:, None], fresh, self._burst)
        self._driver = np.where(self._burst_left > 0, self._driver, np.arange(cars))
        if self._style.borrowed > 0.0:
            other = (np.arange(cars) + self._random.integers(1, max(2, cars), cars)) % cars
            borrows = starts & (self._random.random(cars) < self._style.borrowed)
            self._driver = np.where(starts, np.where(borrows, other, np.arange(cars)), self._driver)
