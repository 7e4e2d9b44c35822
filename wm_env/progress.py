"""Progress on stderr: a bar with rate, time left and a note, for every long job of the project."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """A running bar: `advance` moves it and may count frames and show a note."""

    def __init__(self, progress: Progress, name: str, total: int, done: int):
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=done, note="")
        self._start, self._frames = time.monotonic(), 0

    def advance(self, amount: int = 1, *, frames: int = 0, note: str = "") -> None:
        """Move by `amount`; `frames` adds to a frames/s figure, `note` is a few words behind it."""
        self._frames += frames
        if self._frames:
            note = f"{self._frames / (time.monotonic() - self._start):,.0f} frames/s  {note}"
        self._progress.update(self._task, advance=amount, note=note)

    def move_to(self, completed: float, *, frames: int, note: str = "") -> None:
        """Move to `completed` units, by `frames` frames in all."""
        self._frames = frames
        self.advance(0, note=note)
        self._progress.update(self._task, completed=completed)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)


@contextmanager
def progress_bar(
    name: str, *, total: int, done: int = 0, unit: str = "steps", show: bool = True
) -> Iterator[Bar]:
    """A progress bar on stderr for `total` units of which `done` are done already.

    `show=False` keeps silent, so that callers need no second path.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),  # all of it fits into 80 columns
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, refresh_per_second=4, disable=not show) as progress:
        yield Bar(progress, name, total, done)
