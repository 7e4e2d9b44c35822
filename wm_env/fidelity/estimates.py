"""What a sample says: a mean with its standard error, and how two rows of numbers go together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` numbers; NaN of none, and its standard error NaN of fewer than two."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Any) -> "Estimate":
        """The mean of numbers that were drawn independently of each other."""
        values = np.asarray(values, np.float64).ravel()
        count = len(values)
        error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        return cls(float(np.mean(values)) if count else math.nan, error, count)

    @classmethod
    def across(cls, members: Sequence["Estimate"]) -> "Estimate":
        """The mean over members of an ensemble that were asked about the same `count` things.

        Its error is the mean of theirs: the true one is no larger, and how much smaller depends on
        how alike the members are.
        """
        means, errors = ([getattr(one, name) for one in members] for name in ("mean", "error"))
        return cls(float(np.mean(means)), float(np.mean(errors)), members[0].count)

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.error:.1f}" if self.count else "-"


def pearson(x: Any, y: Any) -> float:
    """Correlation in [-1, 1]; NaN where a row does not vary."""
    a, b = (np.asarray(row, np.float64) - np.mean(row) for row in (x, y))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def spearman(x: Any, y: Any) -> float:
    """Correlation of the ranks, equal numbers sharing the mean of theirs."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: Any) -> Any:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
