"""What was measured of a world, or of an ensemble of them: returns, and how the dream errs."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from wm_env.fidelity.calibration import Reliability
from wm_env.fidelity.estimates import Estimate, pearson, spearman
from wm_env.fidelity.open_loop import SAMPLED, OpenLoop
from wm_env.fidelity.replay import ORDINARY, Replay, before_failures


@dataclass(frozen=True)
class Score:
    """One policy's returns, real and dreamt."""

    policy: str
    real_returns: tuple[float, ...]
    dream_returns: tuple[float, ...]

    @property
    def real(self) -> Estimate:
        """Mean real return."""
        return Estimate.of(self.real_returns)

    @property
    def dream(self) -> Estimate:
        """Mean dreamt return."""
        return Estimate.of(self.dream_returns)


@dataclass(frozen=True)
class Fidelity:
    """Everything that was measured."""

    scores: tuple[Score, ...]
    open_loop: OpenLoop
    open_loop_policies: tuple[str, ...]
    calibration: dict[str, Reliability]  # "tiles" and "off_field"
    replays: tuple[Replay, ...]

    def agreement(self) -> dict[str, float]:
        """Correlations over the suite and over its better half (by real return), and the bias."""
        better = better_half(self.scores)
        spread = [score.dream.mean - score.real.mean for score in self.scores]
        return {
            "spearman": _correlation(spearman, self.scores),
            "pearson": _correlation(pearson, self.scores),
            "spearman_better_half": _correlation(spearman, better),
            "pearson_better_half": _correlation(pearson, better),
            "bias": sum(spread) / len(spread),
            "bias_better_half": sum(s.dream.mean - s.real.mean for s in better) / len(better),
        }

    def row(self) -> dict[str, float]:
        """The few figures that a table of worlds compares; NaN where one is not defined.

        z errors are those of dreams at temperature 1 along drives of the better half; an excess is
        the tiles that replays are paid in 100 steps beyond those that the car really hit.
        """
        agreement, loop = self.agreement(), self.open_loop
        excess = {one.name: one.dreamt.mean - one.real.mean for one in self.replays}
        errors = dict(zip(loop.horizons, loop.z[SAMPLED], strict=True))
        names = "spearman", "spearman_better_half", "pearson", "bias"
        return {
            **{name: agreement[name] for name in names},
            "z_error_10": errors[10].mean,
            "z_error_50": errors[50].mean,
            "tiles_calibration_error": self.calibration["tiles"].error,
            "excess_20_before_failures": excess[before_failures(20)],
            "excess_ordinary": excess[ORDINARY],
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; None where a figure is not defined."""
        policies = [
            {**asdict(score), "real": asdict(score.real), "dream": asdict(score.dream)}
            for score in self.scores
        ]
        return _without_nan(
            {
                **self.agreement(),
                "row": self.row(),
                "policies": policies,
                "open_loop": {**asdict(self.open_loop), "policies": self.open_loop_policies},
                "calibration": {name: asdict(one) for name, one in self.calibration.items()},
                "replays": [asdict(one) for one in self.replays],
            }
        )


def better_half(scores: tuple[Score, ...]) -> tuple[Score, ...]:
    """The half of the policies, rounded up, with the higher mean real returns."""
    ranked = sorted(scores, key=lambda score: -score.real.mean)
    return tuple(ranked[: (len(ranked) + 1) // 2])


def _correlation(of: Callable[[Any, Any], float], scores: tuple[Score, ...]) -> float:
    return of([score.real.mean for score in scores], [score.dream.mean for score in scores])


def _without_nan(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
