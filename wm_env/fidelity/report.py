"""`python -m wm_env fidelity`: how true is the dream? One table, one JSON, one figure.

Training in a dream can work only where the dream ranks policies as reality does, and does not pay
on where the real car has left the road.
"""

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from wm_env import __version__
from wm_env.car_racing import default_backend
from wm_env.dream import DreamParams
from wm_env.evaluation import evaluate
from wm_env.fidelity.calibration import Reliability, foresee
from wm_env.fidelity.drives import Drive, record_drives
from wm_env.fidelity.estimates import Estimate, pearson, spearman
from wm_env.fidelity.open_loop import OpenLoop, OpenLoopConfig, open_loop
from wm_env.fidelity.policy_suite import (
    Suite,
    drive_variant,
    load_variant,
    load_variants,
    policy_suite,
)
from wm_env.fidelity.replay import Replay, ReplayConfig, replay
from wm_env.progress import progress_bar
from wm_env.seeds import HELD_OUT
from wm_env.weights import load_world, write_atomically
from wm_env.world_model import WorldModel

_QUICK = {"episodes": 2, "dreams": 16, "steps": 300}


@dataclass(frozen=True)
class FidelityConfig:
    """Drive a suite of policies on real tracks and in the dream, and compare.

    The suite is a controller spoilt in many ways, constant actions, and the files of
    `controllers`. Real tracks are those that controllers are chosen on, never those that judge.
    """

    world: str = "carracing"  # file or shipped name
    controller: str = "carracing_controller"  # which is spoilt; file or shipped name
    controllers: tuple[Path, ...] = ()  # more policies, as those saved during evolution
    json: Path | None = None  # write all figures here
    figure: Path | None = None  # draw them here (PNG, PDF or SVG)
    quick: bool = False  # rough figures: at most 2 episodes, 16 dreams, 300 frames
    episodes: int = 16  # real ones of each policy
    first_seed: int = 0  # of real tracks
    dreams: int = 32  # of each policy, with the same seeds for all
    steps: int = 1000  # frames of an episode at most
    temperature: float = 1.0  # of dreams with a policy in them, as the next
    dropout: float = 0.0
    seed: int = 0  # of open-loop dreams and replays
    backend: Literal["gymnasium", "envpool"] = field(default_factory=default_backend)


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
    """Everything that was measured of one world."""

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

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; None where a figure is not defined."""
        policies = [
            {**asdict(score), "real": asdict(score.real), "dream": asdict(score.dream)}
            for score in self.scores
        ]
        return _without_nan(
            {
                **self.agreement(),
                "policies": policies,
                "open_loop": {**asdict(self.open_loop), "policies": self.open_loop_policies},
                "calibration": {name: asdict(one) for name, one in self.calibration.items()},
                "replays": [asdict(one) for one in self.replays],
            }
        )


def run(config: FidelityConfig) -> Fidelity:
    """Measure, print tables, write JSON and figure where asked.

    Raises:
        ValueError: a number outside its range.
        WeightsError: the world or a controller cannot be loaded, or they do not fit.
    """
    if config.quick:
        config = replace(
            config, **{name: min(most, getattr(config, name)) for name, most in _QUICK.items()}
        )
    _check(config)
    world = load_world(config.world)
    features = world.latent_size + world.hidden_size
    suite = policy_suite(load_variant(config.controller, features=features))
    suite |= load_variants(config.controllers, features=features)
    fidelity = measure(world, suite, config)
    print_fidelity(fidelity)
    if config.json is not None:
        facts = {"options": _options(config), "versions": _versions(config), **fidelity.as_dict()}
        write_atomically(config.json, (json.dumps(facts, indent=1) + "\n").encode())
    if config.figure is not None:
        from wm_env.fidelity.figure import draw  # matplotlib takes a second to import

        draw(fidelity, config.figure, title=_title(config, len(suite)))
    return fidelity


def measure(world: WorldModel, suite: Suite, config: FidelityConfig) -> Fidelity:
    """Compare the dreams of a world with real drives of the suite's policies."""
    windows, steps = OpenLoopConfig(), config.steps
    drives = record_drives(
        world,
        suite,
        range(config.first_seed, config.first_seed + config.episodes),
        backend=config.backend,
        steps=steps,
        moments=windows.moments(steps),
    )
    scores = _scores(world, suite, drives, config)
    # Of policies that hardly drive, anything foretells the next picture.
    driving = tuple(score.policy for score in better_half(scores))
    driven = [drive for drive in drives if drive.policy in driving]
    params = DreamParams(
        world_model=world,
        temperature=jnp.float32(config.temperature),
        dropout=jnp.float32(config.dropout),
    )
    return Fidelity(
        scores=scores,
        open_loop=open_loop(world, driven, windows, steps=steps, seed=config.seed),
        open_loop_policies=driving,
        calibration=foresee(world, drives, steps=steps).reliabilities(),
        replays=tuple(replay(params, suite, drives, ReplayConfig(), steps=steps, seed=config.seed)),
    )


