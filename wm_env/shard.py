"""A shard: a group of real episodes in one file, which appears whole or not at all.

One Zarr 3 archive (zip, zstd) with

    images      uint8   [sum(T + 1), 64, 64, 3]   frame_0 .. frame_T, episode after episode
    actions     float32 [sum(T), a]               a_t, what was done on seeing frame_t; a = 3
    rewards     float32 [sum(T)]                  r_t, as the simulator paid it for that step
    tiles       uint8   [sum(T)]                  tiles hit during that very step
    off_field   bool    [sum(T)]                  the car left the field during that step (the -100)
    terminated  bool    [sum(T)]                  a time limit is never a terminal
    truncated   bool    [sum(T)]

A shard of another task than CarRacing has no tiles and no off_field. All have a manifest in their
attributes: format version, checksums, the task (unless CarRacing), simulator, package versions, a
row for each episode (driver, seed, length, return, number of track tiles N). Every chunk carries a
CRC-32, which each read checks; none may be missing.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import ZipStore

from wm_env.preprocess import IMAGE_SHAPE
from wm_env.reward import is_off_field
from wm_env.storage import StoreError, StorePath, appearing_whole, local_copy
from wm_env.task import CAR_RACING, Task, marked

FORMAT, FORMAT_VERSION = "wm_env.store", 2
CHUNK_FRAMES = 64  # 64 * 12,288 bytes: the unit that is read, decompressed and shuffled
STEP_ARRAYS = ("actions", "rewards", "tiles", "off_field", "terminated", "truncated")
_OF_TILES = ("tiles", "off_field")
_DTYPES = {"images": "uint8", "actions": "float32", "rewards": "float32", "tiles": "uint8"}
_ZSTD = ZstdCodec(level=3)
_REMEDY = "delete the file and run the same collection again: it fills the gap."


@dataclass(frozen=True)
class Episode:
    """One episode on a track of N tiles, which is 0 of a task without.

    images uint8 [T + 1, 64, 64, 3], actions float32 [T, a], the rest [T].
    """

    images: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    track_tiles: int
    driver: str
    seed: int
    task: Task = CAR_RACING

    @classmethod
    def driven(
        cls,
        images: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        *,
        terminated: bool,
        **of: Any,
    ) -> "Episode":
        """An episode whose last step ends it, by a terminal or by the time limit.

        `of` are `track_tiles`, `driver`, `seed` and `task`.
        """
        last = np.arange(len(actions)) == len(actions) - 1
        ends = {"terminated": last & terminated, "truncated": last & (not terminated)}
        return cls(images=images, actions=actions, rewards=rewards, **ends, **of)

    @property
    def off_field(self) -> np.ndarray:
        """bool [T]: CarRacing pays exactly -100 in the step in which the car leaves the field.

        Of another task: whether it is terminated.
        """
        return is_off_field(self.rewards) if self.task.pays_tiles else self.terminated

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

    path: StorePath
    episodes: tuple[EpisodeRow, ...]
    manifest: dict[str, Any]

    @property
    def task(self) -> Task:
        """What was driven."""
        return marked(self.manifest)

    @property
    def frames(self) -> int:
        """Stored frames, the last of each episode included."""
        return sum(row.length + 1 for row in self.episodes)

    def bounds(self) -> Iterator[tuple[EpisodeRow, slice, slice]]:
        """For each episode its row, its slice of `images`, and its slice of the step arrays."""
        return bounds(self.episodes)

    def read(self, name: str, at: slice = slice(None)) -> np.ndarray:
        """One of the arrays, or a part of it.

        Raises:
            StoreError: a chunk is damaged or missing, or the file out of reach.
        """
        (part,) = self.parts(name, [at])
        return part

    def parts(self, name: str, at: Iterable[slice]) -> Iterator[np.ndarray]:
        """Parts of one of the arrays, one after the other; the file is opened once.

        Raises:
            StoreError: a chunk is damaged or missing, or the file out of reach.
        """
        path = local_copy(self.path)
        try:
            with ZipStore(path, mode="r") as store:
                array = cast(zarr.Array, zarr.open_group(store, mode="r")[name])
                if array.nchunks_initialized != array.nchunks:  # zarr would read zeros
                    raise StoreError("chunks are missing")
                for part in at:
                    yield np.asarray(array[part])
        except Exception as error:  # zip, zstd and zarr raise many kinds for a damaged chunk
            raise StoreError(
                f"shard {self.path} is damaged: {name} cannot be read ({error}); {_REMEDY}"
            ) from error

    def verify(self) -> None:
        """Read everything, a chunk at a time, and compare it with the checksums.

        Raises:
            StoreError: when a byte differs.
        """
        for name, (shape, _, chunk) in _layout(self.episodes, self.task).items():
            expected = self.manifest["checksums"][name]
            at = (slice(start, start + chunk) for start in range(0, shape[0], chunk))
            if checksum(self.parts(name, at)) != expected:
                raise StoreError(
                    f"shard {self.path} is damaged: {name} does not match its checksum "
                    f"{expected!s:.12}…; {_REMEDY}"
                )


def step_arrays(task: Task) -> tuple[str, ...]:
    """The names of a shard's arrays of steps."""
    return tuple(name for name in STEP_ARRAYS if task.pays_tiles or name not in _OF_TILES)


