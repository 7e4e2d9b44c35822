"""A shard gives back what was driven, or names its damage; it never gives anything else."""

import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.episodes import made_up_episode
from wm_env.shard import STEP_ARRAYS, checksum, read_shard, write_shard
from wm_env.storage import StoreError, to_path

ARRAYS = ("images", *STEP_ARRAYS)


@pytest.fixture
def episodes():
    # 81 frames: two chunks of images.
    return [
        made_up_episode(1, steps=40, plain=True),
        made_up_episode(2, steps=7, end="off_field", plain=True),
        made_up_episode(3, plain=True),
    ]


@pytest.fixture
def shard(tmp_path, episodes):
    write_shard(tmp_path / "shard-00000.zip", episodes, {"backend": "made up"})
    return read_shard(tmp_path / "shard-00000.zip")


def _arrays(shard):
    return {name: shard.read(name) for name in ARRAYS}


def _rewrite(path, change):
    """Write the archive anew, each file being `change(name, bytes)`, or left out where None."""
    with zipfile.ZipFile(path) as archive:
        files = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(name, data)


def _rewrite_json(path, name, change):
    """Change one of the JSON files of the archive in place, with correct CRCs."""

    def changed(found, data):
        if found != name:
            return data
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    _rewrite(path, changed)


def test_a_shard_gives_back_every_episode(shard, episodes):
    shard.verify()
    arrays = _arrays(shard)
    for episode, (row, frames, steps) in zip(episodes, shard.bounds(), strict=True):
        assert (row.seed, row.driver, row.track_tiles) == (episode.seed, "heuristic", 280)
        assert row.ret == pytest.approx(float(episode.rewards.sum()), abs=1e-3)
        np.testing.assert_array_equal(arrays["images"][frames], episode.images)
        for name in STEP_ARRAYS:
            np.testing.assert_array_equal(arrays[name][steps], getattr(episode, name))


def test_arrays_have_the_dtypes_of_the_format_whatever_was_given(tmp_path, episodes):
    wide = replace(episodes[0], rewards=episodes[0].rewards.astype(np.float64))
    write_shard(tmp_path / "shard.zip", [wide], {})
    arrays = _arrays(read_shard(tmp_path / "shard.zip"))
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    assert dtypes == {
        "images": "uint8",
        "actions": "float32",
        "rewards": "float32",
        "tiles": "uint8",
        "off_field": "bool",
        "terminated": "bool",
        "truncated": "bool",
    }


def test_tiles_and_the_field_are_read_from_the_rewards():
    episode = made_up_episode(2, steps=7, end="off_field")
    np.testing.assert_array_equal(episode.tiles, [1, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(episode.off_field, [0, 0, 0, 0, 0, 0, 1])


def test_a_time_limit_is_not_stored_as_a_terminal(shard):
    ends = [
        (bool(shard.read("terminated", steps)[-1]), bool(shard.read("truncated", steps)[-1]))
        for _, _, steps in shard.bounds()
    ]
    assert ends == [(False, True), (True, False), (False, True)]


def test_parts_are_those_slices_of_the_array_in_the_order_asked(shard):
    images = shard.read("images")
    at = [slice(60, 70), slice(0, 3), slice(80, 81)]
    for part, where in zip(shard.parts("images", at), at, strict=True):
        np.testing.assert_array_equal(part, images[where])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7) | st.none())
def test_a_flipped_bit_or_a_cut_is_refused_or_changes_nothing(shard, place, bit):
    """`place` is where in the file; `bit` which of that byte is flipped, or None for a cut."""
    whole, original = shard.path.read_bytes(), _arrays(shard)
    damaged = bytearray(whole)
    at = int(place * len(whole))
    if bit is None:
        del damaged[at:]
    else:
        damaged[at] ^= 1 << bit
    other = shard.path.with_name("damaged.zip")
    other.write_bytes(damaged)
    # Opened after the damage, or before it, when only the reads can notice.
    for reopen in (True, False):
        try:
            opened = read_shard(other) if reopen else replace(shard, path=other)
            opened.verify()
            found = _arrays(opened)
        except StoreError as error:
            assert "damaged.zip" in str(error)
            continue
        assert opened.episodes == shard.episodes and opened.manifest == shard.manifest
        for name in ARRAYS:
            np.testing.assert_array_equal(found[name], original[name])


@pytest.mark.parametrize("chunk", ["images/c/1/0/0/0", "actions/c/0/0", "truncated/c/0"])
def test_a_missing_chunk_is_named_and_never_read_as_zeros(shard, chunk):
    _rewrite(shard.path, lambda name, data: None if name == chunk else data)
    with pytest.raises(StoreError, match=rf"shard-00000.zip is damaged.*{chunk} first"):
        read_shard(shard.path)
    with pytest.raises(StoreError, match="shard-00000.zip is damaged.*chunks are missing"):
        shard.read(chunk.split("/")[0])


