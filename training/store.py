"""The store: real driving on disk, as Zarr shards that appear whole or not at all.

A store is a folder of `shard-00000.zip` files. Each is one Zarr 3 archive with a group of episodes:

    images      uint8   [sum(T + 1), 64, 64, 3]   frame_0 .. frame_T, episode after episode
    actions     float32 [sum(T), 3]               a_t, what was done on seeing frame_t
    rewards     float32 [sum(T)]                  r_t, as the simulator paid it for that step
    tiles       uint8   [sum(T)]                  tiles hit during that very step
    off_field   bool    [sum(T)]                  the car left the field during that step (the -100)
    terminated  bool    [sum(T)]                  a time limit is never a terminal
    truncated   bool    [sum(T)]

and a manifest in its attributes: format version, a checksum, the simulator, package versions, and a
row for each episode (driver, seed, length, return, number of track tiles N).
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import ZipStore

from wm_env.preprocess import IMAGE_SHAPE
from wm_env.reward import is_off_field

FORMAT_VERSION = 1
_ZSTD = ZstdCodec(level=3)
CHUNK_FRAMES = 64  # 64 * 12,288 bytes: the unit that is read, decompressed and shuffled
_STEP_ARRAYS = ("actions", "rewards", "tiles", "off_field", "terminated", "truncated")


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

    def arrays(self) -> zarr.Group:
        """The shard's arrays, opened for reading."""
        return zarr.open_group(ZipStore(self.path, mode="r"), mode="r")


def shard_path(store: Path, index: int) -> Path:
    """Where shard number `index` of a store is, or will be."""
    return store / f"shard-{index:05d}.zip"


def write_shard(path: Path, episodes: Sequence[Episode], provenance: dict[str, Any]) -> None:
    """Write a group of episodes as one shard: under a temporary name, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [episode.images for episode in episodes]  # never copied as a whole: they are large
    steps = {
        name: np.concatenate([getattr(episode, name) for episode in episodes])
        for name in _STEP_ARRAYS
    }
    rows = [
        EpisodeRow(
            driver=episode.driver,
            seed=episode.seed,
            length=len(episode.actions),
            ret=round(float(episode.rewards.sum()), 3),
            track_tiles=episode.track_tiles,
            terminated=bool(episode.terminated[-1]),
        )
        for episode in episodes
    ]
    manifest = {
        "format": "wm_env.store",
        "format_version": FORMAT_VERSION,
        "checksum": checksum({"images": images, **{k: [v] for k, v in steps.items()}}),
        "provenance": provenance,
        "episodes": [asdict(row) for row in rows],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with ZipStore(temporary, mode="w") as zip_store:
        group = zarr.create_group(zip_store, attributes=manifest)
        for name, array in steps.items():
            group.create_array(name, data=array, chunks=array.shape, compressors=_ZSTD)
        frames = sum(map(len, images))
        stored = group.create_array(
            "images",
            shape=(frames, *IMAGE_SHAPE),
            dtype=np.uint8,
            chunks=(min(CHUNK_FRAMES, frames), *IMAGE_SHAPE),
            compressors=_ZSTD,
        )
        for start, chunk in _chunks(images):
            stored[start : start + len(chunk)] = chunk
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, durably: a kill leaves the old state or the new."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _chunks(pieces: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """The pieces as one array, chunk by chunk: where each begins, and the chunk."""
    *begins, total = np.cumsum([0, *map(len, pieces)]).tolist()
    for start in range(0, total, CHUNK_FRAMES):
        parts = [
            piece[max(0, start - begin) : max(0, start + CHUNK_FRAMES - begin)]
            for piece, begin in zip(pieces, begins, strict=True)
        ]
        yield start, np.concatenate(parts)


def checksum(arrays: Mapping[str, Iterable[np.ndarray]]) -> str:
    """sha256 over the bytes of each array's pieces, in the order of the arrays' names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        for piece in arrays[name]:
            digest.update(np.ascontiguousarray(piece).data)
    return digest.hexdigest()


def read_shard(path: Path) -> Shard:
    """Open a shard and check its manifest, without reading its arrays.

    Raises:
        StoreError: for a file that is missing, truncated, foreign, or of another version.
    """
    remedy = "delete the file and run the same collection again: it fills the gap."
    try:
        # Refuses what is no archive before zarr opens it and stumbles in closing it.
        with zipfile.ZipFile(path):
            pass
        with ZipStore(path, mode="r") as zip_store:
            manifest: dict[str, Any] = dict(zarr.open_group(zip_store, mode="r").attrs)
    except FileNotFoundError:
        raise StoreError(f"no shard at {path}; {remedy}") from None
    except (zipfile.BadZipFile, json.JSONDecodeError, KeyError, OSError, ValueError) as error:
        raise StoreError(
            f"shard {path} cannot be read ({error}): truncated, or not a shard; {remedy}"
        ) from error
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != ("wm_env.store", FORMAT_VERSION):
        raise StoreError(
            f"shard {path} has format {found}; expected ('wm_env.store', {FORMAT_VERSION}). "
            "Collect the data again with this version, or read it with the version that wrote it."
        )
    return Shard(path, tuple(EpisodeRow(**row) for row in manifest["episodes"]), manifest)


def verify_shard(shard: Shard) -> None:
    """Read everything and compare it with the checksum.

    Raises:
        StoreError: when a byte differs or a chunk is missing.
    """
    group = shard.arrays()
    try:
        arrays = {name: np.asarray(group[name]) for name in ("images", *_STEP_ARRAYS)}
        damaged = checksum({k: [v] for k, v in arrays.items()}) != shard.manifest["checksum"]
    except Exception as error:  # zarr raises many kinds for a damaged chunk
        raise StoreError(
            f"shard {shard.path} is damaged ({error}); delete it and collect again."
        ) from error
    if damaged or arrays["images"].shape != (shard.frames, *IMAGE_SHAPE):
        raise StoreError(
            f"shard {shard.path} does not match its checksum {shard.manifest['checksum'][:12]}…: "
            "it is damaged; delete it and collect again."
        )


def open_store(store: Path) -> list[Shard]:
    """All finished shards of a store, in the order of their numbers.

    Raises:
        StoreError: when the folder is missing or holds no finished shard, or a shard cannot be
            read.
    """
    store = Path(store)
    paths = sorted(store.glob("shard-*.zip"))
    if not paths:
        what = "holds no finished shard" if store.is_dir() else "does not exist"
        raise StoreError(
            f"the store {store} {what}; run `python -m training collect --out` with that folder "
            "first."
        )
    return [read_shard(path) for path in paths]


def clean_unfinished(store: Path) -> None:
    """Remove the temporary files that a killed run left behind."""
    for path in Path(store).glob(".shard-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
