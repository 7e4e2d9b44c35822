"""Streams: held-out data is never trained on, orders resume, memory is bounded, ends are kept."""

import itertools
import threading
import tracemalloc
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.training.episodes import made_up_episode
from training import dataset, vision
from training import latents as latents_module
from training.dataset import ImageStream, WindowStream, held_out_images
from training.latents import LatentShard, encode_store, open_latents
from training.store import open_store, shard_path
from wm_env.motion import MOTION_MIRRORED, MOTION_SIZE
from wm_env.preprocess import mirror
from wm_env.shard import CHUNK_FRAMES, EpisodeRow, Shard, read_shard, write_shard
from wm_env.storage import StoreError
from wm_env.task import CAR_RACING
from wm_env.vae import VAE, VAEConfig

SMALL = VAEConfig(latent_size=4, encoder_channels=(2,) * 4, decoder_channels=(2,) * 3)


@pytest.fixture(autouse=True)
def small_padding(monkeypatch):
    """Encodes made-up shards, which are small, in a tenth of the time."""
    monkeypatch.setattr(latents_module, "_BATCH", 48)


@pytest.fixture
def shards(tmp_path):
    for index in range(3):
        seeds = range(10 * index + 1, 10 * index + 5)
        episodes = [made_up_episode(seed, steps=20 + seed % 7, end="off_field") for seed in seeds]
        write_shard(shard_path(tmp_path / "data", index), episodes, {})
    return open_store(tmp_path / "data")


@pytest.fixture
def latents(shards, tmp_path):
    return encode_store(shards, VAE(SMALL, key=jax.random.key(0)), tmp_path / "latents")


def _seeds(images):
    return set(images[:, 0, 0, 0].tolist())


def test_training_never_sees_the_last_episode_of_a_shard_and_validation_sees_only_it(shards):
    stream = ImageStream(shards, batch=16, seed=0).batches()
    trained = set().union(*(_seeds(batch) for batch in itertools.islice(stream, 30)))
    held_out = _seeds(held_out_images(shards, 30)[0])
    assert trained == {1, 2, 3, 11, 12, 13, 21, 22, 23}
    assert held_out == {4, 14, 24}


@pytest.fixture
def with_person(shards):
    """The shards, and one of a single episode, as a person drives it."""
    path = shards[0].path.with_name("shard-human-20260101.zip")
    return [*shards, write_shard(path, [made_up_episode(77, driver="human")], {})]


def test_v_and_m_hold_out_the_same_episodes_and_train_on_a_persons_only_one(with_person, tmp_path):
    stream = ImageStream(with_person, batch=16, seed=0).batches()
    trained = set().union(*(_seeds(batch) for batch in itertools.islice(stream, 40)))
    held_out = _seeds(held_out_images(with_person, 40)[0])
    encode_store(with_person, VAE(SMALL, key=jax.random.key(0)), tmp_path / "latents")
    latents = open_latents(tmp_path / "latents")
    assert latents[-1].path.name == "latents-human-20260101.safetensors"
    for ours, kept in ((trained, False), (held_out, True)):
        episodes = [episode for one in latents for episode in one.episodes(held_out=kept)]
        assert ours == {episode.row.seed for episode in episodes}
    assert 77 in trained and held_out == {4, 14, 24}


def test_a_store_that_holds_nothing_out_is_named(with_person):
    with pytest.raises(StoreError, match="no episode is held out"):
        held_out_images(with_person[-1:], 5)


def test_an_epoch_reads_every_training_chunk_once_and_opens_each_file_once_a_pool(
    shards, monkeypatch
):
    monkeypatch.setattr(dataset, "POOL_CHUNKS", 3)
    read, parts = [], Shard.parts

    def recorded(shard, name, at):
        at = list(at)
        read.append((shard.path, [(part.start, part.stop) for part in at]))
        return parts(shard, name, at)

    monkeypatch.setattr(Shard, "parts", recorded)
    # Three shards of two chunks, the second cut where the held-out episode begins: two pools.
    stream, epoch = ImageStream(shards, batch=16, seed=0), []
    for pool in (2, 3):
        read.clear()
        stream._pool(pool)
        opened = [path for path, _ in read]
        assert len(set(opened)) == len(opened)
        epoch += [(path, start, stop) for path, at in read for start, stop in at]
    ends = {shard.path: list(shard.bounds())[-1][1].start for shard in shards}
    assert sorted(epoch) == [
        (path, start, stop)
        for path, end in ends.items()
        for start, stop in ((0, CHUNK_FRAMES), (CHUNK_FRAMES, end))
    ]


