"""Scripted drivers: legal, seeded, and the one that follows the road does."""

import gymnasium as gym
import numpy as np
import pytest

from agents.drivers import DRIVERS, Style, TrackDriver, make_driver, road_centres

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", sorted(DRIVERS))
def test_actions_are_legal_and_a_seed_repeats_them(name):
    one, two = make_driver(name, 3, 7), make_driver(name, 3, 7)
    for _ in range(50):
        actions = one.act(FRAMES)
        assert actions.shape == (3, 3) and actions.dtype == np.float32
        assert (actions >= [-1, 0, 0]).all() and (actions <= 1).all()
        np.testing.assert_array_equal(actions, two.act(FRAMES))


def test_an_unknown_driver_is_named():
    with pytest.raises(ValueError, match="unknown driver 'pilot'"):
        make_driver("pilot", 1, 0)


def test_the_road_is_found_where_it_is():
    frame = np.full((1, 96, 96, 3), (102, 229, 102), np.uint8)
    frame[0, :, 60:76] = 105
    np.testing.assert_allclose(
        road_centres(frame)[0, 1:], 67.5
    )  # the first row still comes from the car


@pytest.mark.slow
def test_the_track_driver_without_noise_drives_far_better_than_chance():
    env = gym.make("CarRacing-v3")
    frame, _ = env.reset(seed=3)
    driver = TrackDriver(
        1, 0, Style(pace=(1.0, 1.0), grip=(1.0, 1.0), noise=(0.0, 0.0), burst_rate=0.0)
    )
    ret, over = 0.0, False
    while not over:
        frame, reward, terminated, truncated, _ = env.step(driver.act(frame[None])[0])
        ret, over = ret + float(reward), terminated or truncated
    assert ret > 800.0  # a random driver gets about -30, a full lap about 910
