"""A store holds what was driven, appears whole, and names its damage."""

import numpy as np
import pytest

from tests.training.episodes import made_up_episode
from training.store import clean_unfinished, open_store, shard_path
from wm_env.shard import STEP_ARRAYS, StoreError, read_shard, write_shard


@pytest.fixture
def shard(tmp_path):
    episodes = [
        made_up_episode(1),
        made_up_episode(2, steps=7, end="off_field"),
        made_up_episode(3),
    ]
    write_shard(shard_path(tmp_path, 0), episodes, {"backend": "made up"})
    return read_shard(shard_path(tmp_path, 0))


def test_a_shard_gives_back_every_episode(shard):
    shard.verify()
    group = {name: shard.read(name) for name in ("images", *STEP_ARRAYS)}
    for row, frames, steps in shard.bounds():
        original = made_up_episode(
            row.seed, steps=row.length, end="off_field" if row.terminated else "time"
        )
        np.testing.assert_array_equal(group["images"][frames], original.images)
        for name in ("actions", "rewards", "terminated", "truncated", "tiles", "off_field"):
            np.testing.assert_array_equal(group[name][steps], getattr(original, name))


def test_tiles_and_the_field_are_read_from_the_rewards():
    episode = made_up_episode(2, steps=7, end="off_field")
    np.testing.assert_array_equal(episode.tiles, [1, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(episode.off_field, [0, 0, 0, 0, 0, 0, 1])


def test_a_time_limit_is_not_stored_as_a_terminal(shard):
    group = {name: shard.read(name) for name in ("terminated", "truncated")}
    ends = [
        (bool(group["terminated"][steps][-1]), bool(group["truncated"][steps][-1]))
        for _, _, steps in shard.bounds()
    ]
    assert ends == [(False, True), (True, False), (False, True)]


def test_an_empty_or_missing_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="no finished shard"):
        open_store(tmp_path)


def test_a_truncated_shard_is_named(shard):
    shard.path.write_bytes(shard.path.read_bytes()[: shard.path.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"shard-00000.zip cannot be read.*collect"):
        open_store(shard.path.parent)


def test_a_foreign_file_is_named(tmp_path):
    shard_path(tmp_path, 0).write_bytes(b"not a zip archive")
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(tmp_path)


def test_a_flipped_bit_is_found(shard):
    data = bytearray(shard.path.read_bytes())
    data[len(data) // 3] ^= 0x10
    shard.path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        read_shard(shard.path).verify()


def test_unfinished_files_of_a_killed_run_are_cleared_and_never_read(shard):
    leftover = shard.path.with_name(".shard-00001.zip.123")
    leftover.write_bytes(b"half")
    assert len(open_store(shard.path.parent)) == 1
    clean_unfinished(shard.path.parent)
    assert not leftover.exists() and shard.path.exists()
