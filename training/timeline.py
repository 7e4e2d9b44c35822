"""When a run was at work, and its real score against the hours of it: a file and a figure.

`times.jsonl` has a line for each stage and each time that it was at work.
"""

import json
import math
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
from wm_env.storage import write_atomically


class Span(NamedTuple):
    """A stage at work, in seconds since 1970; one that goes on has no end."""

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
        self._out, self._path = out, out / "times.jsonl"

    @property
    def spans(self) -> list[Span]:
        """In the order in which they began."""
        if not self._path.exists():
            return []
        return [Span(**json.loads(line)) for line in self._path.read_text().splitlines()]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note when the stage begins and ends; nothing where the run has no folder."""
        span = Span(name, time.time(), None)
        self._write([*map(self._closed, self.spans), span])
        try:
            yield
        finally:
            others = [one for one in self.spans if one[:2] != span[:2]]
            self._write([*others, span._replace(ended=time.time())])

    def _closed(self, span: Span) -> Span:
        """A span as it is, or, of a stage that was killed, up to the last that it wrote."""
        if span.ended is not None:
            return span
        written = (path.stat().st_mtime for path in self._out.rglob("*") if path != self._path)
        return span._replace(ended=max([span.began, *written]))

    def _write(self, spans: list[Span]) -> None:
        if self._out.is_dir():  # a mistyped one is not made
            lines = "".join(f"{json.dumps(span._asdict())}\n" for span in spans)
            write_atomically(self._path, lines.encode())


def hours_worked(spans: Sequence[Span], moment: float) -> float:
    """Hours at work by a moment, in seconds since 1970."""
    worked = (min(moment, one.ended or math.inf) - one.began for one in spans)
    return sum(max(seconds, 0.0) for seconds in worked) / 3600.0


def validations(out: Path, contenders: Sequence[Contender]) -> list[list[Validation]]:
    """Of each contender's evolution all validations, by the hours that the run had worked."""
    spans = Timeline(out).spans
    return [
        [
            Validation(hours_worked(spans, line["at"]), line["real_mean"], line["real_std"])
            for line in one.history()
            if "at" in line
        ]
        for one in contenders
    ]


def draw_score(out: Path, contenders: Sequence[Contender], path: Path) -> None:
    """The real score against hours of work as a PNG: a colour for each evolution, best so far.

    Validations that do not tell when they were, as of runs of earlier versions, are left out.
    """
    groups = validations(out, contenders)
    fig, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for contender, group in zip(contenders, groups, strict=True):
        label = "the run itself" if contender.folder == out else contender.folder.name
        hours, means, stds = zip(*group, strict=True) if group else ((), (), ())
        axes.errorbar(hours, means, stds, fmt="o", capsize=3, label=label)
    every = sorted(one for group in groups for one in group)
    best = accumulate((one.mean for one in every), max)
    axes.step([one.hours for one in every], list(best), where="post", color="gray", label="best")
    axes.set(
        xlabel="hours of the run's work",
        ylabel="return, mean and standard deviation",
        title="Real tracks, on which checkpoints are chosen",
        xlim=(0, None),
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    fig.savefig(path, dpi=120)
    plt.close(fig)
