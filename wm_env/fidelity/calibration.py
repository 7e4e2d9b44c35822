"""Calibration: of the steps for which M foresees so and so much, in how many did it happen?

M is teacher-forced: it sees each real frame and action, and foretells the next step only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wm_env import foresight
from wm_env.episodes import LANES, filled
from wm_env.fidelity.drives import Drive, stacked
from wm_env.progress import progress_bar
from wm_env.world_model import WorldModel

TILE_EDGES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 2.0, np.inf)  # tiles a step
OFF_FIELD_EDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, np.inf)  # probability


@dataclass(frozen=True)
class Bin:
    """Steps whose prediction was from `low` up to, but not including, `high`."""

    low: float
    high: float
    count: int
    predicted: float  # mean
    observed: float  # mean


@dataclass(frozen=True)
class Reliability:
    """Non-empty bins, and the mean of |observed - predicted| over them, weighted by their steps."""

    bins: tuple[Bin, ...]
    error: float
    predicted: float  # mean over all steps
    observed: float  # mean over all steps


@dataclass(frozen=True)
class Foreseen:
    """What M foretold of each step of real drives, and what came; each [steps]."""

    tile_rate: np.ndarray
    tiles: np.ndarray
    off_field_probability: np.ndarray
    off_field: np.ndarray

    def reliabilities(self) -> dict[str, Reliability]:
        """Of tiles a step, and of the probability of leaving the field."""
        return {
            "tiles": reliability(self.tile_rate, self.tiles, TILE_EDGES),
            "off_field": reliability(self.off_field_probability, self.off_field, OFF_FIELD_EDGES),
        }


def calibration(members: Sequence[Foreseen]) -> dict[str, Reliability]:
    """Of an ensemble: bins of all its members' steps, and the mean of the members' errors."""
    columns = {one.name: [getattr(part, one.name) for part in members] for one in fields(Foreseen)}
    together = Foreseen(**{name: np.concatenate(parts) for name, parts in columns.items()})
    each = [one.reliabilities() for one in members]
    return {
        name: replace(whole, error=float(np.mean([one[name].error for one in each])))
        for name, whole in together.reliabilities().items()
    }


def reliability(predicted: Any, observed: Any, edges: Sequence[float]) -> Reliability:
    """Sort steps into bins by what was predicted; the bins must cover all predictions."""
    predicted, observed = (np.asarray(row, np.float64) for row in (predicted, observed))
    place = np.digitize(predicted, edges) - 1
    bins = []
    for index in np.unique(place).tolist():
        inside = place == index
        means = float(predicted[inside].mean()), float(observed[inside].mean())
        bins.append(Bin(edges[index], edges[index + 1], int(inside.sum()), *means))
    off = sum(part.count * abs(part.observed - part.predicted) for part in bins)
    return Reliability(
        bins=tuple(bins),
        error=off / len(predicted),
        predicted=float(predicted.mean()),
        observed=float(observed.mean()),
    )


def foresee(
    world: WorldModel, drives: Sequence[Drive], *, steps: int, show: bool = True
) -> Foreseen:
    """Let M foretell each step of drives of at most `steps` frames."""
    rates, probabilities = [], []
    with progress_bar("teacher-forced", total=len(drives), unit="drives", show=show) as bar:
        for first in range(0, len(drives), LANES):
            group = drives[first : first + LANES]
            rows = stacked(filled(group, LANES), steps)
            rate, probability = _teacher_force(world, *map(jnp.asarray, rows))
            for lane, drive in enumerate(group):
                rates.append(np.asarray(rate[lane, : drive.length]))
                probabilities.append(np.asarray(probability[lane, : drive.length]))
            bar.advance(len(group))
    falls = [np.arange(drive.length) == drive.length - 1 for drive in drives]
    return Foreseen(
        tile_rate=np.concatenate(rates),
        tiles=np.concatenate([drive.tiles for drive in drives]),
        off_field_probability=np.concatenate(probabilities),
        off_field=np.concatenate(
            [last & drive.off_field for last, drive in zip(falls, drives, strict=True)]
        ),
    )


@eqx.filter_jit
def _teacher_force(world: WorldModel, z: Array, actions: Array) -> tuple[Array, Array]:
    """Tiles a step and probability of leaving the field, [n, t] each."""
    told = jax.vmap(foresight.foresee, (None, 0, 0))(world, z, actions)
    return told.tiles, told.off_field
