"""The store: a folder of shards of real driving, on disk or at any URL that fsspec knows.

Shards of a collection are `shard-00000.zip` and so on, by their place in the plan; what people
drive is added as `shard-human-….zip`. wm_env/shard.py says what is in one. V and M hold the same
episodes out, see `is_held_out`.
"""

import sys
from collections.abc import Sequence
from typing import Literal

from wm_env.shard import EpisodeRow, Shard, read_shard
from wm_env.storage import StoreError, StorePath, to_path
from wm_env.task import Task


def shard_path(store: StorePath, index: int) -> StorePath:
    """Where shard number `index` of a collection is, or will be."""
    return store / f"shard-{index:05d}.zip"


def open_store(
    store: str | StorePath, *, damaged: Literal["refuse", "skip"] = "refuse"
) -> list[Shard]:
    """All finished shards of a store, in the order of their names.

    Args:
        store: a folder, or the URL of one.
        damaged: "refuse" opens no store with a damaged shard; manifests and the presence of every
            chunk are checked here, chunks when they are read. "skip" reads every byte now, leaves
            damaged shards out, and names them on stderr.

    Raises:
        StoreError: when the folder is missing or holds no usable shard, or a shard cannot be read.
    """
    folder = to_path(store)
    paths = sorted(folder.glob("shard-*.zip"))
    if not paths:
        what = "holds no finished shard" if folder.is_dir() else "does not exist"
        raise StoreError(
            f"the store {folder} {what}; run `python -m training collect --out` with that folder "
            "first."
        )
    if damaged == "refuse":
        return [read_shard(path) for path in paths]
    shards = []
    for path in paths:
        try:
            shard = read_shard(path)
            shard.verify()
            shards.append(shard)
        except StoreError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not shards:
        raise StoreError(f"every shard of {folder} is damaged; collect it again.")
    return shards


def check_task(shard: Shard, task: Task) -> None:
    """Look whether a shard is of that task.

    Raises:
        StoreError: it is of another.
    """
    if shard.task != task:
        raise StoreError(
            f"shard {shard.path} is of {shard.task.id}; expected {task.id}. Give --env "
            f"{shard.task.id}, or another --out or --store."
        )


def is_held_out(rows: Sequence[EpisodeRow], index: int) -> bool:
    """Whether that episode of a shard is for validation: the last one, where there are others.

    Whole episodes are held out, so that no frame crosses; from every shard, so that every driver
    is judged too. A shard of one episode, as people drive them, is for training.
    """
    return len(rows) > 1 and index == len(rows) - 1


def clean_unfinished(store: str | StorePath) -> None:
    """Remove the temporary files that a killed run left behind."""
    for path in to_path(store).glob(".shard-[0-9]*"):  # not what a person drives meanwhile
        path.unlink(missing_ok=True)
