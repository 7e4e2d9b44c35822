"""CarRacing's reward rule, read backwards."""

import numpy as np
import pytest

from wm_env.reward import TileCounter, is_off_field, recover_track_tiles


@pytest.mark.parametrize("track_tiles", [230, 281, 340])
def test_the_number_of_tiles_is_recovered_from_the_first_payment_which_is_for_two(track_tiles):
    rewards = np.float32([2000.0 / track_tiles - 0.1, -0.1, -0.1])
    assert recover_track_tiles(rewards) == track_tiles


def test_the_number_of_tiles_is_recovered_from_the_least_payment():
    rewards = np.float32([-0.1, 3000 / 290 - 0.1, 1000 / 290 - 0.1, 2000 / 290 - 0.1])
    assert recover_track_tiles(rewards) == 290


def test_without_a_payment_the_number_of_tiles_is_unknown():
    assert recover_track_tiles(np.float32([-0.1, -100.0])) == 0
    assert recover_track_tiles(np.zeros(0)) == 0


def test_lanes_count_their_tiles_and_begin_anew_apart():
    counter = TileCounter(2)
    paid = np.array([1000 / 250, 1000 / 310])
    np.testing.assert_array_equal(counter.count(2 * paid - 0.1), [2, 2])
    np.testing.assert_array_equal(counter.count(np.array([paid[0] - 0.1, -0.1])), [3, 2])
    counter.restart(np.array([True, False]))
    np.testing.assert_array_equal(counter.count(np.array([-0.1, -100.0])), [0, 2])


def test_only_the_fall_off_the_field_counts_as_one():
    np.testing.assert_array_equal(is_off_field([-100.0, -0.1, 3.4]), [True, False, False])
