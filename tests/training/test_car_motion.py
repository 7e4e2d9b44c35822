"""The car's motion, read from images and actions, is that of the simulator's car."""

import gymnasium
import numpy as np
import pytest

from agents.drivers import make_driver
from training.car_motion import drive_again, ground_under, motion_of
from wm_env.motion import MOTION_UNITS
from wm_env.preprocess import preprocess

STEPS = 200


@pytest.fixture(scope="module")
def drive():
    """Images, actions and, by the simulator, speed ahead and sideways, turning and steering."""
    env = gymnasium.make("CarRacing-v3")
    driver = make_driver("aggressive", 1, seed=3)
    frame, _ = env.reset(seed=200_003)
    images, actions, moved = [preprocess(frame)], [], [(0.0,) * 4]
    for _ in range(STEPS):
        actions.append(driver.act(frame[None])[0])
        frame, *_ = env.step(actions[-1])
        images.append(preprocess(frame))
        car = env.unwrapped.car
        velocity, hull = car.hull.linearVelocity, car.hull
        moved.append(
            (
                velocity.dot(hull.GetWorldVector((0, 1))),
                velocity.dot(hull.GetWorldVector((1, 0))),
                hull.angularVelocity,
                car.wheels[0].joint.angle,
            )
        )
    env.close()
    return np.stack(images), np.stack(actions).astype(np.float32), np.array(moved)


def test_it_is_the_motion_of_the_simulators_car(drive):
    images, actions, moved = drive
    told = motion_of(images, actions) * np.array([*MOTION_UNITS.values()])
    error = np.sqrt(np.mean(np.square(told[:, :4] - moved), axis=0))
    print("root mean square error", error.round(3), "of", moved.std(axis=0).round(2))
    assert moved[:, 0].max() > 40.0  # a car that stood still would prove nothing
    assert (error < 0.1 * moved.std(axis=0)).all()


def test_grass_slows_the_car_down(drive):
    _, actions, _ = drive
    ahead = [drive_again(actions, np.full((STEPS + 1, 4), road))[-1, 0] for road in (True, False)]
    assert ahead[1] < 0.8 * ahead[0]


def test_grass_is_told_from_the_road(drive):
    images, *_ = drive
    assert ground_under(images)[:100].mean() > 0.9
    grass = np.full((60, 64, 64, 3), (102, 230, 102), np.uint8)
    assert not ground_under(grass)[50:].any()
    assert ground_under(grass)[:50].all()  # the camera is still coming down