def test_the_next_pool_is_read_while_one_is_used(shards, monkeypatch):
    monkeypatch.setattr(dataset, "POOL_CHUNKS", 1)
    began, go_on, calls, parts = (
        threading.Event(),
        threading.Event(),
        itertools.count(),
        Shard.parts,
    )

    def held_up(shard, name, at):
        if next(calls) == 1:
            began.set()
            assert go_on.wait(60)
        return parts(shard, name, at)

    monkeypatch.setattr(Shard, "parts", held_up)
    batches = ImageStream(shards, batch=16, seed=0).batches()
    used = [next(batches)]
    assert began.wait(60), "reading begins although nobody asks for the second pool"
    used += [next(batches)]  # and the first is in use before that reading ends
    assert not go_on.is_set() and len(used) == 2
    go_on.set()
    assert len(list(itertools.islice(batches, 3))) == 3


def _peak_memory(stream, batches):
    tracemalloc.start()
    try:
        for _ in itertools.islice(stream.batches(), batches):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_image_streams_memory_is_two_pools_however_large_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "POOL_CHUNKS", 16)
    pool = 16 * CHUNK_FRAMES * 64 * 64 * 3
    drive = made_up_episode(1, steps=16 * CHUNK_FRAMES - 1, plain=True)
    for index in range(6):
        write_shard(shard_path(tmp_path, index), [drive], {})
    peaks = {}
    for count in (2, 6):
        stream = ImageStream(open_store(tmp_path)[:count], batch=64, seed=0)
        peaks[count] = _peak_memory(stream, 50)
    assert peaks[6] < 1.1 * peaks[2]
    assert 1.5 * pool < peaks[6] < 2 * pool + 6e6  # batches, and chunks being decompressed


