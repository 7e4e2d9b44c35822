"""Drivers that fill a dataset: M learns what they do, so each says what that is.

Their noise matters more than their skill: without it the action tells M what the road looks like,
and in the dream the road then obeys the driver. Scripted drivers read the raw frame, the
dashboard included, which the world model never sees.
"""

import functools
from collections.abc import Callable
from typing import Any

from agents.drivers.action_noise import ActionNoise, Style
from agents.drivers.chance import BrownianDriver, HeldDriver, RandomDriver, WalkDriver
from agents.drivers.driver import Actions, Driver, Frames
from agents.drivers.failures import FailuresDriver
from agents.drivers.heuristic import (
    AggressiveDriver,
    BlindDriver,
    ExploreDriver,
    HeuristicDriver,
    RecoveryDriver,
    SwappedDriver,
)
from agents.drivers.road import road_centres, wheel_speed
from wm_env.task import CAR_RACING, Task

__all__ = [
    "DRIVERS",
    "ActionNoise",
    "Actions",
    "AggressiveDriver",
    "BlindDriver",
    "BrownianDriver",
    "Driver",
    "ExploreDriver",
    "FailuresDriver",
    "Frames",
    "HeldDriver",
    "HeuristicDriver",
    "RandomDriver",
    "RecoveryDriver",
    "Style",
    "SwappedDriver",
    "WalkDriver",
    "drivers_of",
    "make_driver",
    "road_centres",
    "wheel_speed",
]


def _on_policy(cars: int, seed: int, **options: Any) -> Driver:
    from agents.drivers.policy import PolicyDriver  # brings JAX, which scripted drivers do without

    return PolicyDriver(cars, seed, **options)


DRIVERS: dict[str, Callable[..., Driver]] = {
    "random": RandomDriver,
    "brownian": BrownianDriver,
    "held": HeldDriver,
    "heuristic": HeuristicDriver,
    "recovery": RecoveryDriver,
    "aggressive": AggressiveDriver,
    "explore": ExploreDriver,
    "blind": BlindDriver,
    "swapped": SwappedDriver,
    "failures": FailuresDriver,
    "on_policy": _on_policy,
}


def drivers_of(task: Task) -> dict[str, Callable[..., Driver]]:
    """The drivers that there are of a task, by name: those of CarRacing read its road."""
    if task == CAR_RACING:
        return DRIVERS
    chance = {"random": RandomDriver, "brownian": WalkDriver}
    blind = {name: functools.partial(driver, task=task) for name, driver in chance.items()}
    return {**blind, "on_policy": functools.partial(_on_policy, task=task)}


def make_driver(
    name: str, cars: int, seed: int, *, task: Task = CAR_RACING, **options: Any
) -> Driver:
    """A driver by its name in `drivers_of(task)`, for `cars` cars.

    Args:
        name: one of `drivers_of(task)`, of CarRacing `DRIVERS`.
        cars: how many cars it drives at once.
        seed: of what it draws.
        task: what is driven.
        options: of `on_policy` alone: those of `agents.drivers.policy.PolicyDriver`.

    Raises:
        ValueError: for a name that is not there.
    """
    drivers = drivers_of(task)
    if name not in drivers:
        raise ValueError(f"unknown driver {name!r}; expected one of {', '.join(sorted(drivers))}")
    return drivers[name](cars, seed, **options)