def test_another_chunk_in_the_place_of_one_fails_the_checksum(shard):
    with zipfile.ZipFile(shard.path) as archive:
        other = archive.read("terminated/c/0")
    _rewrite(shard.path, lambda name, data: other if name == "truncated/c/0" else data)
    with pytest.raises(StoreError, match="shard-00000.zip is damaged: truncated does not match"):
        read_shard(shard.path).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(format="another"), "has format"),
        (lambda found: found.update(format_version=1), "expected .*wm_env.store.* 2"),
        (lambda found: found.pop("episodes"), "damaged: .*episodes"),
        (lambda found: found.pop("checksums"), "damaged: .*checksums"),
        (lambda found: found["checksums"].pop("tiles"), "the checksum of every array"),
        (lambda found: found.pop("provenance"), "damaged: .*provenance"),
        (lambda found: found.update(provenance=None), "what collected it"),
        (lambda found: found.update(episodes=[]), "names no episode"),
        (lambda found: found.update(episodes=7), "damaged"),
        (lambda found: found["episodes"][1].pop("ret"), "not an EpisodeRow"),
        (lambda found: found["episodes"][1].update(weather="rain"), "not an EpisodeRow"),
        (lambda found: found["episodes"][1].update(length="7"), "not an EpisodeRow"),
        (lambda found: found["episodes"][1].update(length=-7), "not an EpisodeRow"),
        (lambda found: found["episodes"][1].update(length=8), "add up to"),
        (lambda found: found["episodes"].pop(), "add up to"),
        (lambda found: found["checksums"].update(tiles=None), "match its checksum None"),
    ],
)
def test_a_manifest_of_other_content_is_refused(shard, change, message):
    _rewrite_json(shard.path, "zarr.json", lambda value: change(value["attributes"]))
    with pytest.raises(StoreError, match=f"shard-00000.zip .*{message}"):
        read_shard(shard.path).verify()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images", {"data_type": "int8"}),
        ("rewards", {"data_type": "float64"}),
        ("actions", {"shape": [78, 3]}),
        ("actions", {"shape": [77, 4]}),
        ("tiles", {"chunk_grid": {"configuration": {"chunk_shape": [7]}}}),
        ("images", {"chunk_grid": None}),
    ],
)
def test_an_array_of_another_shape_or_dtype_is_refused(shard, name, change):
    _rewrite_json(shard.path, f"{name}/zarr.json", lambda value: value.update(change))
    with pytest.raises(StoreError, match="shard-00000.zip is damaged"):
        read_shard(shard.path)


@pytest.mark.parametrize("content", [b"", b"not a zip archive", b"PK\x05\x06" + bytes(18)])
def test_a_foreign_file_is_named(tmp_path, content):
    (tmp_path / "shard-00000.zip").write_bytes(content)
    with pytest.raises(StoreError, match=r"shard-00000.zip cannot be read.*collection again"):
        read_shard(tmp_path / "shard-00000.zip")


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"no shard at .*shard-00000.zip"):
        read_shard(tmp_path / "shard-00000.zip")


def test_a_failed_write_leaves_nothing_behind(tmp_path, episodes):
    with pytest.raises(TypeError, match="JSON"):
        write_shard(tmp_path / "shard-00000.zip", episodes, {"backend": object()})
    assert list(tmp_path.iterdir()) == []


def _remote(tmp_path, protocol):
    """A folder that is reached through fsspec: its own copy, no renaming in place."""
    pytest.importorskip("upath")
    root = f"memory://{tmp_path.name}" if protocol == "memory" else f"local://{tmp_path}"
    return to_path(f"{root}/data")


@pytest.mark.parametrize("protocol", ["memory", "local"])
def test_a_shard_at_a_url_gives_back_every_array(tmp_path, episodes, shard, protocol):
    path = _remote(tmp_path, protocol) / "shard-00007.zip"
    write_shard(path, episodes, {"backend": "made up"})
    remote = read_shard(path)
    remote.verify()
    assert remote.episodes == shard.episodes
    for name, array in _arrays(remote).items():
        np.testing.assert_array_equal(array, shard.read(name))


def test_a_shard_at_a_url_gets_its_name_after_its_bytes(tmp_path, episodes, monkeypatch):
    path = _remote(tmp_path, "memory") / "shard-00007.zip"
    moves = []
    original = type(path.fs).mv

    def move(fs, source, target, **options):
        moves.append((source.rsplit("/", 1)[1], path.exists(), fs.size(source)))
        original(fs, source, target, **options)

    monkeypatch.setattr(type(path.fs), "mv", move)
    write_shard(path, episodes, {})
    ((hidden, existed, size),) = moves
    assert hidden.startswith(".shard-00007.zip.") and not existed
    assert size == path.stat().st_size
    assert [found.name for found in path.parent.iterdir()] == ["shard-00007.zip"]


def test_a_broken_fetch_of_a_shard_at_a_url_is_not_kept(tmp_path, episodes, monkeypatch):
    path = _remote(tmp_path, "memory") / "shard-00007.zip"
    write_shard(path, episodes, {})
    shard = read_shard(path)

    def broken(_fs, _source, target):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError("connection lost")

    with (
        monkeypatch.context() as patch,
        pytest.raises(StoreError, match="shard-00007.zip cannot be fetched.*connection lost"),
    ):
        patch.setattr(type(path.fs), "get_file", broken)
        shard.verify()
    shard.verify()


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_shard_written_at_a_url_is_read_and_added_to_by_another_process(
    tmp_path, episodes, protocol
):
    """`file` becomes a plain path; `local` is the same disk reached as any remote one is."""
    pytest.importorskip("upath")
    folder = to_path(f"{protocol}://{tmp_path}/data")
    write_shard(folder / "shard-00000.zip", episodes, {})
    program = (
        "import pickle, sys\n"
        "from wm_env.shard import checksum, read_shard, write_shard\n"
        "shard = pickle.load(sys.stdin.buffer)\n"
        "shard.verify()\n"
        "print(checksum([shard.read('images')]))\n"
        "from tests.training.episodes import made_up_episode\n"
        "path = shard.path.with_name('shard-00001.zip')\n"
        "write_shard(path, [made_up_episode(5, plain=True)], {})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(read_shard(folder / "shard-00000.zip")),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    expected = checksum([episode.images for episode in episodes])
    assert done.stdout.decode().strip() == expected
    assert read_shard(folder / "shard-00001.zip").episodes[0].seed == 5


def test_a_url_without_universal_pathlib_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(StoreError, match=r"s3://bucket/data is a URL.*uv sync --extra url"):
        to_path("s3://bucket/data")
