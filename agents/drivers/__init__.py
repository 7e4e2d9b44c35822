"""Drivers that fill a dataset: M learns what they do, so each says what that is.

Their noise matters more than their skill: without it the action tells M what the road looks like,
and in the dream the road then obeys the driver. Scripted drivers read the raw frame, the
dashboard included, which the world model never sees.
"""

from collections.abc import Callable
from typing import Any

from agents.drivers.action_noise import ActionNoise, Style
from agents.drivers.chance import BrownianDriver, RandomDriver
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
    "HeuristicDriver",
    "RandomDriver",
    "RecoveryDriver",
    "Style",
    "SwappedDriver",
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
    "heuristic": HeuristicDriver,
    "recovery": RecoveryDriver,
    "aggressive": AggressiveDriver,
    "explore": ExploreDriver,
    "blind": BlindDriver,
    "swapped": SwappedDriver,
    "failures": FailuresDriver,
    "on_policy": _on_policy,
}


def make_driver(name: str, cars: int, seed: int, **options: Any) -> Driver:
    """A driver by its name in `DRIVERS`, for `cars` cars.

    Args:
        name: one of `DRIVERS`.
        cars: how many cars it drives at once.
        seed: of what it draws.
        options: of `on_policy` alone: those of `agents.drivers.policy.PolicyDriver`.

    Raises:
        ValueError: for a name that is not there.
    """
    if name not in DRIVERS:
        raise ValueError(f"unknown driver {name!r}; expected one of {', '.join(sorted(DRIVERS))}")
    return DRIVERS[name](cars, seed, **options)
