"""Scripted drivers: legal, seeded, and each does what its docstring says."""

import functools
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from agents.drivers import (
    DRIVERS,
    ActionNoise,
    HeuristicDriver,
    Style,
    make_driver,
    road_centres,
    wheel_speed,
)
from wm_env.car_racing import make_car_racing_vector
from wm_env.reward import is_off_field

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
SCRIPTED = sorted(set(DRIVERS) - {"on_policy"})  # test_policy_driver.py has that one
GRASS, ROAD = (102, 229, 102), 105


def straight_road(cars, *, column=48, speed_rows=3):
    """Frames of cars whose straight road is at `column`, with wheel bars of some rows."""
    frames = np.full((cars, 96, 96, 3), GRASS, np.uint8)
    frames[:, :84, column - 8 : column + 8] = ROAD
    frames[:, 84:] = 0
    frames[:, 90 : 90 + speed_rows, 16:27] = (0, 0, 255)
    return frames


@functools.cache
def driven(name, *, steps=400, cars=16, speed_rows=3):
    """Actions [t, n, 3] of a driver that sees a straight road whatever it does."""
    driver, frames = make_driver(name, cars, 5), straight_road(cars, speed_rows=speed_rows)
    return np.stack([driver.act(frames) for _ in range(steps)])


def share_held(actions):
    """Share of steps that repeat the last one's steering to the bit, as only a burst does."""
    return (actions[1:, :, 0] == actions[:-1, :, 0]).mean()


@pytest.mark.parametrize("name", SCRIPTED)
def test_actions_are_legal_and_a_seed_repeats_them(name):
    one, two = make_driver(name, 3, 7), make_driver(name, 3, 7)
    for _ in range(50):
        actions = one.act(FRAMES)
        assert actions.shape == (3, 3) and actions.dtype == np.float32
        assert (actions >= [-1, 0, 0]).all() and (actions <= 1).all()
        np.testing.assert_array_equal(actions, two.act(FRAMES))


@pytest.mark.parametrize("name", sorted(set(SCRIPTED) - {"swapped"}))
def test_what_a_car_does_depends_on_its_own_frames_alone(name):
    one, two = make_driver(name, 3, 7), make_driver(name, 3, 7)
    others = FRAMES.copy()
    others[1:] = 255 - others[1:]
    for _ in range(50):
        np.testing.assert_array_equal(one.act(FRAMES)[0], two.act(others)[0])


@pytest.mark.parametrize("name", SCRIPTED)
def test_another_seed_drives_otherwise(name):
    one, two = make_driver(name, 3, 7), make_driver(name, 3, 8)
    assert not np.array_equal(one.act(FRAMES), two.act(FRAMES))


def test_an_unknown_driver_is_named():
    with pytest.raises(ValueError, match="unknown driver 'pilot'"):
        make_driver("pilot", 1, 0)


def test_the_road_is_found_where_it_is():
    frame = straight_road(1, column=68)
    # the first row still comes from the car
    np.testing.assert_allclose(road_centres(frame)[0, 1:], 67.5)


def test_a_road_far_away_is_found_by_its_nearest_pixel_and_without_one_the_car_goes_straight_on():
    frames = straight_road(2, column=80)
    frames[1, :84] = GRASS
    np.testing.assert_array_equal(road_centres(frames)[:, 0], [72.0, 47.5])
    np.testing.assert_array_equal(road_centres(frames)[1], 47.5)


def test_the_speed_is_the_height_of_the_wheel_bars():
    slow, fast = (wheel_speed(straight_road(1, speed_rows=rows))[0] for rows in (1, 4))
    assert fast == pytest.approx(4 * slow)


