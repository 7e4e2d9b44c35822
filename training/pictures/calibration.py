"""Calibration of M: do tiles and falls come as often as it promises?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.latents import EpisodeLatents
from training.pictures.foretelling import foretell
from training.pictures.sheet import write_figure
from wm_env.world_model import WorldModel

RATE_EDGES = np.array([0.0, *np.geomspace(1e-3, 1.0, 7), np.inf])  # tiles a step
PROBABILITY_EDGES = np.array([0.0, *np.geomspace(1e-5, 1.0, 6)])

_Z95 = 1.96  # standard deviations of a normal within which 95 % lie


@dataclass(frozen=True)
class Calibration:
    """Bins of steps by what was promised, empty ones left out; each array [bins].

    promised and given are means over the bin's steps, events what came in all of them; 95 % of
    such bins have their true rate between low and high, were steps independent.
    """

    steps: np.ndarray
    events: np.ndarray
    promised: np.ndarray
    given: np.ndarray
    low: np.ndarray
    high: np.ndarray


def calibrate(
    promised: np.ndarray, given: np.ndarray, edges: np.ndarray, *, limit: float = np.inf
) -> Calibration:
    """Compare what each of n steps promised, [n], with the number of events that came, [n].

    A step counts for the bin of `edges` that its promise falls into. The interval is Rao's for a
    Poisson rate, which has a width where nothing came; no rate exceeds `limit`.
    """
    bins = np.digitize(promised, edges[1:-1])
    steps = np.bincount(bins, minlength=len(edges) - 1)
    events = np.bincount(bins, weights=given, minlength=len(edges) - 1)
    total = np.bincount(bins, weights=promised, minlength=len(edges) - 1)
    used = steps > 0
    steps, events, total = steps[used], events[used], total[used]
    centre, reach = events + _Z95**2 / 2, _Z95 * np.sqrt(events + _Z95**2 / 4)
    return Calibration(
        steps=steps,
        events=events,
        promised=total / steps,
        given=events / steps,
        low=(centre - reach) / steps,
        high=np.minimum((centre + reach) / steps, limit),
    )


def calibration_curves(world: WorldModel, episodes: Sequence[EpisodeLatents], path: Path) -> None:
    """Tiles by promised rate and falls by promised probability, with the bins' counts below."""
    foretold = foretell(world, episodes)
    tiles = np.concatenate([episode.tiles for episode in episodes])
    off_field = np.concatenate([episode.off_field for episode in episodes])
    promised_tiles = np.concatenate([one.tiles for one in foretold])
    promised_off_field = np.concatenate([one.off_field for one in foretold])
    figure = Figure((12.0, 7.5), layout="constrained")
    figure.suptitle(
        f"Does M keep its promises? One step ahead, {len(episodes)} held-out episodes, "
        f"{len(tiles):,} steps",
        fontsize=14,
        weight="bold",
    )
    axes = figure.subplots(2, 2, height_ratios=(3, 1), sharex="col")
    _draw(
        axes[:, 0],
        calibrate(promised_tiles, tiles, RATE_EDGES),
        "Tiles: {promised:,.0f} promised, {came:,.0f} hit",
        "tiles a step",
    )
    _draw(
        axes[:, 1],
        calibrate(promised_off_field, off_field, PROBABILITY_EDGES, limit=1.0),
        "Leaving the field: {promised:,.1f} times promised, {came:,.0f} times real",
        "probability in a step",
    )
    write_figure(figure, path)


def _draw(axes: Sequence[Axes], bins: Calibration, title: str, unit: str) -> None:
    curve, counts = axes
    # On log axes zero has no place; it is drawn below all that is not.
    floor = 0.3 * min(bins.promised.min(), (1 / bins.steps).min())
    given, low = np.maximum(bins.given, floor), np.maximum(bins.low, floor)
    reach = np.abs([given - low, bins.high - given])
    came = bins.events > 0
    blue = "tab:blue"
    ends = [bins.promised.min(), bins.promised.max()]
    curve.plot(ends, ends, color="grey", ls="--", label="promise kept")
    curve.errorbar(bins.promised, given, reach, fmt="none", color=blue, alpha=0.5)
    curve.plot(
        bins.promised[came], given[came], "o", color=blue, label="mean of a bin, 95 % interval"
    )
    curve.plot(
        bins.promised[~came],
        given[~came],
        "o",
        color=blue,
        mfc="white",
        label="nothing came in the bin",
    )
    curve.set(xscale="log", yscale="log", ylabel=f"real: {unit}")
    curve.set_title(title.format(promised=bins.promised @ bins.steps, came=bins.events.sum()))
    curve.legend(fontsize=9, loc="upper left")
    curve.grid(alpha=0.3)
    counts.plot(bins.promised, bins.steps, "o", color=blue)
    for promised, steps, events in zip(bins.promised, bins.steps, bins.events, strict=True):
        text = f"{events:.0f} in\n{steps:,}"
        counts.annotate(
            text, (promised, steps), (0, 5), textcoords="offset points", ha="center", fontsize=8
        )
    counts.set(yscale="log", ylabel="steps in the bin", xlabel=f"promised: {unit}")
    counts.margins(y=0.6)
    counts.grid(alpha=0.3)
