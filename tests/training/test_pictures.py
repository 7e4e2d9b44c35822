"""What the pictures of V and M tell is true of the models and the data, and gets drawn."""

from dataclasses import replace

import equinox as eqx
import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.moments import find_moments
from tests.training.episodes import made_up_episode
from training.dataset import held_out_images
from training.latents import EpisodeLatents, LatentShard, encode_store
from training.pictures import held_out_drives, memory_pictures, reconstructions, vision_pictures
from training.pictures.calibration import PROBABILITY_EDGES, interval
from training.pictures.dreams import HORIZONS, WATCH, dream_window
from training.pictures.foretelling import dream, foretell, world_of
from training.pictures.tiles import count_tiles, dreams_on_the_way
from training.pictures.vision import REACH, Dimension, moved_along, rebuild, used_dimensions
from wm_env.fidelity.calibration import reliability
from wm_env.shard import EpisodeRow, write_shard
from wm_env.storage import StoreError
from wm_env.vae import Posterior

DRIVERS = {0: ("heuristic", "time"), 1: ("heuristic", "time"), 2: ("failures", "off_field")}
RATE = 0.25


@pytest.fixture(scope="module")
def steady_world(world, with_outcomes):
    """M that always expects the same next latent (1 in all dimensions) and the same tiles."""
    mdn_rnn = with_outcomes(world, log_tiles=float(np.log(RATE)), off_field=-5.0).mdn_rnn
    config = mdn_rnn.config
    means = jnp.zeros((3, config.mixtures, config.latent_size)).at[1].set(1.0).reshape(-1)
    bias = jnp.concatenate([means, mdn_rnn.head_bias[-2:]])
    heads = (jnp.zeros_like(mdn_rnn.head_weight), bias)
    mdn_rnn = eqx.tree_at(lambda m: (m.head_weight, m.head_bias), mdn_rnn, heads)
    return world_of(world.vae, mdn_rnn)


def episode(steps=120, *, seed=0, mu=None):
    random = np.random.default_rng(seed)
    row = EpisodeRow("heuristic", seed, steps, 0.0, 280, False, False)
    mu = random.normal(size=(steps + 1, 32)) if mu is None else mu
    return EpisodeLatents(
        row,
        mu.astype(np.float16),
        np.full((steps + 1, 32), -2.0, np.float16),
        random.uniform(-1, 1, (steps, 3)).astype(np.float32),
        random.integers(0, 2, steps).astype(np.uint8),
        np.zeros(steps, bool),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory, world):
    """Three shards of two episodes, and their latents."""
    folder = tmp_path_factory.mktemp("store")
    shards = []
    for index, (driver, end) in DRIVERS.items():
        episodes = [
            made_up_episode(10 * index, plain=True),
            made_up_episode(10 * index + 1, steps=40, driver=driver, end=end, plain=True),
        ]
        shards.append(write_shard(folder / f"shard-{index:05d}.zip", episodes, {}))
    return shards, encode_store(shards, world.vae, folder / "latents")


def test_a_planted_surprise_is_found(steady_world):
    mu = np.ones((121, 32))
    mu[71] = 4.0
    (foretold,) = foretell(steady_world, [episode(mu=mu)])
    found = find_moments(foretold, np.zeros(120))
    assert found.surprising == [70]  # the step that led to frame 71
    usual = 32 * 0.5 * np.log(2 * np.pi)  # at the mode of a standard normal in each dimension
    assert foretold.surprise[0] == pytest.approx(usual, rel=2e-2)  # M's floor makes sigma 1.007
    assert foretold.surprise[70] == pytest.approx(usual + 32 * 0.5 * 3.0**2, rel=2e-2)
    np.testing.assert_allclose(foretold.z, 1.0, atol=1e-5)


def test_episodes_of_any_number_and_length_are_foretold_as_each_alone(world):
    episodes = [episode(20 + 3 * seed, seed=seed) for seed in range(9)]
    together = foretell(world, episodes)
    for one, foretold in zip(episodes[::4], together[::4], strict=True):
        (alone,) = foretell(world, [one])
        assert len(foretold.tiles) == len(one.actions)
        np.testing.assert_allclose(foretold.tiles, alone.tiles, rtol=1e-4)
        np.testing.assert_allclose(foretold.z, alone.z, atol=1e-4)