def test_random_actions_are_uniform_and_independent():
    actions = driven("random")
    np.testing.assert_allclose(actions.mean((0, 1)), [0.0, 0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(actions.std((0, 1)), np.array([2, 1, 1]) / 12**0.5, atol=0.02)
    steer = actions[..., 0]
    assert abs(np.mean(steer[1:] * steer[:-1])) < 0.02


def test_brownian_actions_are_smooth_and_mostly_do_not_brake():
    actions = driven("brownian", steps=1000)
    steps = np.diff(actions[..., 0], axis=0)
    assert steps.std() == pytest.approx(0.14, abs=0.01)
    assert abs(steps).max() < 0.8
    assert np.abs(actions[..., 0]).max() == pytest.approx(1.0, abs=0.01)
    assert 0.55 < (actions[..., 2] == 0.0).mean() < 0.75


def test_recovery_slips_more_often_than_heuristic_and_explore_a_third_of_the_time():
    heuristic, recovery, explore = (
        share_held(driven(name)) for name in ("heuristic", "recovery", "explore")
    )
    assert heuristic < 0.06
    assert 0.07 < recovery < 0.13
    assert 0.25 < explore < 0.45


def test_aggressive_asks_for_more_speed_than_heuristic_and_recovery_for_less():
    gas = {
        name: driven(name)[..., 1].mean() - driven(name)[..., 2].mean()
        for name in ("heuristic", "aggressive", "recovery")
    }
    assert gas["recovery"] < gas["heuristic"] < gas["aggressive"]


def test_blind_goes_straight_on_for_a_while_without_braking():
    actions = driven("blind", steps=1000)
    held = (actions[1:] == actions[:-1]).all(-1)
    steer, gas, brake = actions[1:][held].T
    straight = (abs(steer) <= 0.15) & (brake == 0.0) & (gas >= 0.2) & (gas <= 0.6)
    assert held.mean() > 0.2
    assert straight.mean() > 0.75


def failing(manner, actions):
    """Whether actions [..., 3] are of a manner of failing, on a straight road at too high speed."""
    steer, gas, brake = np.moveaxis(actions, -1, 0)
    return {
        "away": (abs(steer) <= 0.02) & (gas >= 0.2) & (gas <= 0.6) & (brake == 0.0),
        "spin": (abs(steer) == 1.0) & (gas >= 0.5) & np.isin(brake, np.float32([0.0, 0.8])),
        "reckless": (abs(steer) < 1.0) & (gas == 1.0) & (brake == 0.0),
    }[manner]


def test_failures_come_in_the_manners_that_are_told_and_leave_at_last():
    actions = driven("failures", steps=1500, cars=48, speed_rows=6)
    assert failing("away", actions[-100:]).mean() > 0.95
    assert failing("away", actions[:20]).mean() < 0.1
    steer, brake = (sliding_window_view(actions[..., i], 20, 0).mean(-1) for i in (0, 2))
    beside = (abs(steer) > 0.4) & (brake > 0.3)  # steers off a straight road that it sees ahead
    for steps in (failing("spin", actions), failing("reckless", actions), beside):
        assert 0.1 < (steps.sum(0) > 20).mean() < 0.4  # a quarter of the cars


class CleanDriver(HeuristicDriver):
    style = Style(pace=(1.0, 1.0), grip=(1.0, 1.0), noise=(0.0, 0.0), burst_rate=0.0)


@pytest.mark.slow
def test_the_heuristic_driver_without_noise_drives_far_better_than_chance():
    env = gym.make("CarRacing-v3")
    frame, _ = env.reset(seed=3)
    driver = CleanDriver(1, 0)
    ret, over = 0.0, False
    while not over:
        frame, reward, terminated, truncated, _ = env.step(driver.act(frame[None])[0])
        ret, over = ret + float(reward), terminated or truncated
    assert ret > 800.0  # a random driver gets about -30, a full lap about 910


@pytest.mark.slow
def test_more_than_a_third_of_the_failures_leave_the_field_of_envpool():
    pytest.importorskip("envpool")
    seeds = list(range(100_000, 100_016))
    driver = make_driver("failures", len(seeds), seeds[0])
    left, over = np.zeros((2, len(seeds)), bool)
    with closing(make_car_racing_vector(len(seeds), backend="envpool")) as env:
        frames, _ = env.reset(seed=seeds)
        for _ in range(1000):
            frames, rewards, terminated, truncated, _ = env.step(driver.act(frames))
            left |= is_off_field(rewards) & ~over
            over |= terminated | truncated
            if over.all():
                break
    assert left.mean() > 1 / 3


def test_a_swapped_car_does_what_another_cars_driver_does():
    style = Style(noise=(0.0, 0.0), burst_rate=0.05, burst_steps=(5, 20), borrowed=1.0)
    noise = ActionNoise(4, np.random.default_rng(0), style)
    wanted = np.array([[-0.3, 0.1, 0.0], [-0.1, 0.2, 0.0], [0.1, 0.3, 0.0], [0.3, 0.4, 0.0]])
    done = np.stack([noise.disturb(wanted) for _ in range(2000)])
    whose = np.abs(done[:, :, None, 0] - wanted[:, 0]).argmin(axis=2)
    np.testing.assert_allclose(done, wanted[whose], atol=1e-6)
    own = (whose == np.arange(4)).mean()
    assert 0.45 < own < 0.75  # bursts of 12 steps on average, 20 apart
    lengths = np.diff(np.flatnonzero(np.diff(whose[:, 0])))
    assert len(set(whose[:, 0])) == 4
    assert lengths.max() > 20


def test_a_held_car_does_one_thing_for_ever_and_cars_differ():
    actions = driven("held")
    assert (actions == actions[0]).all()
    assert len(np.unique(actions[0], axis=0)) == 16
    assert np.abs(actions[0, :, 0]).max() < 0.3
    assert actions[0, :, 1].max() > 0.8 > 0.3 > actions[0, :, 1].min()
