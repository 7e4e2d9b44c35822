"""`python -m training data`: what a store holds, as a table by driver and a contact sheet."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
from rich.console import Console
from rich.table import Table

from training.store import open_store
from wm_env.shard import EpisodeRow, Shard


def run_data(store: Path, *, verify: bool = False, columns: int = 16) -> Path:
    """Print the table and write `contact_sheet.png` beside the shards.

    Reads every byte when `verify`.
    """
    shards = open_store(store)
    if verify:
        for shard in shards:
            shard.verify()
    by_driver: dict[str, list[EpisodeRow]] = {}
    for shard in shards:
        for row in shard.episodes:
            by_driver.setdefault(row.driver, []).append(row)
    Console().print(_table(by_driver, shards))
    path = store / "contact_sheet.png"
    iio.imwrite(path, _contact_sheet(shards, columns))
    return path


def _table(by_driver: dict[str, list[EpisodeRow]], shards: list[Shard]) -> Table:
    frames = sum(shard.frames for shard in shards)
    size = sum(shard.path.stat().st_size for shard in shards)
    title = f"{len(shards)} shards, {frames:,} frames, {size / max(frames, 1):,.0f} bytes a frame"
    table = Table("driver", "episodes", "frames", "return", "std", "best", "ended", title=title)
    for driver, rows in sorted(by_driver.items()):
        returns = np.array([row.ret for row in rows])
        table.add_row(
            driver,
            f"{len(rows)}",
            f"{sum(row.length + 1 for row in rows):,}",
            f"{returns.mean():.0f}",
            f"{returns.std():.0f}",
            f"{returns.max():.0f}",
            f"{sum(row.terminated for row in rows)}",
        )
    return table


def _contact_sheet(shards: list[Shard], columns: int) -> np.ndarray:
    """A row a shard (at most 24 shards), images evenly spaced in time."""
    chosen = [
        shards[index] for index in np.linspace(0, len(shards) - 1, min(24, len(shards))).astype(int)
    ]
    rows = []
    for shard in chosen:
        at = np.linspace(0, shard.frames - 1, columns).astype(int)
        tiles = [shard.read("images", slice(index, index + 1))[0] for index in at]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)
