"""Where the road is lost, told from the tiles of an episode."""

import numpy as np
import pytest

from training.trouble import around_losses, losses


def tiles(*gaps, steps=400, rate=3):
    """A tile every `rate` steps but for gaps of (first step, that after the last)."""
    hit = np.zeros(steps, np.uint8)
    hit[::rate] = 1
    for first, stop in gaps:
        hit[first:stop] = 0
    return hit


def test_a_loss_is_after_the_last_tile_before_half_a_second_without_one():
    np.testing.assert_array_equal(losses(tiles((100, 160), (250, 280))), [100, 250])
    # The next tile is hit 24 steps after the last one: this is no loss.
    np.testing.assert_array_equal(losses(tiles((100, 123))), [])


def test_a_crawling_car_and_one_that_has_only_begun_lose_nothing():
    assert not len(losses(tiles(rate=30)))
    begun = tiles((1, 60))
    assert not len(losses(begun))


def test_the_half_seconds_around_a_loss_are_near_it():
    near = around_losses(tiles((100, 160)))
    np.testing.assert_array_equal(np.flatnonzero(near), np.arange(75, 125))


@pytest.mark.parametrize("steps", [0, 1, 49])
def test_short_episodes_have_no_losses(steps):
    assert not around_losses(np.ones(steps)).any()
