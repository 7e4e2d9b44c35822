"""Recordings, the dream beside them, and films of both."""

from dataclasses import replace

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import film as film_module
from agents.film import Film, make_film, write_filmstrip, write_gif, write_mp4
from agents.linear import LinearController, linear_policy
from agents.moments import find_moments
from agents.recording import Recording, Syncing, decode, dream_along, record
from agents.telemetry import expected_rewards, write_telemetry
from wm_env.foresight import Foresight, foresee

STEPS = 24
SYNCING = Syncing(watch=4, every=10)


@pytest.fixture(scope="module")
def recording(world):
    return record(linear_policy, LinearController.zeros(), world, seed=3, max_steps=STEPS)


@pytest.fixture(scope="module")
def film(world, recording):
    return make_film(world, recording, syncing=SYNCING)


def test_a_recording_keeps_what_the_driver_saw_and_got(world, recording):
    assert recording.length == STEPS
    assert recording.images.shape == (STEPS + 1, 64, 64, 3)
    assert recording.z.shape == (STEPS + 1, 32) and recording.h.shape == (STEPS + 1, 256)
    np.testing.assert_allclose(
        recording.z[5], world.encode(jnp.asarray(recording.images[5])), atol=1e-4
    )
    assert not recording.h[0].any() and recording.h[1].any()
    np.testing.assert_array_equal(recording.actions[0], np.float32([0.0, 0.5, 0.0]))
    assert not recording.lap_finished and not recording.off_field


def test_the_same_seed_records_the_same_drive(world, recording):
    again = record(
        linear_policy, LinearController.zeros(), world, seed=3, max_steps=STEPS, progress=False
    )
    np.testing.assert_array_equal(again.images, recording.images)
    np.testing.assert_array_equal(again.rewards, recording.rewards)


def test_a_dream_that_always_looks_is_the_real_thing(world, recording):
    looks = np.ones(STEPS + 1, bool)
    dreamt = dream_along(world, recording.z, recording.actions, looks, jax.random.key(0))
    np.testing.assert_array_equal(dreamt.z, recording.z)
    assert not dreamt.alone.any()


def test_a_dream_takes_over_the_real_latent_when_it_looks(film, recording, world):
    looks = SYNCING.looks(STEPS + 1)
    assert list(np.flatnonzero(looks)) == [0, 1, 2, 3, 4, 14, 24]
    assert list(film.alone) == [0, 0, 0, 0, 0, *range(1, 10), 0, *range(1, 10), 0]
    dreamt = dream_along(world, recording.z, recording.actions, looks, jax.random.key(0))
    np.testing.assert_array_equal(dreamt.z[looks], recording.z[looks])
    assert (np.abs(dreamt.z - recording.z).max(axis=1)[~looks] > 0).all()


def test_a_dream_that_looks_goes_on_with_the_carry_of_having_watched(world, recording):
    looks = np.arange(STEPS + 1) == 10
    key = jax.random.key(5)
    dreamt = dream_along(world, recording.z, recording.actions, looks, key)
    carry = world.burn_in(jnp.asarray(recording.z[:11]), jnp.asarray(recording.actions[:10]))
    following = world.advance(
        jnp.asarray(recording.z[10]),
        jnp.asarray(recording.actions[10]),
        carry,
        key=jax.random.split(key, STEPS)[10],
    )
    np.testing.assert_allclose(dreamt.z[11], following.z, atol=1e-4)


def test_the_first_dream_ends_before_the_next_look_or_the_episode():
    assert Syncing().first_dream(1001) == (50, 299)
    assert Syncing().first_dream(101) == (50, 100)
    assert Syncing().first_dream(20) == (19, 19)


def test_decoding_in_batches_leaves_nothing_out(world, recording):
    images = decode(world, recording.z, batch=8)
    assert images.shape == (STEPS + 1, 64, 64, 3)
    np.testing.assert_array_equal(images, decode(world, recording.z, batch=64))


