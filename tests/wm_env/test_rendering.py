"""Pictures: sizes, where the score goes, and sheets that keep every frame."""

import numpy as np
import pygame
import pytest

from wm_env import rendering


def gradient():
    rows = np.linspace(0, 255, 64).astype(np.uint8)
    return np.broadcast_to(rows[:, None, None], (64, 64, 3)).copy()


def test_screen_shows_the_image_above_a_dashboard():
    frame = rendering.screen(gradient())
    assert frame.shape == (400, 600, 3) and frame.dtype == np.uint8
    assert frame[2].max() < 10 and frame[347].min() > 245
    assert not frame[350:].any()


def test_score_is_written_on_the_dashboard_only():
    plain, scored = rendering.screen(gradient()), rendering.screen(gradient(), 906.4)
    np.testing.assert_array_equal(plain[:350], scored[:350])
    assert scored[350:].max() > 200
    assert not np.array_equal(scored, rendering.screen(gradient(), 907.0))


def test_upscale_keeps_orientation():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, 32:] = (255, 0, 0)
    large = rendering.upscale(image, 350, 600)
    assert large.shape == (350, 600, 3)
    np.testing.assert_array_equal(large[50, 500], (255, 0, 0))
    np.testing.assert_array_equal(large[300, 100], (0, 0, 0))


@pytest.mark.parametrize(("count", "columns", "shape"), [(5, 3, (130, 196)), (3, 3, (64, 196))])
def test_filmstrip_lays_frames_out_in_rows(count, columns, shape):
    images = np.stack([np.full((64, 64, 3), 40 * (i + 1), np.uint8) for i in range(count)])
    sheet = rendering.filmstrip(images, columns)
    assert sheet.shape == (*shape, 3)
    for index in range(count):
        row, column = divmod(index, columns)
        assert sheet[row * 66 + 30, column * 66 + 30, 0] == 40 * (index + 1)


def test_contact_sheet_labels_rows_of_any_length():
    rows = [np.full((count, 64, 64, 3), 99, np.uint8) for count in (2, 4)]
    sheet = rendering.contact_sheet(rows, ["real", "dream"])
    assert sheet.shape[1] == 4 * 66 - 2
    assert sheet[:18].max() == 255
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        rendering.contact_sheet(rows, ["real"])


def test_text_is_written_after_pygame_was_quit():
    before = rendering.text_image("906", 30)
    pygame.quit()
    np.testing.assert_array_equal(rendering.text_image("906", 30), before)


def test_side_by_side_takes_frames_and_videos():
    left, right = np.zeros((5, 64, 64, 3), np.uint8), np.full((5, 64, 64, 3), 255, np.uint8)
    assert rendering.side_by_side(left[0], right[0]).shape == (82, 130, 3)
    video = rendering.side_by_side(left, right)
    assert video.shape == (5, 82, 130, 3)
    assert video[:, 18:, :64].max() == 0 and video[:, 18:, 66:].min() == 255
    with pytest.raises(ValueError, match="expected equal shapes"):
        rendering.side_by_side(left, right[:2])
