"""`python -m training data`: what a store holds, as two tables by driver and a contact sheet."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import imageio.v3 as iio
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from training.store import check_task, open_store
from wm_env.progress import progress_bar
from wm_env.rendering import contact_sheet, text_image
from wm_env.shard import FORMAT_VERSION, EpisodeRow, Shard
from wm_env.storage import StorePath, appearing_whole, to_path
from wm_env.task import CAR_RACING, Task

BINS = 9

_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " 12345678"
_ROWS_PER_DRIVER = 3  # of the contact sheet


@dataclass
class Driving:
    """What one driver did: its episodes, where their images are, and what it chose how often."""

    episodes: list[tuple[EpisodeRow, Shard, slice]] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros((1, BINS), np.int64))

    @property
    def rows(self) -> list[EpisodeRow]:
        """What the manifests say of its episodes."""
        return [row for row, _, _ in self.episodes]


def run_data(
    store: str | StorePath,
    *,
    verify: bool = False,
    damaged: Literal["refuse", "skip"] = "refuse",
    columns: int = 16,
) -> Path:
    """Print the tables and write `contact_sheet.png`: the best, middle and worst drive of each.

    Beyond manifests it reads all actions, and 3 episodes of each driver. The sheet is written
    beside the shards; into the current folder where that cannot be.

    Args:
        store: a folder, or the URL of one; shards at a URL are fetched whole.
        verify: read every byte and compare it with the checksums.
        damaged: "refuse" a store with a damaged shard, or "skip" such shards.
        columns: images of an episode, spaced evenly from its first to its last.

    Returns:
        Where the sheet is.

    Raises:
        StoreError: the store is missing, empty or of several tasks, or a shard is damaged.
    """
    folder, shards = to_path(store), open_store(store, damaged=damaged)
    for shard in shards:
        check_task(shard, shards[0].task)
    drivings = survey(shards, verify=verify)
    console = Console()
    for line in _facts(folder, shards):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_episode_table(drivings, shards[0].task))
    marks = _ASCII_BARS if console.options.ascii_only else _BARS
    console.print(_action_table(drivings, shards[0].task, marks))
    path = _sheet_folder(folder) / "contact_sheet.png"
    sheet = _contact_sheet(drivings, columns)
    with appearing_whole(path) as temporary:
        iio.imwrite(temporary, sheet, extension=".png")
    return path


def survey(shards: Sequence[Shard], *, verify: bool = False) -> dict[str, Driving]:
    """What each driver did, by name; with `verify` every byte is read and checked on the way.

    Raises:
        StoreError: a shard is damaged.
    """
    drivings: dict[str, Driving] = defaultdict(Driving)
    with progress_bar("reading", total=len(shards), unit="shards") as bar:
        for shard in shards:
            if verify:
                shard.verify()
            actions = shard.read("actions")
            for row, images, steps in shard.bounds():
                driving = drivings[row.driver]
                driving.episodes.append((row, shard, images))
                driving.counts = driving.counts + histograms(actions[steps], shard.task)
            bar.advance()
    return dict(sorted(drivings.items()))


def histograms(actions: np.ndarray, task: Task = CAR_RACING) -> np.ndarray:
    """int64 [a, BINS]: how often each number of actions [t, a] was where in its range.

    What is outside of the range counts as its nearest end, as CarRacing takes gas and brake.
    """
    return np.stack(
        [
            np.histogram(np.clip(values, one.low, one.high), BINS, (one.low, one.high))[0]
            for values, one in zip(actions.T, task.controls, strict=True)
        ]
    )


def bars(counts: np.ndarray, marks: str = _BARS) -> str:
    """One character a count, the tallest for the largest; only a count of 0 is blank."""
    heights = np.ceil(counts / max(1, counts.max()) * (len(marks) - 1)).astype(int)
    return "".join(marks[height] for height in heights)


def _facts(folder: StorePath, shards: Sequence[Shard]) -> list[str]:
    frames = sum(shard.frames for shard in shards)
    size = sum(shard.path.stat().st_size for shard in shards)
    told = [shard.manifest["provenance"] for shard in shards]
    versions = sorted(
        {f"{name} {number}" for one in told for name, number in one.get("packages", {}).items()}
        | {f"Python {one['python']}" for one in told if "python" in one}
    )
    made_by = {
        f"{one.get('environment', 'unknown')} of {one.get('backend', 'unknown')}" for one in told
    }
    return [
        f"{folder}: {len(shards):,} shards of format {FORMAT_VERSION}, {size / 1e6:,.1f} MB",
        f"{frames:,} frames, {size / frames:,.0f} bytes a frame",
        f"driven in {', '.join(sorted(made_by))}",
        f"with {', '.join(versions) or 'unknown versions'}",
    ]


def _episode_table(drivings: dict[str, Driving], task: Task) -> Table:
    caption = "ended early: before a time limit"
    if task.pays_tiles:
        caption = "ended early: lap done or field left; off field: share of episodes"
    everyone = [row for one in drivings.values() for row in one.rows]
    table, all_figures = _table(caption), _figures(everyone, task)
    for head in all_figures:
        table.add_column(head, justify="right", overflow="fold")
    for driver, driving in drivings.items():
        table.add_row(driver, *_figures(driving.rows, task).values())
    table.add_section()
    table.add_row("all", *all_figures.values())
    return table


def _table(caption: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("driver", no_wrap=True)
    return table


def _figures(rows: Sequence[EpisodeRow], task: Task) -> dict[str, str]:
    """What is told of some episodes, by the heads of its columns."""
    returns = np.array([row.ret for row in rows])
    figures = {
        "episodes": f"{len(rows):,}",
        "frames": f"{sum(row.length + 1 for row in rows):,}",
        "mean\nreturn": f"{returns.mean():.0f}",
        "std": f"{returns.std():.0f}",
        "best": f"{returns.max():.0f}",
        "ended\nearly": f"{sum(row.terminated for row in rows):,}",
    }
    if task.pays_tiles:
        laps = sum(row.terminated and not row.off_field for row in rows)
        figures["laps\ndone"] = f"{laps:,}"
        figures["off\nfield"] = f"{np.mean([row.off_field for row in rows]):.1%}"
    return figures


def _action_table(drivings: dict[str, Driving], task: Task, marks: str) -> Table:
    table = _table("how often each value was chosen; a full bar: most often")
    for one in task.controls:
        table.add_column(f"{one.name}\n{one.low:<{BINS - 1}g}{one.high:g}", no_wrap=True)
    table.add_column("seeds", overflow="fold")
    for driver, driving in drivings.items():
        table.add_row(driver, *_bars_of(driving.counts, marks), _seeds(driving.rows))
    table.add_section()
    everyone = drivings.values()
    counts = np.sum([one.counts for one in everyone], axis=0)
    table.add_row(
        "all", *_bars_of(counts, marks), _seeds(row for one in everyone for row in one.rows)
    )
    return table


def _bars_of(counts: np.ndarray, marks: str) -> list[str]:
    return [bars(one, marks) for one in counts]


def _seeds(rows: Iterable[EpisodeRow]) -> str:
    seeds = [row.seed for row in rows]
    return f"{min(seeds)}..{max(seeds)}"


def _sheet_folder(folder: StorePath) -> Path:
    local = isinstance(folder, Path) and os.access(folder, os.W_OK)
    return folder if local else Path()


def _contact_sheet(drivings: dict[str, Driving], columns: int) -> np.ndarray:
    """Under a heading for each driver its best, middle and worst episode."""
    parts = []
    for driver, driving in drivings.items():
        ranked = sorted(driving.episodes, key=lambda episode: -episode[0].ret)
        ranks = np.linspace(0, len(ranked) - 1, min(_ROWS_PER_DRIVER, len(ranked))).astype(int)
        rows, labels = [], []
        for rank in ranks:
            row, shard, images = ranked[rank]
            at = np.linspace(0, row.length, columns).astype(int)
            rows.append(shard.read("images", images)[at])  # an episode at a time: 12 MB at most
            labels.append(
                f"{driver}, seed {row.seed}: return {row.ret:.0f}, rank {rank + 1} of "
                f"{len(ranked)}; {_end(row, shard.task)} after {row.length} steps"
            )
        sheet = contact_sheet(rows, labels)
        parts += [_heading(driver, sheet.shape[1]), sheet]
    return np.concatenate(parts)


def _heading(text: str, width: int) -> np.ndarray:
    drawn = text_image(text, 32)[:, :width]
    heading = np.zeros((len(drawn) + 14, width, 3), np.uint8)
    heading[10 : 10 + len(drawn), : drawn.shape[1]] = drawn
    return heading


def _end(row: EpisodeRow, task: Task) -> str:
    if row.off_field:
        return "left the field" if task.pays_tiles else "terminated"
    return "finished the lap" if row.terminated else "stopped"