def test_telemetry_holds_every_series(film, recording, tmp_path):
    moments = find_moments(film.foresight, recording.tiles)
    write_telemetry(recording, film.foresight, moments, tmp_path / "drive.npz")
    with np.load(tmp_path / "drive.npz", allow_pickle=False) as series:
        np.testing.assert_array_equal(series["z"], recording.z)
        np.testing.assert_array_equal(series["h"], recording.h)
        np.testing.assert_array_equal(series["action"], recording.actions)
        np.testing.assert_array_equal(series["real_tiles"], recording.tiles)
        np.testing.assert_array_equal(series["predicted_tiles"], film.foresight.tiles)
        np.testing.assert_array_equal(series["predicted_reward"], film.expected_rewards)
        np.testing.assert_array_equal(series["surprise"], film.foresight.surprise)
        for name in ("reward", "predicted_reward", "predicted_off_field", "surprise"):
            assert series[name].shape == (STEPS,) and np.isfinite(series[name]).all()
        assert series["seed"] == 3 and series["track_tiles"] == recording.track_tiles
        assert list(series["deluded"]) == moments.deluded
        assert list(series["surprising"]) == moments.surprising


def test_expected_rewards_pay_what_the_dream_would_on_a_track_of_as_many_tiles(recording):
    assert 230 <= recording.track_tiles <= 340
    foresight = Foresight(
        z=jnp.zeros((3, 32)),
        tiles=jnp.array([0.0, 2.0, 2.0]),
        off_field=jnp.array([0.0, 0.0, 0.25]),
        surprise=jnp.zeros(3),
    )
    two = 2000.0 / recording.track_tiles - 0.1
    expected = [-0.1, two, 0.75 * two - 25.0]
    np.testing.assert_allclose(expected_rewards(recording, foresight), expected, rtol=1e-6)


def test_a_track_that_paid_nothing_counts_as_a_typical_one(recording):
    assert replace(recording, rewards=np.full(STEPS, -0.1, np.float32)).track_tiles == 281


def test_an_end_is_told_in_words(recording):
    assert recording.end == "time limit"
    assert replace(recording, lap_finished=True).end == "lap finished"
    assert replace(recording, off_field=True).end == "off the field"


def test_the_mp4_has_every_frame_and_even_sides(film, tmp_path):
    write_mp4(film, tmp_path / "drive.mp4", scale=2, progress=False)
    video = iio.imread(tmp_path / "drive.mp4")
    assert len(video) == STEPS + 1
    assert video.shape[1] % 2 == 0 and video.shape[2] % 2 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mp4"]


def test_a_film_that_fails_leaves_no_file(film, tmp_path, monkeypatch):
    compose = film_module.compose

    def fail_later(film: Film, time: int, **options):
        if time == 3:
            raise KeyboardInterrupt
        return compose(film, time, **options)

    monkeypatch.setattr(film_module, "compose", fail_later)
    with pytest.raises(KeyboardInterrupt):
        write_mp4(film, tmp_path / "drive.mp4", scale=2, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_gif_shows_every_fourth_frame(film, tmp_path):
    write_gif(film, tmp_path / "drive.gif", frames=20, scale=1)
    assert len(iio.imread(tmp_path / "drive.gif")) == 5


def test_a_film_may_show_what_was_expected_one_step_before(world, recording, tmp_path):
    film = make_film(world, recording, expect="next")
    foresight = foresee(world, recording.z, recording.actions)
    np.testing.assert_array_equal(film.expected[0], film.reconstruction[0])
    np.testing.assert_array_equal(film.expected[1:], decode(world, foresight.z))
    assert list(film.alone[:3]) == [0, 1, 1]
    assert film_module._expected_label(film, 8) == "expected one step before"
    write_filmstrip(film, tmp_path / "strip.png")
    assert iio.imread(tmp_path / "strip.png").std() > 10.0


def test_a_short_film_has_a_filmstrip_too(film, tmp_path):
    write_filmstrip(film, tmp_path / "strip.png")
    strip = iio.imread(tmp_path / "strip.png")
    assert strip.shape[1] > 800 and strip.std() > 10.0


def test_the_dream_panel_says_when_it_is_alone(film):
    labels = [film_module._expected_label(film, time) for time in (0, 8, 14)]
    assert labels == ["dream: watching", "dream: alone for 0.1 s", "dream: re-synced"]


def test_the_line_below_tells_the_return_so_far_and_what_m_expected(film, recording):
    real, expected = recording.rewards[:9].sum(), film.expected_rewards[:9].sum()
    told = film_module._figures(film, 9)
    assert f"return {real:.0f} (M expected {expected:.0f})" in told and "gas" in told
    assert "gas" not in film_module._figures(film, STEPS)


def test_recordings_are_told_by_their_sums(recording):
    assert isinstance(recording, Recording)
    assert recording.ret == pytest.approx(float(recording.rewards.sum()))
