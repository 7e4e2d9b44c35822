"""A shard: a group of real episodes in one file, which appears whole or not at all.

One Zarr 3 archive (zip, zstd) with

    images      uint8   [sum(T + 1), 64, 64, 3]   frame_0 .. frame_T, episode after episode
    actions     float32 [sum(T), 3]               a_t, what was done on seeing frame_t
    rewards     float32 [sum(T)]                  r_t, as the simulator paid it for that step
    tiles       uint8   [sum(T)]                  tiles hit during that very step
    off_field   bool    [sum(T)]                  the car left the field during that step (the -100)
    terminated  bool    [sum(T)]                  a time limit is never a terminal
    truncated   bool    [sum(T)]

and a manifest in its attributes: format version, checksums, the simulator, package versions, and a
row for each episode (driver, seed, length, return, number of track tiles N). Every chunk carries a
CRC-32, which each read checks; none may be missing.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import ZipStore

from wm_env.preprocess import IMAGE_SHAPE
from wm_env.reward import is_off_field

FORMAT, FORMAT_VERSION = "wm_env.store", 2
CHUNK_FRAMES = 64  # 64 * 12,288 bytes: the unit that is read, decompressed and shuffled
STEP_ARRAYS = ("actions", "rewards", "tiles", "off_field", "terminated", "truncated")
_ZSTD = ZstdCodec(level=3)
_REMEDY = "delete the file and run the same collection again: it fills the gap."


class StoreError(ValueError):
    """A store or shard that cannot be used: the message names it, what is wrong and what to do."""


@dataclass(frozen=True)
class Episode:
    """One episode on a track of N tiles.

    images uint8 [T + 1, 64, 64, 3], actions float32 [T, 3], the rest [T].
    """

    images: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    track_tiles: int
    driver: str
    seed: int

    @property
    def off_field(self) -> np.ndarray:
        """bool [T]: CarRacing pays exactly -100 in the step in which the car leaves the field."""
        return is_off_field(self.rewards)

    @property
    def tiles(self) -> np.ndarray:
        """uint8 [T]: tiles hit in each step, from the reward of 1000/N a tile less 0.1 a frame."""
        tiles = np.rint((self.rewards + 0.1) * self.track_tiles / 1000.0)
        return np.where(self.off_field, 0, np.clip(tiles, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class EpisodeRow:
    """What the manifest says of one episode."""

    driver: str
    seed: int
    length: int
    ret: float
    track_tiles: int
    terminated: bool
    off_field: bool


@dataclass(frozen=True)
class Shard:
    """A finished shard: its path, its episodes' rows, and where each episode begins."""

    path: Path
    episodes: tuple[EpisodeRow, ...]
    manifest: dict[str, Any]

    @property
    def frames(self) -> int:
        """Stored frames, the last of each episode included."""
        return sum(row.length + 1 for row in self.episodes)

    def bounds(self) -> Iterator[tuple[EpisodeRow, slice, slice]]:
        """For each episode its row, its slice of `images`, and its slice of the step arrays."""
        frame = step = 0
        for row in self.episodes:
            yield row, slice(frame, frame + row.length + 1), slice(step, step + row.length)
            frame, step = frame + row.length + 1, step + row.length

    def read(self, name: str, at: slice = slice(None)) -> np.ndarray:
        """One of the arrays, or a part of it.

        Raises:
            StoreError: a chunk is damaged.
        """
        try:
            with ZipStore(_local(self.path), mode="r") as store:
                return np.asarray(zarr.open_group(store, mode="r")[name][at])  # pyright: ignore
        except Exception as error:  # zip, zstd and zarr raise many kinds for a damaged chunk
            raise StoreError(
                f"shard {self.path} is damaged: {name} cannot be read ({error}); {_REMEDY}"
            ) from error

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            StoreError: when a byte differs.
        """
        for name, expected in self.manifest["checksums"].items():
            if checksum([self.read(name)]) != expected:
                raise StoreError(
                    f"shard {self.path} is damaged: {name} does not match its checksum "
                    f"{expected[:12]}…; {_REMEDY}"
                )


def to_path(where: str | os.PathLike) -> Path:
    """A folder or file by its name: a pathlib path, or for a URL (`s3://…`) one of fsspec.

    The latter is universal_pathlib's, which has the methods of pathlib.

    Raises:
        StoreError: a URL, and universal_pathlib is not installed.
    """
    if "://" not in str(where):
        return Path(where)
    try:
        from upath import UPath
    except ImportError:
        raise StoreError(
            f"{where} is a URL, which needs universal_pathlib: `uv sync --extra ray`, and the "
            "fsspec package of that protocol (for s3:// it is s3fs)."
        ) from None
    path = UPath(where)
    return Path(path.path) if path.protocol == "file" else path  # pyright: ignore


def write_shard(path: Path, episodes: Sequence[Episode], provenance: dict[str, Any]) -> Shard:
    """Write a group of episodes as one shard: under a temporary name, synced, then renamed."""
    images = [episode.images for episode in episodes]  # never copied as a whole: they are large
    steps = {
        name: np.concatenate([getattr(episode, name) for episode in episodes])
        for name in STEP_ARRAYS
    }
    rows = [_row(episode) for episode in episodes]
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "checksums": {
            "images": checksum(images),
            **{name: checksum([array]) for name, array in steps.items()},
        },
        "provenance": provenance,
        "episodes": [asdict(row) for row in rows],
    }
    temporary = temporary_path(path)
    with ZipStore(temporary, mode="w") as store:
        group = zarr.create_group(store, attributes=manifest)
        frames = sum(map(len, images))
        shapes = {name: (len(array), *array.shape[1:]) for name, array in steps.items()}
        arrays = {
            name: group.create_array(
                name,
                shape=shape,
                dtype=dtype,
                chunks=(max(1, min(chunk, shape[0])), *shape[1:]),
                compressors=_ZSTD,
                config={"write_empty_chunks": True},  # a missing chunk is thus always damage
            )
            for name, shape, dtype, chunk in (
                *((name, shapes[name], array.dtype, len(array)) for name, array in steps.items()),
                ("images", (frames, *IMAGE_SHAPE), np.uint8, CHUNK_FRAMES),
            )
        }
        for name, array in steps.items():
            arrays[name][:] = array
        for start, chunk in _chunks(images):
            arrays["images"][start : start + len(chunk)] = chunk
    publish(temporary, path)
    return Shard(path, tuple(rows), manifest)


def _row(episode: Episode) -> EpisodeRow:
    return EpisodeRow(
        driver=episode.driver,
        seed=episode.seed,
        length=len(episode.actions),
        ret=round(float(episode.rewards.sum()), 3),
        track_tiles=episode.track_tiles,
        terminated=bool(episode.terminated[-1]),
        off_field=bool(episode.off_field.any()),
    )


def _chunks(pieces: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """The pieces as one array, chunk by chunk: where each begins, and the chunk."""
    *begins, total = np.cumsum([0, *map(len, pieces)]).tolist()
    for start in range(0, total, CHUNK_FRAMES):
        parts = [
            piece[max(0, start - begin) : max(0, start + CHUNK_FRAMES - begin)]
            for piece, begin in zip(pieces, begins, strict=True)
        ]
        yield start, np.concatenate(parts)


def checksum(pieces: Iterable[np.ndarray]) -> str:
    """sha256 over the bytes of an array, given in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece).data)
    return digest.hexdigest()


