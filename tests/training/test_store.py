"""A store lists its finished shards, on disk or at a URL, and refuses or skips damaged ones."""

import pytest

from tests.training.episodes import made_up_episode
from training.store import clean_unfinished, is_held_out, open_store, shard_path
from wm_env.shard import write_shard
from wm_env.storage import StoreError, to_path


@pytest.fixture(params=["plain", "file", "memory", "local"])
def where(request, tmp_path):
    """A store of three shards, one of them driven by a person; by path and by URL."""
    if request.param == "plain":
        where = str(tmp_path / "data")
    else:
        pytest.importorskip("upath")
        root = f"/{tmp_path.name}" if request.param == "memory" else tmp_path
        where = f"{request.param}://{root}/data"
    for index in (1, 0):
        episodes = [made_up_episode(10 * index + lane, plain=True) for lane in (1, 2)]
        write_shard(shard_path(to_path(where), index), episodes, {"backend": "made up"})
    person = made_up_episode(7, driver="human", plain=True)
    write_shard(to_path(where) / "shard-human-20260101.zip", [person], {"backend": "made up"})
    return where


def _flip_a_bit(path, at):
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0x10
    path.write_bytes(data)


def test_a_store_gives_its_shards_in_the_order_of_their_names(where):
    shards = open_store(where)
    assert [shard.path.name for shard in shards] == [
        "shard-00000.zip",
        "shard-00001.zip",
        "shard-human-20260101.zip",
    ]
    assert [row.seed for shard in shards for row in shard.episodes] == [1, 2, 11, 12, 7]


def test_an_empty_or_missing_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="no finished shard"):
        open_store(tmp_path)


def test_a_truncated_shard_is_refused_by_name(where):
    path = shard_path(to_path(where), 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"shard-00001.zip cannot be read.*collect"):
        open_store(where)


@pytest.mark.parametrize("at", [0.1, 0.5])  # in the manifest, in a chunk
def test_damaged_shards_are_skipped_by_name_and_the_others_are_kept(where, capsys, at):
    _flip_a_bit(shard_path(to_path(where), 0), at)
    shards = open_store(where, damaged="skip")
    assert [shard.path.name for shard in shards] == ["shard-00001.zip", "shard-human-20260101.zip"]
    message = capsys.readouterr().err
    assert message.startswith("skipped: shard ") and message.count("shard-00000.zip") == 1


def test_a_store_of_damaged_shards_only_is_refused_even_when_skipping(tmp_path):
    shard_path(tmp_path, 0).write_bytes(b"not a zip archive")
    with pytest.raises(StoreError, match="every shard of .* is damaged"):
        open_store(tmp_path, damaged="skip")


def test_unfinished_files_of_a_killed_run_are_cleared_and_never_read(where):
    leftover = to_path(where) / ".shard-00001.zip.123"
    leftover.write_bytes(b"half")
    before = open_store(where)
    clean_unfinished(where)
    assert not leftover.exists()
    assert [shard.path for shard in open_store(where)] == [shard.path for shard in before]
    assert len(before) == 3


def test_the_last_of_several_episodes_is_held_out_and_an_only_one_is_not():
    rows = ["a", "b", "c"]
    assert [is_held_out(rows, index) for index in range(3)] == [False, False, True]
    assert not is_held_out(rows[:1], 0)
