"""Streams: held-out data is never trained on, orders resume, windows keep ends and alignment."""

import itertools

import jax
import numpy as np
import pytest

from tests.training.episodes import made_up_episode
from training.dataset import ImageStream, WindowStream, held_out_images
from training.latents import encode_store
from training.store import open_store, shard_path
from wm_env.preprocess import mirror, mirror_action
from wm_env.shard import StoreError, write_shard
from wm_env.vae import VAE


@pytest.fixture
def shards(tmp_path):
    for index in range(3):
        seeds = range(10 * index + 1, 10 * index + 5)
        episodes = [made_up_episode(seed, steps=20 + seed % 7, end="off_field") for seed in seeds]
        write_shard(shard_path(tmp_path / "data", index), episodes, {})
    return open_store(tmp_path / "data")


@pytest.fixture
def latents(shards, tmp_path):
    return encode_store(shards, VAE(key=jax.random.key(0)), tmp_path / "latents")


def _seeds(images):
    return set(images[:, 0, 0, 0].tolist())


def test_training_never_sees_the_last_episode_of_a_shard_and_validation_sees_only_it(shards):
    stream = ImageStream(shards, batch=16, seed=0).batches()
    trained = set().union(*(_seeds(batch) for batch in itertools.islice(stream, 30)))
    held_out = _seeds(held_out_images(shards, 30)[0])
    assert trained == {1, 2, 3, 11, 12, 13, 21, 22, 23}
    assert held_out == {4, 14, 24}


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


def test_mirrored_latents_are_encoded_from_mirrored_images(shards, latents):
    vae = VAE(key=jax.random.key(0))
    episode = next(latents[0].episodes(mirrored=lambda: True))
    plain = next(latents[0].episodes())
    image = shards[0].read("images", slice(3, 4))[0]
    expected = vae.encode_mean(jax.numpy.asarray(np.ascontiguousarray(mirror(image))))
    np.testing.assert_allclose(episode.mu[3], expected, atol=2e-3)
    np.testing.assert_array_equal(episode.actions, mirror_action(plain.actions))


def test_latents_of_another_v_are_made_anew_and_of_the_same_v_are_kept(shards, latents, tmp_path):
    before = latents[0].path.stat().st_mtime_ns
    encode_store(shards, VAE(key=jax.random.key(0)), tmp_path / "latents")
    assert latents[0].path.stat().st_mtime_ns == before
    encode_store(shards, VAE(key=jax.random.key(1)), tmp_path / "latents")
    assert latents[0].path.stat().st_mtime_ns > before