def test_a_damaged_chunk_met_in_a_stream_is_named(shards):
    with shards[1].path.open("r+b") as file:
        file.seek(shards[1].path.stat().st_size // 2)
        file.write(b"damage")
    assert len(open_store(shards[1].path.parent)) == 3, "which is not seen without reading"
    with pytest.raises(StoreError, match="shard-00001.zip is damaged: images"):
        for _ in itertools.islice(ImageStream(shards, batch=16, seed=0).batches(), 30):
            pass


def test_images_resumed_at_a_step_are_those_of_an_unbroken_run(shards):
    whole = list(itertools.islice(ImageStream(shards, batch=16, seed=0).batches(), 40))
    resumed = list(itertools.islice(ImageStream(shards, batch=16, seed=0).batches(25), 15))
    for ours, theirs in zip(resumed, whole[25:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_too_little_data_for_a_batch_is_named(shards):
    with pytest.raises(StoreError, match="fewer training images than one batch of 5000"):
        ImageStream(shards, batch=5000, seed=0)


def test_windows_cover_every_step_once_and_keep_the_terminal(latents):
    stream = WindowStream(latents, batch=1, length=8, burn_in=4, seed=0, group=3)
    # An epoch is one group here; nine training episodes of 20 + seed % 7 steps, cut from random
    # offsets.
    steps = sum(20 + seed % 7 for seed in (1, 2, 3, 11, 12, 13, 21, 22, 23))
    counted = ends = 0.0
    for window in stream.batches():
        counted += window.weight.sum()
        ends += (window.off_field * window.weight).sum()
        if counted >= steps:
            break
    assert counted == steps and ends == 9


def test_whole_episodes_are_never_cut_and_nothing_beyond_their_end_counts(latents):
    stream = WindowStream(latents, batch=3, length=30, burn_in=0, whole=True, seed=0, group=3)
    seen = itertools.islice(stream.batches(), 3)
    lengths = np.concatenate([windows.weight.sum(axis=1) for windows in seen])
    # Nine training episodes of 20 + seed % 7 steps, each of which ends off the field.
    assert sorted(lengths) == sorted(20 + seed % 7 for seed in (1, 2, 3, 11, 12, 13, 21, 22, 23))
    for windows in itertools.islice(stream.batches(), 3):
        for row, steps in enumerate(windows.weight.sum(axis=1).astype(int)):
            assert windows.off_field[row].argmax() == steps - 1
            assert not windows.z[row, steps + 1 :].any()


def test_windows_know_their_tracks_number_of_tiles(latents):
    own = [
        LatentShard(shard.path, tuple(replace(row, track_tiles=row.length) for row in shard.rows))
        for shard in latents
    ]
    stream = WindowStream(own, batch=9, length=30, burn_in=0, whole=True, seed=0, group=3)
    windows = next(stream.batches())
    np.testing.assert_array_equal(windows.track_tiles, windows.weight.sum(axis=1))
    assert len(set(windows.track_tiles.tolist())) > 3


def test_windows_resumed_at_a_step_are_those_of_an_unbroken_run(latents):
    stream = WindowStream(latents, batch=5, length=8, burn_in=4, seed=0, group=2)
    whole = list(itertools.islice(stream.batches(), 20))
    for ours, theirs in zip(stream.batches(12), whole[12:], strict=False):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_steps_around_the_roads_losses_weigh_more_and_burn_in_still_nothing(latents, monkeypatch):
    monkeypatch.setattr(dataset, "around_losses", lambda tiles: np.arange(len(tiles)) >= 10)
    stream = WindowStream(latents, batch=9, length=30, burn_in=0, whole=True, trouble=5.0, seed=0)
    for row in next(stream.batches()).weight:
        steps = int(np.count_nonzero(row))
        np.testing.assert_array_equal(row[:steps], np.where(np.arange(steps) >= 10, 5.0, 1.0))
    cut = WindowStream(latents, batch=9, length=8, burn_in=4, trouble=5.0, seed=0)
    assert all((windows.weight == 0).any() for windows in itertools.islice(cut.batches(), 2))


def test_too_few_windows_for_a_batch_are_named(latents):
    stream = WindowStream(latents, batch=64, length=8, burn_in=4, seed=0, held_out=True, group=2)
    with pytest.raises(StoreError, match="enough held-out windows of 8 steps for one batch of 64"):
        next(stream.batches())


def test_damaged_latents_met_in_a_stream_are_named(latents):
    path = latents[1].path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="latents-00001.safetensors cannot be read.*latents`"):
        next(WindowStream(latents, batch=2, length=8, burn_in=4, seed=0).batches())
    with pytest.raises(StoreError, match="latents-00001.safetensors cannot be read"):
        open_latents(path.parent)


def test_the_window_streams_memory_is_two_groups_however_large_the_set(tmp_path):
    row = EpisodeRow("heuristic", 1, 4000, 0.0, 280, False, False)
    arrays = {
        f"{m}{name}": np.zeros((8002, 32), np.float16)
        for m in ("", "mirrored_")
        for name in ("mu", "log_sigma")
    }
    arrays |= {"actions": np.zeros((8000, 3), np.float32), "tiles": np.zeros(8000, np.uint8)}
    arrays["off_field"] = np.zeros(8000, bool)
    arrays["motion"] = np.zeros((8002, MOTION_SIZE), np.float16)
    save_file(arrays, tmp_path / "latents.safetensors")
    shard = LatentShard(tmp_path / "latents.safetensors", (row, row))
    peaks = {}
    for count in (6, 18):
        stream = WindowStream([shard] * count, batch=8, length=32, burn_in=8, seed=0, group=3)
        peaks[count] = _peak_memory(stream, 300)
    group = 3 * 4001 * 156  # one of two episodes is held out; plain or mirrored is read, not both
    assert peaks[18] < 1.1 * peaks[6]
    assert 1.5 * group < peaks[18] < 2 * group + 2e6


def test_windows_are_aligned_latent_before_and_after_each_action(latents):
    episodes = {
        (flip, episode.row.seed): episode
        for flip in (False, True)
        for shard in latents
        for episode in shard.episodes(mirrored=lambda flip=flip: flip)
    }
    window = next(WindowStream(latents, batch=4, length=8, burn_in=4, seed=1, group=3).batches())
    for row in range(4):
        steps = int((window.actions[row] != 0).any(axis=1).sum())
        matches = [
            (at, episode)
            for episode in episodes.values()
            for at in range(len(episode.actions) - steps + 1)
            if np.array_equal(episode.actions[at : at + steps], window.actions[row, :steps])
        ]
        assert len(matches) == 1
        at, episode = matches[0]
        np.testing.assert_array_equal(
            window.z[row, : steps + 1], episode.mu[at : at + steps + 1].astype(np.float32)
        )
        np.testing.assert_array_equal(window.tiles[row, :steps], episode.tiles[at : at + steps])
        np.testing.assert_array_equal(
            window.motion[row, : steps + 1], episode.motion[at : at + steps + 1].astype(np.float32)
        )


def test_mirrored_latents_are_encoded_from_mirrored_images(shards, latents):
    vae = VAE(SMALL, key=jax.random.key(0))
    episode = next(latents[0].episodes(mirrored=lambda: True))
    plain = next(latents[0].episodes())
    image = shards[0].read("images", slice(3, 4))[0]
    expected = vae.latent(jax.numpy.asarray(np.ascontiguousarray(mirror(image))))
    np.testing.assert_allclose(episode.mu[3], expected, atol=2e-3)
    np.testing.assert_array_equal(episode.actions, CAR_RACING.mirror_action(plain.actions))
    assert np.abs(plain.motion[:, [1, 2, 3]]).max() > 0.01
    np.testing.assert_array_equal(
        episode.motion, plain.motion * np.array(MOTION_MIRRORED, np.float16)
    )


def test_a_sampled_v_has_no_mirrored_latents_which_no_driver_acted_upon(shards, tmp_path):
    vae = VAE(replace(SMALL, sampled=True), key=jax.random.key(0))
    for latents in encode_store(shards[:1], vae, tmp_path):
        plain = next(latents.episodes())
        flipped = next(latents.episodes(mirrored=lambda: True))
        np.testing.assert_array_equal(flipped.mu, plain.mu)
        np.testing.assert_array_equal(flipped.actions, plain.actions)
    image = shards[0].read("images", slice(3, 4))[0]
    np.testing.assert_allclose(plain.mu[3], vae.latent(jax.numpy.asarray(image)), atol=2e-3)


def test_v_trains_on_each_image_either_plain_or_mirrored(monkeypatch, lenient_dtypes):
    weights = np.random.default_rng(0).integers(0, 9, (64, 64, 3)).astype(np.float32)

    def seen(vae, image, **_):
        return 0.0 * vae.from_latent.bias.sum(), {"seen": (weights * image).sum()}

    monkeypatch.setattr(vision, "vision_loss", seen)
    config = vision.VisionConfig(vae=SMALL, batch=1)
    step, state, found = vision.make_train_step(config), vision.new_state(config), set()
    image = made_up_episode(3).images[:1]
    for seed in range(12):
        state, metrics = step(state, image, jax.random.key(seed))
        found.add(int(metrics["seen"]))
    plain, mirrored = (int((weights * one[0]).sum()) for one in (image, mirror(image)))
    np.testing.assert_allclose(sorted(found), sorted({plain, mirrored}), rtol=1e-6)


def test_latents_of_a_shard_driven_anew_are_made_anew(shards, latents, tmp_path):
    before = open_latents(tmp_path / "latents")[0].rows
    write_shard(shards[0].path, [made_up_episode(91), made_up_episode(92)], {})
    again = [read_shard(shard.path) for shard in shards]
    encode_store(again, VAE(SMALL, key=jax.random.key(0)), tmp_path / "latents")
    rows = open_latents(tmp_path / "latents")[0].rows
    assert [row.seed for row in before] == [1, 2, 3, 4] and [row.seed for row in rows] == [91, 92]


def test_latents_of_another_v_are_made_anew_and_of_the_same_v_are_kept(shards, latents, tmp_path):
    before = latents[0].path.stat().st_mtime_ns
    encode_store(shards, VAE(SMALL, key=jax.random.key(0)), tmp_path / "latents")
    assert latents[0].path.stat().st_mtime_ns == before
    encode_store(shards, VAE(SMALL, key=jax.random.key(1)), tmp_path / "latents")
    assert latents[0].path.stat().st_mtime_ns > before


def test_m_learns_the_very_draws_that_a_sampled_v_showed_its_drivers(shards, tmp_path):
    means = VAE(SMALL, key=jax.random.key(0))
    draws = VAE(replace(SMALL, sampled=True), key=jax.random.key(0))
    encode_store(shards[:1], means, tmp_path / "latents")
    latents = encode_store(shards[:1], draws, tmp_path / "latents")  # made anew: another V
    episode = next(iter(latents[0].episodes()))
    image = jax.numpy.asarray(shards[0].read("images", slice(5, 6))[0])
    seen = episode.mu[5].astype(np.float32)
    np.testing.assert_allclose(seen, draws.latent(image), atol=2e-3)
    assert np.max(np.abs(seen - np.asarray(means.latent(image)))) > 0.01
