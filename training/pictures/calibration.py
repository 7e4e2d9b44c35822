"""Calibration of M: do tiles and falls come as often as it promises?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.sheet import write_figure
from training.latents import EpisodeLatents
from training.pictures.foretelling import foretell
from wm_env.fidelity.calibration import Bin, Reliability, reliability
from wm_env.world_model import WorldModel

RATE_EDGES = (0.0, *np.geomspace(1e-3, 1.0, 7), np.inf)  # tiles a step
PROBABILITY_EDGES = (0.0, *np.geomspace(1e-5, 0.1, 5), np.inf)

_Z95 = 1.96  # standard deviations of a normal within which 95 % lie


def interval(part: Bin, *, limit: float = np.inf) -> tuple[float, float]:
    """Between which rates 95 % of such bins have their true one, were steps independent.

    Rao's for a Poisson rate, which has a width where nothing came; no rate exceeds `limit`.
    """
    events = part.count * part.observed
    centre, reach = events + _Z95**2 / 2, _Z95 * np.sqrt(events + _Z95**2 / 4)
    return (centre - reach) / part.count, min((centre + reach) / part.count, limit)


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
        reliability(promised_tiles, tiles, RATE_EDGES),
        "Tiles: {promised:,.0f} promised, {came:,.0f} hit",
        "tiles a step",
    )
    _draw(
        axes[:, 1],
        reliability(promised_off_field, off_field, PROBABILITY_EDGES),
        "Leaving the field: {promised:,.1f} times promised, {came:,.0f} times real",
        "probability in a step",
        limit=1.0,
    )
    write_figure(figure, path)


def _draw(
    axes: Sequence[Axes], told: Reliability, title: str, unit: str, *, limit: float = np.inf
) -> None:
    curve, counts = axes
    steps = np.array([part.count for part in told.bins])
    promised = np.array([part.predicted for part in told.bins])
    real = np.array([part.observed for part in told.bins])
    low, high = np.transpose([interval(part, limit=limit) for part in told.bins])
    # On log axes zero has no place; it is drawn below all that is not.
    floor = 0.3 * min(promised.min(), (1 / steps).min())
    given = np.maximum(real, floor)
    reach = np.abs([given - np.maximum(low, floor), high - given])
    came = real > 0
    blue = "tab:blue"
    ends = [promised.min(), promised.max()]
    curve.plot(ends, ends, color="grey", ls="--", label="promise kept")
    curve.errorbar(promised, given, reach, fmt="none", color=blue, alpha=0.5)
    curve.plot(promised[came], given[came], "o", color=blue, label="mean of a bin, 95 % interval")
    curve.plot(
        promised[~came],
        given[~came],
        "o",
        color=blue,
        mfc="white",
        label="nothing came in the bin",
    )
    curve.set(xscale="log", yscale="log", ylabel=f"real: {unit}")
    curve.set_title(title.format(promised=promised @ steps, came=real @ steps))
    curve.legend(fontsize=9, loc="upper left")
    curve.grid(alpha=0.3)
    counts.plot(promised, steps, "o", color=blue)
    for part in told.bins:
        text = f"{part.count * part.observed:.0f} in\n{part.count:,}"
        at = part.predicted, part.count
        counts.annotate(text, at, (0, 5), textcoords="offset points", ha="center", fontsize=8)
    counts.set(yscale="log", ylabel="steps in the bin", xlabel=f"promised: {unit}")
    counts.margins(y=0.6)
    counts.grid(alpha=0.3)
