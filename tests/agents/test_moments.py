"""Moments at which M was wrong are found, counted and drawn."""

import imageio.v3 as iio
import jax.numpy as jnp
import numpy as np
import pytest

from agents.moments import APART, AROUND, SLACK, Watched, around, find_moments, peaks, write_moments
from agents.sheet import Block, Strip, write_sheet
from wm_env.foresight import Foresight

STEPS = 300


def foresight(*, surprise=None, tiles=None):
    """What M expects along STEPS steps: always the same nats and tiles unless told."""
    return Foresight(
        z=jnp.zeros((STEPS, 32)),
        tiles=jnp.zeros(STEPS) if tiles is None else jnp.asarray(tiles, jnp.float32),
        off_field=jnp.zeros(STEPS),
        surprise=jnp.full(STEPS, -50.0) if surprise is None else jnp.asarray(surprise, jnp.float32),
    )


@pytest.fixture
def drawn(world, tmp_path, monkeypatch):
    """Draws what M was wrong about and returns the moments and what was handed to the sheet."""

    def draw(foresight, tiles, **options):
        told = []
        monkeypatch.setattr(
            "agents.moments.write_sheet", lambda *given: (told.append(given), write_sheet(*given))
        )
        images = np.broadcast_to(
            np.arange(STEPS + 1, dtype=np.uint16)[:, None, None, None] % 251, (STEPS + 1, 64, 64, 3)
        ).astype(np.uint8)
        watched = Watched("track 7", images, np.zeros((STEPS + 1, 32)), tiles, foresight)
        moments = write_moments(world, watched, tmp_path / "moments.png", **options)
        (_, title, blocks), *_ = told
        assert iio.imread(tmp_path / "moments.png").shape[2] == 4
        return moments, title, blocks

    return draw


def test_a_surprise_is_half_a_nat_a_dimension_above_the_median():
    nats = np.full(STEPS, -50.0)
    nats[[40, 100, 200]] = -50.0 + 15.9, -50.0 + 16.1, 0.0
    assert find_moments(foresight(surprise=nats), np.zeros(STEPS)).surprising == [200, 100]


def test_tiles_promised_and_not_given_are_a_delusion():
    promised, given = np.zeros(STEPS), np.zeros(STEPS)
    promised[[50, 150, 250]] = 1.5, 0.4, 3.0
    given[250] = 1.0
    found = find_moments(foresight(tiles=promised), given)
    assert len(found.deluded) == 2
    assert all(abs(step - at) <= AROUND for step, at in zip(found.deluded, (250, 50), strict=True))
    assert found.promised[50] == pytest.approx(1.5) and found.given[250] == 1.0


def test_tiles_promised_a_little_early_or_late_are_no_delusion():
    promised, given = np.zeros(STEPS), np.zeros(STEPS)
    promised[100:102], given[102:104] = 0.9, 1.0
    promised[200:202], given[190:192] = 0.9, 1.0
    assert not find_moments(foresight(tiles=promised), given).deluded


def test_the_sum_around_a_step_takes_in_its_neighbours_on_both_sides():
    given = np.zeros(60)
    given[30] = 2.0
    expected = np.where(np.abs(np.arange(60) - 30) <= AROUND, 2.0, 0.0)
    np.testing.assert_array_equal(around(given), expected)


def test_tiles_that_come_later_than_the_slack_do_not_count():
    promised, given = np.zeros(STEPS), np.zeros(STEPS)
    promised[100], given[100 + 2 * AROUND + SLACK + 1] = 1.0, 1.0
    assert len(find_moments(foresight(tiles=promised), given).deluded) == 1


def test_peaks_are_the_largest_values_and_lie_apart():
    values = np.zeros(100)
    values[[10, 10 + APART - 1, 60, 99]] = 5.0, 4.0, 6.0, 1.0
    assert peaks(values, least=0.5) == [60, 10, 99]
    assert peaks(values, least=5.0) == [60, 10]
    assert peaks(values, least=7.0) == []


def test_the_page_tells_steps_nats_and_tiles_and_counts_what_it_leaves_out(drawn):
    nats, promised = np.full(STEPS, -50.0), np.zeros(STEPS)
    nats[[60, 100, 140]] = 20.0, 30.0, 10.0
    promised[[0, 200]] = 4.0, 2.0
    given = np.zeros(STEPS)
    given[0] = 1.0
    moments, title, (surprises, delusions) = drawn(
        foresight(surprise=nats, tiles=promised), given, count=2
    )
    assert (len(moments.surprising), len(moments.deluded)) == (3, 2)
    assert surprises.title.startswith("3 surprises, the 2 largest: ")
    assert "(-50 nats)" in surprises.title
    assert delusions.title.startswith("2 delusions: ")
    assert surprises.columns == ["step 100 (2.0 s)\n30 nats", "step 60 (1.2 s)\n20 nats"]
    assert delusions.columns[0] == "step 0 (0.0 s)\npromised 4.0\ngiven 1\n-50 nats"
    assert title.startswith("Where M was wrong: track 7, 300 steps\n")


def test_a_column_shows_the_frame_after_its_step_and_those_shortly_before_and_after(drawn):
    nats = np.full(STEPS, -50.0)
    nats[[100, STEPS - 1]] = 30.0, 20.0
    _, _, (block,) = drawn(foresight(surprise=nats), np.zeros(STEPS))
    shown = {strip.label: strip.images[:, 0, 0, 0].tolist() for strip in block.strips}
    assert shown["real"] == [101, 300 % 251]
    assert shown["real, 0.2 s before"] == [101 - AROUND, (300 - AROUND) % 251]
    assert shown["real, 0.2 s after"] == [101 + AROUND, 255]  # white: the episode is over


def test_a_page_says_so_when_m_was_never_wrong(drawn):
    moments, title, blocks = drawn(foresight(), np.zeros(STEPS))
    assert not moments.surprising and not moments.deluded and blocks == []
    assert title.endswith("Nothing surprised it.\nIt promised no tiles in vain.")


def test_a_sheet_shows_every_pixel_of_its_images_twice_as_large(tmp_path):
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (3, 64, 64, 3))
    strips = [Strip("two", images[:2]), Strip("one", images[2:])]
    write_sheet(tmp_path / "sheet.png", "Title\nwith text", [Block("a block", ["x", "y"], strips)])
    sheet = iio.imread(tmp_path / "sheet.png")[..., :3]
    for colour in colours:
        assert (sheet == colour).all(axis=2).sum() == 4 * 64 * 64