def test_a_dream_is_real_while_m_watches_and_ends_with_the_episode(world):
    one = episode(100)
    dreams = dream(world, one, begin=30, watch=20, steps=60, temperatures=(1.0, 1.0))
    assert dreams.alone == 50
    assert dreams.z.shape == (2, 71, 32) and dreams.tiles.shape == (2, 50)
    real = np.broadcast_to(one.mu[30:51].astype(np.float32), (2, 21, 32))
    np.testing.assert_array_equal(dreams.z[:, :21], real)
    assert not np.isclose(dreams.z[:, 21], one.mu[51]).any()
    assert not np.isclose(dreams.z[0, 21], dreams.z[1, 21]).all()


def test_a_dream_pays_the_tiles_that_m_expects_of_what_it_dreamt(world):
    one = episode(40)
    dreams = dream(world, one, begin=0, watch=10, steps=30, temperatures=(1.0,))
    along = replace(one, mu=dreams.z[0])
    (foretold,) = foretell(world, [along])
    np.testing.assert_allclose(dreams.tiles[0], foretold.tiles[10:], rtol=1e-3)


def test_at_temperature_zero_luck_has_no_part(world):
    one = episode(40)
    first, second = (
        dream(world, one, begin=0, watch=10, steps=30, temperatures=(0.0,), seed=seed).z
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)


def test_running_tiles_are_those_of_the_data_and_of_a_steady_m(steady_world):
    one = episode(120)
    (foretold,) = foretell(steady_world, [one])
    tiles = count_tiles(one, foretold, dreams_on_the_way(steady_world, one))
    np.testing.assert_array_equal(tiles.real, [sum(one.tiles[:t]) for t in range(121)])
    np.testing.assert_allclose(tiles.foretold, RATE * np.arange(121), rtol=1e-4)
    ((begin, dreamt),) = tiles.dreamt
    assert begin == 50
    expected = tiles.real[50] + RATE * np.arange(71)
    np.testing.assert_allclose(dreamt, np.tile(expected, (len(dreamt), 1)), rtol=1e-4)


def test_dreams_follow_one_another_to_the_end_of_a_long_episode(steady_world):
    dreams = dreams_on_the_way(steady_world, episode(700))
    spans = [(one.alone, one.alone + one.tiles.shape[1]) for one in dreams]
    assert spans == [(50, 300), (300, 550), (550, 700)]


@pytest.mark.parametrize("length", [1, 9, 120, 1000])
def test_the_dream_shown_lies_within_its_episode(length):
    begin, watch = dream_window(length)
    assert begin >= 0 and begin + watch <= length
    if length >= WATCH + HORIZONS[-1]:
        assert begin + watch + HORIZONS[-1] <= length


def test_a_steady_rate_is_judged_by_the_mean_of_what_came(steady_world):
    one = episode(120)
    (foretold,) = foretell(steady_world, [one])
    (part,) = reliability(foretold.tiles, one.tiles, (0.0, 0.1, 0.5, np.inf)).bins
    assert (part.count, part.predicted) == (120, pytest.approx(RATE, rel=1e-4))
    low, high = interval(part)
    assert part.observed == pytest.approx(one.tiles.mean())
    assert low < part.observed < high


def test_promises_that_are_kept_lie_within_their_intervals_as_often_as_these_say():
    random = np.random.default_rng(0)
    promised = random.uniform(0.0, 1.0, 100_000)
    bins = reliability(promised, random.poisson(promised), np.linspace(0.0, 1.0, 201).tolist()).bins
    assert len(bins) == 200 and sum(part.count for part in bins) == 100_000
    kept = [low <= part.predicted <= high for part in bins for low, high in [interval(part)]]
    assert 0.9 < np.mean(kept) < 0.99


def test_where_nothing_came_the_rate_may_still_be_above_zero():
    (part,) = reliability([0.5, 0.5], [0.0, 0.0], (0.0, 1.0)).bins
    assert interval(part, limit=1.0) == (0.0, 1.0)


