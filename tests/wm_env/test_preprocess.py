"""Preprocessing exists once, is exact, and is the same in numpy and JAX."""

import hypothesis.extra.numpy as arrays
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from wm_env.preprocess import mirror, preprocess
from wm_env.task import CAR_RACING, LUNAR_LANDER

_frames = arrays.arrays(np.uint8, (2, 96, 96, 3))


@settings(max_examples=15, deadline=None)
@given(_frames)
def test_numpy_and_jax_agree_bit_for_bit(frames):
    ours = preprocess(frames)
    assert isinstance(ours, np.ndarray)
    np.testing.assert_array_equal(ours, np.asarray(preprocess(jnp.asarray(frames))))


def test_random_frames_equal_an_exact_area_average():
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    # Area averaging by brute force: repeat each pixel to the common multiple, then average whole
    # blocks.
    fine = frame[:84].astype(np.float64).repeat(16, axis=0).repeat(2, axis=1)
    exact = fine.reshape(64, 21, 64, 3, 3).mean(axis=(1, 3))
    assert np.abs(preprocess(frame) - exact).max() <= 0.5 + 1e-6


def test_larger_frames_are_averaged_exactly_too_and_alike_in_numpy_and_jax():
    frame = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    fine = frame.astype(np.float64).repeat(4, axis=0).repeat(8, axis=1)
    exact = fine.reshape(64, 25, 64, 75, 3).mean(axis=(1, 3))
    ours = LUNAR_LANDER.preprocess(frame)
    assert np.abs(ours - exact).max() <= 0.5 + 1e-6
    in_jax = LUNAR_LANDER.preprocess(jnp.asarray(frame))
    np.testing.assert_array_equal(ours, np.asarray(in_jax))


def test_the_dashboard_never_reaches_the_image():
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    other = frame.copy()
    other[84:] = 255 - other[84:]
    np.testing.assert_array_equal(preprocess(frame), preprocess(other))


def test_mirrored_frames_give_mirrored_images():
    frame = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        preprocess(np.ascontiguousarray(mirror(frame))), mirror(preprocess(frame))
    )


def test_mirroring_twice_is_the_identity():
    actions = np.float32([[0.3, 0.5, 0.1], [-1.0, 0.0, 1.0]])
    mirrored = CAR_RACING.mirror_action(actions)
    np.testing.assert_array_equal(CAR_RACING.mirror_action(mirrored), actions)
    np.testing.assert_array_equal(mirrored[:, 0], -actions[:, 0])
    np.testing.assert_array_equal(mirrored[:, 1:], actions[:, 1:])


@pytest.mark.parametrize(
    "frames", [np.zeros((64, 64, 3), np.uint8), np.zeros((96, 96, 3), np.float32)]
)
def test_other_shapes_and_dtypes_are_refused(frames):
    with pytest.raises(ValueError, match="expected uint8"):
        preprocess(frames)