def better_half(scores: tuple[Score, ...]) -> tuple[Score, ...]:
    """The half of the policies, rounded up, with the higher mean real returns."""
    ranked = sorted(scores, key=lambda score: -score.real.mean)
    return tuple(ranked[: (len(ranked) + 1) // 2])


def _scores(
    world: WorldModel, suite: Suite, drives: list[Drive], config: FidelityConfig
) -> tuple[Score, ...]:
    scores = []
    with progress_bar("driving dreams", total=len(suite), unit="policies") as bar:
        for name, variant in suite.items():
            dream = evaluate(
                drive_variant,
                variant,
                env="dream",
                seeds=range(config.dreams),
                world_model=world,
                max_episode_steps=config.steps,
                progress=False,
                dream={"temperature": config.temperature, "dropout": config.dropout},
            )
            real = tuple(round(drive.ret, 4) for drive in drives if drive.policy == name)
            scores.append(Score(name, real, dream.returns))
            bar.advance(1, frames=sum(dream.lengths))
    return tuple(scores)


def print_fidelity(fidelity: Fidelity) -> None:
    """Tables on stdout: policies from the best real one down, then everything else."""
    ranked = sorted(fidelity.scores, key=lambda score: -score.real.mean)
    rows = [(score.policy, str(score.real), str(score.dream)) for score in ranked]
    _print_table("Mean return and its standard error", ("policy", "real", "dream"), rows)
    rows = [(name.replace("_", " "), f"{value:.3g}") for name, value in _lines(fidelity)]
    _print_table("Dream against reality", ("", ""), rows)
    ahead = [f"{horizon} steps" for horizon in fidelity.open_loop.horizons]
    for unit, errors in (("of z", fidelity.open_loop.z), ("in pixels", fidelity.open_loop.pixels)):
        rows = [(name, *(f"{one.mean:.3g}" for one in row)) for name, row in errors.items()]
        _print_table(f"Open-loop error {unit}", ("", *ahead), rows)
    rows = [
        (one.name, str(one.real.count), str(one.real), str(one.dreamt)) for one in fidelity.replays
    ]
    header = ("from", "moments", "real", "dreamt")
    _print_table("Replayed with the same policy: tiles in the next 100 steps", header, rows)


def _lines(fidelity: Fidelity) -> list[tuple[str, float]]:
    lines = list(fidelity.agreement().items())
    for name, one in fidelity.calibration.items():
        per = {"tiles": "tiles per 100 steps", "off_field": "falls per 100 steps"}[name]
        lines += [(f"{per}, foreseen", 100 * one.predicted), (f"{per}, real", 100 * one.observed)]
        lines += [(f"{per}, calibration error", 100 * one.error)]
    return lines


def _print_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left", show_header=any(header))
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _correlation(of: Callable[[Any, Any], float], scores: tuple[Score, ...]) -> float:
    return of([score.real.mean for score in scores], [score.dream.mean for score in scores])


def _check(config: FidelityConfig) -> None:
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    choosing = HELD_OUT["choosing"]
    if config.episodes < 1 or not (seeds[0] in choosing and seeds[-1] in choosing):
        raise ValueError(
            f"first_seed {config.first_seed} and episodes {config.episodes} ask for other tracks "
            f"than {choosing[0]}..{choosing[-1]}; expected some of these, for those that judge "
            "controllers must not choose worlds. Lower episodes or first_seed."
        )
    if config.dreams < 1:
        raise ValueError(f"dreams is {config.dreams}; expected 1 or more.")
    windows = OpenLoopConfig()
    if not windows.starts(config.steps):
        raise ValueError(
            f"steps is {config.steps}; expected {windows.first + max(windows.horizons)} or more, "
            "for open-loop dreams of that length to fit."
        )


def _options(config: FidelityConfig) -> dict[str, Any]:
    options = {**asdict(config), "controllers": [str(path) for path in config.controllers]}
    return {**options, "json": str(config.json), "figure": str(config.figure)}


def _versions(config: FidelityConfig) -> dict[str, str]:
    packages = ["gymnasium", "jax"] + ["envpool"] * (config.backend == "envpool")
    own = {"python": platform.python_version(), "wm_env": __version__}
    return own | {name: version(name) for name in packages}


def _title(config: FidelityConfig, policies: int) -> str:
    return (
        f"How true is the dream? World {Path(config.world).stem}: {policies} policies, each on "
        f"{config.episodes} real tracks ({config.backend}) and in {config.dreams} dreams of "
        f"{config.steps} frames"
    )


def _without_nan(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