def test_every_probability_has_a_bin():
    told = reliability([0.0, 1e-6, 1.0], [0.0, 0.0, 1.0], PROBABILITY_EDGES)
    assert [part.count for part in told.bins] == [2, 1]


def test_used_dimensions_are_sorted_by_how_much_their_mean_varies():
    deviations = np.array([0.5, 2.0, 0.1, 1.0], np.float32)
    mu = np.array([[-1.0], [1.0]], np.float32) * deviations
    sigma = np.array([0.2, 0.1, 0.95, 0.3], np.float32)
    log_sigma = np.broadcast_to(np.log(sigma), mu.shape)
    used = used_dimensions(jax.vmap(Posterior)(jnp.asarray(mu), jnp.asarray(log_sigma)))
    assert [one.index for one in used] == [1, 3, 0]
    assert [one.deviation for one in used] == pytest.approx([2.0, 1.0, 0.5])
    assert [one.sigma for one in used] == pytest.approx([0.1, 0.3, 0.2])


def test_a_traversal_moves_one_dimension_by_its_standard_deviations():
    z = np.arange(4, dtype=np.float32)
    moved = moved_along(z, Dimension(index=2, deviation=2.0, sigma=0.1))
    np.testing.assert_allclose(moved[:, 2], 2.0 + 2.0 * REACH)
    np.testing.assert_array_equal(moved[:, [0, 1, 3]], np.tile(z[[0, 1, 3]], (len(REACH), 1)))
    assert (REACH[0], REACH[len(REACH) // 2], REACH[-1]) == (-2.5, 0.0, 2.5)


def test_errors_are_those_of_the_decoded_mean(world):
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    rebuilt, errors = rebuild(world.vae, images)
    decoded = np.asarray(world.vae.decode(world.vae.latent(jnp.asarray(images[1]))))
    assert errors[1] == pytest.approx(((decoded - images[1] / 255.0) ** 2).sum(), rel=1e-3)
    assert np.abs(rebuilt[1] - decoded * 255.0).max() < 1.0


def test_drives_are_held_out_ones_of_different_drivers_falls_first(store):
    drives = held_out_drives(*store, 3)
    assert [drive.episode.row.seed for drive in drives] == [21, 1, 11]
    for drive in drives:
        assert len(drive.images) == 41  # pixel (0, 0) tells seed and frame
        assert set(drive.images[:, 0, 0, 0].tolist()) == {drive.episode.row.seed}
    assert [drive.episode.row.seed for drive in held_out_drives(*store, 2)] == [21, 1]


def test_latents_of_other_shards_are_refused(store):
    shards, latents = store
    others = [LatentShard(latents[2].path, latents[2].rows)]
    with pytest.raises(StoreError, match="in common; run `python -m training latents`"):
        held_out_drives(shards[:2], others, 3)


def test_reconstructions_are_drawn_for_each_driver(world, tmp_path):
    images = np.zeros((4, 64, 64, 3), np.uint8)
    images[:, :, :, 0] = np.array([50, 100, 150, 200])[:, None, None]
    drivers = ["one", "two", "one", "one"]
    reconstructions(world.vae, images, drivers, tmp_path / "r.png", per_driver=2)
    sheet = iio.imread(tmp_path / "r.png")[..., :3]
    shown = [(sheet == [red, 0, 0]).all(axis=2).sum() > 8000 for red in (50, 100, 150, 200)]
    assert shown == [True, True, True, False]  # the fourth is driver one's third


def test_all_pictures_of_v_and_m_are_written_and_nothing_else(world, store, tmp_path):
    shards, latents = store
    vision_pictures(world.vae, *held_out_images(shards, 6), tmp_path)
    memory_pictures(world.vae, world.mdn_rnn, shards, latents, tmp_path, drives=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "calibration.png",
        "debug_grid-failures-21.png",
        "debug_grid-heuristic-1.png",
        "dreams.png",
        "reconstructions.png",
        "tiles.png",
        "traversals.png",
    ]
    for name in names:
        assert iio.imread(tmp_path / name).std() > 10.0  # not blank