def bounds(rows: Iterable[EpisodeRow]) -> Iterator[tuple[EpisodeRow, slice, slice]]:
    """For each episode its row, its slice of T + 1 frames, and its slice of T steps."""
    frame = step = 0
    for row in rows:
        yield row, slice(frame, frame + row.length + 1), slice(step, step + row.length)
        frame, step = frame + row.length + 1, step + row.length


def _layout(rows: Sequence[EpisodeRow], task: Task) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """What the episodes' arrays must be: shape, dtype, and length of a chunk, by name."""
    steps, layout = sum(row.length for row in rows), {}
    shapes = {"images": IMAGE_SHAPE, "actions": (task.action_size,)}
    for name in (*step_arrays(task), "images"):
        length, chunk = (steps + len(rows), CHUNK_FRAMES) if name == "images" else (steps, steps)
        shape = (length, *shapes.get(name, ()))
        layout[name] = (shape, _DTYPES.get(name, "bool"), min(chunk, length))
    return layout


def write_shard(path: StorePath, episodes: Sequence[Episode], provenance: dict[str, Any]) -> Shard:
    """Write a group of episodes of one task as one shard, which appears at `path` whole."""
    rows, task = tuple(_row(episode) for episode in episodes), episodes[0].task
    layout = _layout(rows, task)
    images = [episode.images for episode in episodes]  # never copied as a whole: they are large
    steps = {
        name: np.concatenate(
            [getattr(episode, name) for episode in episodes], dtype=layout[name][1]
        )
        for name in step_arrays(task)
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **task.mark,
        "checksums": {
            "images": checksum(images),
            **{name: checksum([array]) for name, array in steps.items()},
        },
        "provenance": provenance,
        "episodes": [asdict(row) for row in rows],
    }
    with appearing_whole(path) as temporary, ZipStore(temporary, mode="w") as store:
        group = zarr.create_group(store, attributes=manifest)
        arrays = {
            name: group.create_array(
                name,
                shape=shape,
                dtype=dtype,
                chunks=(chunk, *shape[1:]),
                compressors=_ZSTD,
                config={"write_empty_chunks": True},  # a missing chunk is thus always damage
            )
            for name, (shape, dtype, chunk) in layout.items()
        }
        for name, array in steps.items():
            arrays[name][:] = array
        for start, chunk in _chunks(images):
            arrays["images"][start : start + len(chunk)] = chunk
    return Shard(path, rows, manifest)


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


def read_shard(path: StorePath) -> Shard:
    """Open a shard and check its manifest and that no chunk is missing, without reading arrays.

    Raises:
        StoreError: for a file that is missing, truncated, foreign, or of another version.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            read = {name: json.loads(archive.read(name)) for name in names if _is_metadata(name)}
        manifest: dict[str, Any] = read["zarr.json"]["attributes"]
        found = (manifest.get("format"), manifest.get("format_version"))
    except FileNotFoundError:
        raise StoreError(f"no shard at {path}; {_REMEDY}") from None
    except Exception as error:  # zipfile and json raise many kinds
        raise StoreError(
            f"shard {path} cannot be read ({error!r}): truncated, or no shard; {_REMEDY}"
        ) from error
    if found != (FORMAT, FORMAT_VERSION):
        raise StoreError(
            f"shard {path} has format {found}; expected {(FORMAT, FORMAT_VERSION)}. Collect the "
            "data again with this version, or read it with the version that wrote it."
        )
    try:
        shard = Shard(path, tuple(map(_checked_row, manifest["episodes"])), manifest)
        _check_arrays(shard, read, names)
    except Exception as error:  # whatever a manifest of other keys or types leads to
        raise StoreError(f"shard {path} is damaged: {error}; {_REMEDY}") from error
    return shard


def _is_metadata(name: str) -> bool:
    return name == "zarr.json" or name.endswith("/zarr.json")


def _checked_row(found: dict[str, Any]) -> EpisodeRow:
    expected = {field.name: field.type for field in fields(EpisodeRow)}
    if {name: type(value) for name, value in found.items()} != expected or found["length"] < 1:
        raise StoreError(f"its manifest has the episode {found}, which is not an EpisodeRow")
    return EpisodeRow(**found)


def _check_arrays(shard: Shard, read: dict[str, Any], names: set[str]) -> None:
    """Raise StoreError unless arrays, checksums and chunks are those of the shard's episodes."""
    layout = _layout(shard.episodes, shard.task)
    if not shard.episodes or set(shard.manifest["checksums"]) != set(layout):
        raise StoreError("its manifest names no episode, or not the checksum of every array")
    if not isinstance(shard.manifest["provenance"], dict):
        raise StoreError("its manifest does not say what collected it")
    missing = []
    for name, (shape, dtype, chunk) in layout.items():
        array = read[f"{name}/zarr.json"]
        grid = array["chunk_grid"]["configuration"]["chunk_shape"]
        found, expected = (array["shape"], array["data_type"], grid[0]), ([*shape], dtype, chunk)
        if found != expected or grid[1:] != [*shape[1:]]:
            raise StoreError(f"{name} is {found}, but its episodes add up to {expected}")
        zeros = "/0" * (len(shape) - 1)
        chunks = (f"{name}/c/{index}{zeros}" for index in range(-(-shape[0] // chunk)))
        missing += [chunk for chunk in chunks if chunk not in names]
    if missing:
        raise StoreError(f"{len(missing)} of its chunks are missing, {missing[0]} first")
