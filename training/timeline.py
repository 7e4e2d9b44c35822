"""When a run was at work, and its real score against the hours of it: a file and a figure.

`times.jsonl` has a line for each stage and each time that it was at work.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from training.contender import Contender
from wm_env.weights import write_atomically


class Span(NamedTuple):
    """A stage at work, in seconds since 1970; one that was killed, or goes on, has no end."""

    stage: str
    began: float
    ended: float | None


class Validation(NamedTuple):
    """What a controller got on real tracks, after so many hours of the run's work."""

    hours: float
    mean: float
    std: float


class Timeline:
    """When the stages of the run in a folder were at work."""

    def __init__(self, out: Path):
        self._path = out / "times.jsonl"

    @property
    def spans(self) -> list[Span]:
        """In the order in which they began."""
        if not self._path.exists():
            return []
        return [Span(**json.loads(line)) for line in self._path.read_text().splitlines()]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note when the stage begins and ends."""
        before, began = self.spans, time.time()
        self._write([*before, Span(name, began, None)])
        try:
            yield
        finally:
            self._write([*before, Span(name, began, time.time())])

    def hours(self, moments: Sequence[float]) -> list[float]:
        """Hours that the run had worked by each of these moments.

        Of a stage that was killed what led to the last moment in it counts: it was not lost.
        """
        spans = self.spans
        if not spans:
            return [0.0 for _ in moments]
        begins = [*(span.began for span in spans[1:]), float("inf")]
        ends = [
            max([span.began, *(moment for moment in moments if span.began <= moment < begin)])
            if span.ended is None
            else span.ended
            for span, begin in zip(spans, begins, strict=True)
        ]
        before = [0.0, *accumulate(end - one.began for one, end in zip(spans, ends, strict=True))]
        worked = []
        for moment in moments:
            index = sum(span.began <= moment for span in spans) - 1
            inside = 0.0 if index < 0 else min(moment, ends[index]) - spans[index].began
            worked.append((before[max(index, 0)] + inside) / 3600.0)
        return worked

    def _write(self, spans: list[Span]) -> None:
        lines = "".join(f"{json.dumps(span._asdict())}\n" for span in spans)
        write_atomically(self._path, lines.encode())


def validations(out: Path, contenders: Sequence[Contender]) -> list[list[Validation]]:
    """Of each contender's evolution all validations, by the hours that the run had worked."""
    lines = [[line for line in one.history() if "at" in line] for one in contenders]
    hours = iter(Timeline(out).hours([line["at"] for group in lines for line in group]))
    return [
        [Validation(next(hours), line["real_mean"], line["real_std"]) for line in group]
        for group in lines
    ]


def draw_score(out: Path, contenders: Sequence[Contender], path: Path) -> None:
    """The real score against hours of work as a PNG: a colour for each evolution, best so far."""
    groups = validations(out, contenders)
    fig, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for contender, group in zip(contenders, groups, strict=True):
        label = "first evolution" if contender.folder == out else contender.folder.name
        hours, means, stds = zip(*group, strict=True) if group else ((), (), ())
        axes.errorbar(hours, means, stds, fmt="o", capsize=3, label=label)
    every = [one for group in groups for one in group]
    best = accumulate((one.mean for one in every), max)
    axes.step([one.hours for one in every], list(best), where="post", color="gray", label="best")
    axes.set(
        xlabel="hours of work, from nothing on",
        ylabel="return, mean and standard deviation",
        title="Real tracks, on which checkpoints are chosen",
        xlim=(0, None),
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    fig.savefig(path, dpi=120)
    plt.close(fig)
