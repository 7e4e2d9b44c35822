"""Minari datasets of CarRacing, this project's or another's, added to a store."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from training.minari_export import UNKNOWN_SEED, require_minari
from wm_env.dream import ACTION_HIGH, ACTION_LOW
from wm_env.preprocess import FRAME_SHAPE, IMAGE_SHAPE, preprocess
from wm_env.progress import progress_bar
from wm_env.reward import recover_track_tiles
from wm_env.seeds import is_held_out
from wm_env.shard import Episode, Shard, read_shard, write_shard
from wm_env.storage import StoreError, StorePath, to_path


def import_minari(
    dataset_id: str, store: str | os.PathLike, *, episodes_per_shard: int = 16
) -> list[Shard]:
    """Add a local Minari dataset of CarRacing to a store; shards that are there are kept.

    Images are taken as they are and raw frames are preprocessed. Where the dataset does not tell,
    the driver is its id, the seed `UNKNOWN_SEED`, and N is recovered from the rewards.

    Args:
        dataset_id: of a dataset that `minari.list_local_datasets()` lists. One that Minari stored
            as JPEG, its default, is read with the losses of that.
        store: a folder, or the URL of one; made where it does not exist.
        episodes_per_shard: what one shard holds, all of which is in memory while it is written.

    Raises:
        StoreError: Minari is not installed, there is no such dataset, it is not of CarRacing with
            continuous actions, or a shard of this name holds something else.
    """
    dataset = _load(dataset_id)
    metadata = dataset.storage.get_episode_metadata(dataset.episode_indices)
    seeds = [one.get("seed", UNKNOWN_SEED) for one in metadata]
    known = zip(dataset.episode_indices.tolist(), seeds, strict=True)
    indices = [index for index, seed in known if not is_held_out(int(seed))]
    if len(indices) < len(seeds):
        left_out = len(seeds) - len(indices)
        print(f"left out: {left_out} episodes on tracks kept for controllers", file=sys.stderr)
    groups = [
        indices[begin : begin + episodes_per_shard]
        for begin in range(0, len(indices), episodes_per_shard)
    ]
    shards = []
    with progress_bar("importing", total=len(indices), unit="episodes") as bar:
        for number, group in enumerate(groups):
            name = f"shard-minari-{dataset_id.replace('/', '-')}-{number:05d}.zip"
            shard = _import_shard(dataset, group, to_path(store) / name)
            shards.append(shard)
            bar.advance(len(group), frames=shard.frames)
    return shards


def _load(dataset_id: str) -> Any:
    """A local dataset of CarRacing."""
    minari = require_minari()

    try:
        dataset = minari.load_dataset(dataset_id)
    except FileNotFoundError:
        raise StoreError(
            f"Minari has no dataset {dataset_id}; `minari list local` shows those that are here, "
            f"and `minari download {dataset_id}` fetches one."
        ) from None
    except ImportError as error:  # of the package that its storage format needs
        raise StoreError(f"the Minari dataset {dataset_id} cannot be read: {error}") from error
    images, controls = dataset.observation_space, dataset.action_space
    ours = (
        (dataset.env_spec is None or dataset.env_spec.name == "CarRacing")
        and images.dtype == np.uint8
        and images.shape in (IMAGE_SHAPE, FRAME_SHAPE)
        and isinstance(controls, Box)
        and np.array_equal(controls.low, ACTION_LOW)
        and np.array_equal(controls.high, ACTION_HIGH)
    )
    if not ours:
        environment = dataset.env_spec.id if dataset.env_spec else "an environment it does not tell"
        raise StoreError(
            f"the Minari dataset {dataset_id} is of {environment} with observations {images} and "
            f"actions {controls}; expected CarRacing's frames, uint8 {FRAME_SHAPE}, or images as "
            f"V sees them, {IMAGE_SHAPE}, and continuous actions, the Box from {ACTION_LOW} to "
            f"{ACTION_HIGH}."
        )
    return dataset


def _import_shard(dataset: Any, indices: Sequence[int], path: StorePath) -> Shard:
    """Write these episodes of the dataset, or return the shard that a former import wrote."""
    metadata = list(dataset.storage.get_episode_metadata(indices))
    if path.exists():
        shard = read_shard(path)
        expected = [(one.get("seed", UNKNOWN_SEED), one["total_steps"]) for one in metadata]
        if expected != [(row.seed, row.length) for row in shard.episodes]:
            raise StoreError(
                f"shard {path} does not hold episodes {indices[0]} to {indices[-1]} of the Minari "
                f"dataset {dataset.id}. Delete the file, or import into another store."
            )
        return shard
    provenance = {
        "environment": "CarRacing" if dataset.env_spec is None else dataset.env_spec.id,
        "backend": ", ".join(sorted({one.get("backend", "unknown") for one in metadata})),
        "minari": dataset.id,
        "origins": dataset.storage.metadata.get("provenance", []),
    }
    episodes = [
        _episode(data, {"driver": dataset.id, **one})
        for data, one in zip(dataset.iterate_episodes(indices), metadata, strict=True)
    ]
    return write_shard(path, episodes, provenance)


def _episode(data: Any, metadata: dict[str, Any]) -> Episode:
    images = data.observations
    rewards = np.asarray(data.rewards, np.float32).reshape(-1)
    return Episode.driven(
        images=images if images.shape[1:] == IMAGE_SHAPE else preprocess(images),
        actions=np.asarray(data.actions, np.float32),
        rewards=rewards,
        terminated=bool(data.terminations[-1]),
        track_tiles=int(metadata.get("track_tiles", recover_track_tiles(rewards))),
        driver=str(metadata["driver"]),
        seed=int(metadata.get("seed", UNKNOWN_SEED)),
    )