def temporary_path(path: Path) -> Path:
    """A local file to write what `publish` will name `path`; beside it where that is local."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    return Path(tempfile.mkdtemp(prefix="wm_env-")) / path.name


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, durably: a kill leaves the old state or the new."""
    if isinstance(path, Path):
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    path.fs.makedirs(path.parent.path, exist_ok=True)
    path.fs.put_file(str(temporary), hidden.path)
    path.fs.mv(hidden.path, path.path)
    shutil.rmtree(temporary.parent)


def _local(path: Path) -> Path:
    """The file itself, or a copy of a remote one, fetched once a process."""
    if isinstance(path, Path):
        return path
    import fsspec

    name = f"simplecache::{path}"
    return Path(str(fsspec.open_local(name, simplecache={"cache_storage": _copies().name})))


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="wm_env-shards-")  # removed when the process ends


def read_shard(path: Path) -> Shard:
    """Open a shard and check its manifest and that no chunk is missing, without reading arrays.

    Raises:
        StoreError: for a file that is missing, truncated, foreign, or of another version.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            manifest: dict[str, Any] = json.loads(archive.read("zarr.json"))["attributes"]
            names = set(archive.namelist())
    except FileNotFoundError:
        raise StoreError(f"no shard at {path}; {_REMEDY}") from None
    except Exception as error:  # zipfile and json raise many kinds
        raise StoreError(
            f"shard {path} cannot be read ({error}): truncated, or not a shard; {_REMEDY}"
        ) from error
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise StoreError(
            f"shard {path} has format {found}; expected {(FORMAT, FORMAT_VERSION)}. Collect the "
            "data again with this version, or read it with the version that wrote it."
        )
    shard = Shard(path, tuple(EpisodeRow(**row) for row in manifest["episodes"]), manifest)
    missing = sorted(set(_chunk_names(shard)) - names)
    if missing:
        raise StoreError(
            f"shard {path} is damaged: {len(missing)} of its chunks are missing, {missing[0]} "
            f"first; {_REMEDY}"
        )
    return shard


def _chunk_names(shard: Shard) -> Iterator[str]:
    for chunk in range(-(-shard.frames // CHUNK_FRAMES)):
        yield f"images/c/{chunk}/0/0/0"
    for name in STEP_ARRAYS:
        yield f"{name}/c/0/0" if name == "actions" else f"{name}/c/0"
