"""How the car of an episode moved: ten numbers a frame, from its images and what was done.

Nothing in a store says them. The ground under each wheel is seen in the images; Gymnasium's own car
is then driven again, with the same actions on the same ground, on an endless plane. EnvPool's car
is the same, as far as its dashboard shows: a pixel of the bar of speed is 20 units/s.
"""

import numpy as np
from gymnasium.envs.box2d.car_dynamics import (
    Box2D,  # pyright: ignore[reportPrivateImportUsage]
    Car,
)
from gymnasium.envs.box2d.car_racing import FPS

from wm_env.motion import MOTION_UNITS

_ROWS, _COLUMNS = (52, 52, 57, 57), (29, 34, 29, 34)  # beside each wheel, in V's image
_GREY = 40  # the most that the channels of asphalt differ by; grass differs by 90
_ZOOMING = 50  # frames, in which the camera comes down and the car stands on the road


class _Road:
    road_friction = 1.0


_ROAD = {_Road()}


def motion_of(images: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Motion before and after each step of an episode of CarRacing, in MOTION_UNITS.

    Args:
        images: uint8 [T + 1, 64, 64, 3], as V sees them, from the first frame on.
        actions: float32 [T, 3].

    Returns:
        float32 [T + 1, 10].
    """
    units = np.array([*MOTION_UNITS.values()], np.float32)
    return drive_again(actions, ground_under(images)) / units


def ground_under(images: np.ndarray) -> np.ndarray:
    """Whether each of four wheels is on the road, bool [T + 1, 4], in an episode's images."""
    beside = images[:, _ROWS, _COLUMNS]
    on_road = np.ptp(beside, axis=-1) < _GREY
    on_road[:_ZOOMING] = True
    return on_road


def drive_again(actions: np.ndarray, on_road: np.ndarray) -> np.ndarray:
    """The numbers of MOTION_UNITS in units/s, rad/s and rad: float32 [T + 1, 10]."""
    world = Box2D.b2World(gravity=(0.0, 0.0))
    car = Car(world, 0.0, 0.0, 0.0)
    told = np.zeros((len(actions) + 1, len(MOTION_UNITS)), np.float32)
    for step, (steer, gas, brake) in enumerate(actions.tolist()):
        for wheel, road in zip(car.wheels, on_road[step], strict=True):
            wheel.tiles = _ROAD if road else set()
        # As CarRacing.step does.
        car.steer(-steer)
        car.gas(gas)
        car.brake(brake)
        car.step(1.0 / FPS)
        world.Step(1.0 / FPS, 6 * 30, 2 * 30)
        told[step + 1, :-1] = _motion(car)
    told[:, -1] = on_road.mean(axis=1) - 1.0
    return told


def _motion(car: Car) -> tuple[float, ...]:
    velocity, hull = car.hull.linearVelocity, car.hull
    front, rear = (
        [wheel.omega * wheel.wheel_rad for wheel in car.wheels[at : at + 2]] for at in (0, 2)
    )
    return (
        velocity.dot(hull.GetWorldVector((0, 1))),
        velocity.dot(hull.GetWorldVector((1, 0))),
        hull.angularVelocity,
        car.wheels[0].joint.angle,
        car.wheels[2].gas,
        sum(front) / 2,
        sum(rear) / 2,
        front[1] - front[0],
        rear[1] - rear[0],
    )
