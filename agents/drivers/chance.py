"""Drivers that look at nothing and act by chance."""

import numpy as np

from agents.drivers.driver import HIGH, LOW, Actions, Frames
from wm_env.task import CAR_RACING, Task


class RandomDriver:
    """Independent uniform actions, half of them gas against brake: the car crawls a little.

    M learns what the world looks like from the start, and single actions. The random policy of Ha &
    Schmidhuber (2018) is another in their code: a linear controller of small random weights a
    rollout, which drives on at about half gas. Source: hardmaru/WorldModelsExperiments,
    carracing/extract.py.
    """

    def __init__(self, cars: int, seed: int, task: Task = CAR_RACING):
        self._random = np.random.default_rng(seed)
        self._low, self._high = task.low, task.high
        self._shape = cars, task.action_size

    def act(self, frames: Frames) -> Actions:
        """Actions [n, a]; the frames are not looked at."""
        return self._random.uniform(self._low, self._high, self._shape).astype(np.float32)


class BrownianDriver:
    """A smooth random walk over actions, reflected at its bounds.

    M learns the car itself: grass, spinning, rolling and standing still. Steering takes steps of
    0.14 = sqrt(dt) at 50 frames/s, as in ctallec/world-models, utils/misc.py. Brake and gas walk in
    smaller steps, and beyond zero, which clips them: brake rests most of the time, since held at
    half, where independent walks within the action's range have it on average, it stops the car.
    The seed project (Sha01in/world-models-jax) first walked in steps of 0.1 and pushed gas up where
    it fell below 0.2 (data_collection.py), later averaged uniform actions, a = 0.9 a + 0.1 u
    (scripts/data_collection/data_collection_random_parallel.py), which settles at half gas against
    half brake and hardly steers.
    """

    def __init__(self, cars: int, seed: int):
        self._random = np.random.default_rng(seed)
        self._walk = self._random.uniform([-0.3, 0.0, -0.8], [0.3, 0.9, 0.0], (cars, 3))

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3]; the frames are not looked at."""
        self._walk += self._random.normal(scale=[0.14, 0.08, 0.08], size=self._walk.shape)
        low, high = np.array([-1.0, -0.2, -1.0]), np.array([1.0, 1.0, 0.6])
        self._walk = np.where(self._walk > high, 2 * high - self._walk, self._walk)
        self._walk = np.where(self._walk < low, 2 * low - self._walk, self._walk)
        return np.clip(self._walk, LOW, HIGH).astype(np.float32)


class HeldDriver:
    """Holds one action for a whole episode, drawn for each car: nearly straight on, at any gas.

    M learns speeds that no driver of the road reaches, and where those end: off the field.
    """

    def __init__(self, cars: int, seed: int):
        random = np.random.default_rng(seed)
        steer = np.where(random.random(cars) < 0.5, 0.0, random.normal(0.0, 0.05, cars))
        brake = np.where(random.random(cars) < 0.8, 0.0, random.uniform(0.0, 0.2, cars))
        action = np.stack([steer, random.uniform(0.05, 1.0, cars), brake], axis=1)
        self._action = np.clip(action, LOW, HIGH).astype(np.float32)

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3]; the frames are not looked at."""
        return self._action


class WalkDriver:
    """A smooth random walk over the actions of any task, in steps of 0.07 of their ranges.

    That is the BrownianDriver's step of steering. The walk is reflected at the ranges' ends.
    """

    def __init__(self, cars: int, seed: int, task: Task):
        self._random = np.random.default_rng(seed)
        self._low, self._high = task.low, task.high
        self._walk = self._random.uniform(self._low, self._high, (cars, task.action_size))

    def act(self, frames: Frames) -> Actions:
        """Actions [n, a]; the frames are not looked at."""
        low, high = self._low, self._high
        self._walk += self._random.normal(size=self._walk.shape) * 0.07 * (high - low)
        self._walk = np.where(self._walk > high, 2 * high - self._walk, self._walk)
        self._walk = np.where(self._walk < low, 2 * low - self._walk, self._walk)
        return self._walk.astype(np.float32)
