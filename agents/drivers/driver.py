"""What a driver is: it acts for a batch of cars, from raw frames."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wm_env.task import CAR_RACING

Frames = NDArray[np.uint8]
Actions = NDArray[np.float32]

LOW, HIGH = CAR_RACING.low, CAR_RACING.high  # steer, gas, brake


class Driver(Protocol):
    """Acts for a batch of cars at once, one episode long.

    It is seeded and owns its noise. What it does with a car depends on that car's frames alone.
    """

    def act(self, frames: Frames) -> Actions:
        """Actions float32 [n, 3] (steer, gas, brake) for frames uint8 [n, 96, 96, 3].

        Of another task both are that task's.
        """
        ...
