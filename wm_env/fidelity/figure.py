"""The figure of a world's fidelity: returns, open-loop errors, calibration and replays."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wm_env.fidelity.calibration import Reliability
from wm_env.fidelity.estimates import Estimate
from wm_env.fidelity.open_loop import ELSEWHERE, LIKELIEST, SAMPLED, STILL, V_ALONE
from wm_env.fidelity.result import Fidelity
from wm_env.storage import write_atomically

_REAL, _DREAM, _NEUTRAL = "tab:green", "tab:blue", "0.55"
_STYLES = {
    SAMPLED: {"color": _DREAM, "marker": "o"},
    LIKELIEST: {"color": _DREAM, "marker": "s", "ls": "--"},
    STILL: {"color": "tab:orange", "marker": "^"},
    ELSEWHERE: {"color": _NEUTRAL, "marker": "x", "ls": ":"},
    V_ALONE: {"color": _REAL, "marker": "v"},
}


def draw(fidelity: Fidelity, path: Path, *, title: str) -> None:
    """Write the figure, whole or not at all; the kind of file follows from the name's ending."""
    figure = Figure(figsize=(16, 9.5), layout="constrained")  # no pyplot: it keeps global state
    panels = figure.subplots(2, 3).ravel()
    _returns(panels[0], fidelity)
    loop = fidelity.open_loop
    _errors(panels[1], loop.horizons, loop.z, "Open loop: error of the latent z")
    panels[1].set_ylabel("root mean square error a dimension")
    _errors(panels[2], loop.horizons, loop.pixels, "Open loop: error of the picture")
    panels[2].set_ylabel("mean absolute error a pixel, of 255")
    _tiles(panels[3], fidelity.calibration["tiles"])
    _off_field(panels[4], fidelity.calibration["off_field"])
    _replays(panels[5], fidelity)
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=13)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=110)
    write_atomically(path, content.getvalue())


def _returns(panel: Any, fidelity: Fidelity) -> None:
    real, dream = (
        [getattr(score, name) for score in fidelity.scores] for name in ("real", "dream")
    )
    means = np.array([[one.mean for one in row] for row in (real, dream)])
    panel.errorbar(
        *means, xerr=_bars(real), yerr=_bars(dream), fmt="o", color=_DREAM, ms=4, elinewidth=0.8
    )
    low, high = means.min() - 30, means.max() + 30
    panel.plot([low, high], [low, high], color=_NEUTRAL, ls=":", label="dream = real")
    agreement = fidelity.agreement()
    panel.set(
        xlabel="mean return on real tracks",
        ylabel="mean return in the dream",
        title=f"One dot a policy: Spearman {agreement['spearman']:.2f} "
        f"({agreement['spearman_better_half']:.2f} in the better half), "
        f"bias {agreement['bias']:+.0f}",
    )
    panel.title.set_fontsize(10)
    panel.legend(loc="upper left")


def _errors(
    panel: Any, horizons: tuple[int, ...], errors: dict[str, tuple[Estimate, ...]], title: str
) -> None:
    for name, row in errors.items():
        panel.errorbar(
            horizons, [one.mean for one in row], _bars(row), label=name, ms=5, **_STYLES[name]
        )
    panel.set(xscale="log", xlabel="steps since the dream saw a frame (50 a second)", title=title)
    panel.set_xticks(horizons, [str(horizon) for horizon in horizons])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=8)


def _tiles(panel: Any, reliability: Reliability) -> None:
    x, y, counts = _binned(reliability)
    top = 1.05 * max(*x, *y)
    panel.plot([0, top], [0, top], color=_NEUTRAL, ls=":", label="perfect")
    panel.plot(x, y, color=_DREAM)
    panel.scatter(x, y, s=_sizes(counts), color=_DREAM, label="steps (larger: more of them)")
    panel.set(
        xlabel="tiles a step that M foresees",
        ylabel="tiles a step that the car hit",
        title=f"Calibration of tiles, real frames seen (mean error {reliability.error:.3f})",
    )
    panel.legend(loc="upper left")


def _off_field(panel: Any, reliability: Reliability) -> None:
    x, y, counts = _binned(reliability)
    panel.plot([1e-7, 1], [1e-7, 1], color=_NEUTRAL, ls=":", label="perfect")
    seen = y > 0
    panel.scatter(x[seen], y[seen], s=_sizes(counts)[seen], color=_DREAM, label="steps")
    if not seen.all():
        below = {"marker": "v", "color": _DREAM, "label": "never: less than once in these steps"}
        panel.scatter(x[~seen], 1 / counts[~seen], **below)
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="probability of leaving the field that M foresees",
        ylabel="share of steps in which it happened",
        title=f"Calibration of off-field: {100 * reliability.predicted:.3f} foreseen, "
        f"{100 * reliability.observed:.3f} real per 100 steps",
    )
    panel.title.set_fontsize(10)
    panel.legend(loc="lower right")


def _replays(panel: Any, fidelity: Fidelity) -> None:
    places = np.arange(len(fidelity.replays))
    for shift, name, color in ((-0.2, "real", _REAL), (0.2, "dreamt", _DREAM)):
        estimates = [getattr(one, name) for one in fidelity.replays]
        heights = [one.mean for one in estimates]
        panel.bar(
            places + shift, heights, 0.38, yerr=_bars(estimates), color=color, label=name, capsize=3
        )
    labels = [f"{one.name}\n({one.real.count})" for one in fidelity.replays]
    panel.set_xticks(places, labels, fontsize=8)
    panel.set(
        ylabel="tiles in the next 100 steps",
        xlabel="where the same policy drives on (number of moments)",
        title="Replay of failures: last tile before 100 steps without one",
    )
    panel.legend(loc="upper left")


def _binned(reliability: Reliability) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [(part.predicted, part.observed, part.count) for part in reliability.bins]
    x, y, counts = np.array(rows, np.float64).T
    return x, y, counts


def _sizes(counts: np.ndarray) -> np.ndarray:
    return 12.0 + 20.0 * np.log10(counts)


def _bars(estimates: Any) -> list[float]:
    """Standard errors; 0 where there is none."""
    return [float(np.nan_to_num(one.error)) for one in estimates]
