"""Minari datasets, the offline-RL format of Gymnasium's ecosystem, made of a store.

A dataset holds each episode's images (the last one included), actions, rewards, ends and seed, and
as metadata of the episode its `driver`, its number of `track_tiles`, and the `backend` whose seed
it is: a reset of the recovered environment with the seed of a "gymnasium" episode shows its first
image again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.store import check_task, open_store
from wm_env.preprocess import IMAGE_SHAPE
from wm_env.progress import progress_bar
from wm_env.real import make_real
from wm_env.shard import CHUNK_FRAMES, Episode, Shard
from wm_env.storage import StoreError
from wm_env.task import CAR_RACING

UNKNOWN_SEED = -1  # of an episode whose dataset does not tell


def export_minari(
    store: str | os.PathLike,
    dataset_id: str,
    *,
    author: str | None = None,
    author_email: str | None = None,
    description: str | None = None,
    damaged: Literal["refuse", "skip"] = "refuse",
) -> Path:
    """Make a Minari dataset of a store's episodes, without loss; it appears whole or not at all.

    Args:
        store: a folder of shards, or the URL of one.
        dataset_id: "name-v0" or "namespace/name-v0".
        author, author_email, description: for those who find the dataset.
        damaged: as for `open_store`.

    Returns:
        The dataset's folder, in Minari's root (MINARI_DATASETS_PATH, or ~/.minari/datasets).

    Raises:
        StoreError: Minari is not installed, the id is malformed or taken, the store or one of its
            shards cannot be read, or is not of CarRacing.
    """
    namespace, path = _new_dataset(dataset_id)
    shards = open_store(store, damaged=damaged)
    for shard in shards:
        check_task(shard, CAR_RACING)
    drivers = sorted({row.driver for shard in shards for row in shard.episodes})
    origins = {json.dumps(_origin(shard), sort_keys=True) for shard in shards}
    about = {
        "dataset_id": dataset_id,
        "description": description or f"CarRacing-v3, driven by: {', '.join(drivers)}.",
        "algorithm_name": ", ".join(drivers),
        "author": {author} if author else set(),
        "author_email": {author_email} if author_email else set(),
        "requirements": ["wm_env", "gymnasium[box2d]"],
        "provenance": [json.loads(origin) for origin in sorted(origins)],
    }
    unfinished = path.with_name(f".{path.name}.unfinished")  # Minari lists no hidden folder
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        storage = _new_storage(unfinished / "data", about)
        episodes = sum(len(shard.episodes) for shard in shards)
        with progress_bar("exporting", total=episodes, unit="episodes") as bar:
            for shard in shards:
                _append(storage, shard)
                bar.advance(len(shard.episodes), frames=shard.frames)
        _publish(unfinished, path, namespace)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _origin(shard: Shard) -> dict[str, Any]:
    """What drove, without which part of the plan it was."""
    return {name: told for name, told in shard.manifest["provenance"].items() if name != "plan"}


def require_minari() -> Any:
    """The package, with what it keeps for HDF5 files."""
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise StoreError(
            f"Minari or its HDF5 files cannot be used ({error}): `uv sync --extra minari`."
        ) from None
    return minari


def _new_dataset(dataset_id: str) -> tuple[str | None, Path]:
    """The namespace and the folder of a dataset that does not exist yet."""
    require_minari()
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        namespace, _, _ = parse_dataset_id(dataset_id)
    except (ValueError, TypeError):  # the latter where the version is missing
        raise StoreError(
            f"the dataset id is {dataset_id!r}; expected name-v0 or namespace/name-v0, of letters, "
            "digits, - and _."
        ) from None
    path = get_dataset_path(dataset_id)
    if path.exists():
        raise StoreError(
            f"Minari has a dataset {dataset_id} in {path}; choose another version, or remove it "
            f"with `minari delete {dataset_id}`."
        )
    return namespace, path


def _new_storage(path: Path, about: dict[str, Any]) -> Any:
    """An empty dataset, from which the real car of our images can be recovered."""
    from minari import __version__
    from minari.dataset.minari_storage import MinariStorage

    path.mkdir(parents=True)
    env = make_real(observation="pixels")
    try:
        storage = MinariStorage.new(
            path,
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=env.spec,
            jpeg_encoding=False,  # which alters a pixel by 4 of 255 on average
        )
    finally:
        env.close()
    storage.update_metadata({**about, "minari_version": __version__})
    return storage


def _append(storage: Any, shard: Shard) -> None:
    """Add a shard's episodes, of which one at a time is in memory."""
    import h5py
    from minari.data_collector import EpisodeBuffer

    first = storage.total_episodes
    numbers = range(first, first + len(shard.episodes))
    # Minari itself would store the images raw, at ten times the size, but adds to what is there.
    with h5py.File(storage.data_path / "main_data.hdf5", "a", track_order=True) as file:
        for number in numbers:
            file.create_dataset(
                f"episode_{number}/observations",
                shape=(0, *IMAGE_SHAPE),
                maxshape=(None, *IMAGE_SHAPE),
                chunks=(CHUNK_FRAMES, *IMAGE_SHAPE),
                dtype=np.uint8,
                compression="gzip",
            )
    storage.update_episodes(
        EpisodeBuffer(
            id=number,
            seed=None if episode.seed == UNKNOWN_SEED else episode.seed,
            observations=episode.images,  # pyright: ignore[reportArgumentType]
            actions=episode.actions,  # pyright: ignore[reportArgumentType]
            rewards=episode.rewards,  # pyright: ignore[reportArgumentType]
            terminations=episode.terminated,  # pyright: ignore[reportArgumentType]
            truncations=episode.truncated,  # pyright: ignore[reportArgumentType]
            infos={},
        )
        for number, episode in zip(numbers, _stored_episodes(shard), strict=True)
    )
    backend = shard.manifest["provenance"].get("backend", "unknown")
    storage.update_episode_metadata(
        [
            {"driver": row.driver, "track_tiles": row.track_tiles, "backend": backend}
            for row in shard.episodes
        ],
        numbers,
    )


def _stored_episodes(shard: Shard) -> Iterator[Episode]:
    arrays = {name: shard.read(name) for name in ("actions", "rewards", "terminated", "truncated")}
    bounds = list(shard.bounds())
    images = shard.parts("images", [frames for _, frames, _ in bounds])
    for (row, _, steps), shown in zip(bounds, images, strict=True):
        yield Episode(
            images=shown,
            actions=arrays["actions"][steps],
            rewards=arrays["rewards"][steps],
            terminated=arrays["terminated"][steps],
            truncated=arrays["truncated"][steps],
            track_tiles=row.track_tiles,
            driver=row.driver,
            seed=row.seed,
        )


def _publish(unfinished: Path, path: Path, namespace: str | None) -> None:
    """Give a finished dataset its name, durably."""
    from minari.namespace import create_namespace, list_local_namespaces

    for file in (unfinished / "data").iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    unfinished.rename(path)
