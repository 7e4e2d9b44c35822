"""`python -m wm_env fidelity`: how true is the dream? One table, one JSON, one figure.

Training in a dream can work only where the dream ranks policies as reality does, and does not pay
on where the real car has left the road.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from wm_env import __version__
from wm_env.fidelity.calibration import calibration, foresee
from wm_env.fidelity.dreams import dream_returns
from wm_env.fidelity.driven_dream import driven_by
from wm_env.fidelity.drives import Drive, record_drives
from wm_env.fidelity.kept_drives import kept_drives
from wm_env.fidelity.open_loop import OpenLoop, OpenLoopConfig, open_loop
from wm_env.fidelity.policy_suite import Suite, load_variant, load_variants, policy_suite
from wm_env.fidelity.replay import ReplayConfig, replay
from wm_env.fidelity.result import Fidelity, Score, better_half
from wm_env.seeds import HELD_OUT
from wm_env.simulator import default_backend
from wm_env.storage import write_atomically
from wm_env.task import CAR_RACING
from wm_env.weights import world_for
from wm_env.world_model import WorldModel

_QUICK = {"episodes": 4, "dreams": 16, "steps": 600}


@dataclass(frozen=True)
class FidelityConfig:
    """Drive a suite of policies on real tracks and in the dream, and compare.

    The suite is a controller spoilt in many ways, constant actions, and the files of
    `controllers`. Real tracks are those that controllers are chosen on, never those that judge.

    Several worlds are an ensemble: dreams are shared out among them, errors are their mean. To
    compare worlds of different M's, name one driver for all, in whose M the controllers are at
    home, and a folder for the drives, which are then driven once.
    """

    world: tuple[str, ...] = ("carracing",)  # files or shipped names
    driver: str | None = None  # world whose M the policies remember with; the (first) one tested
    controller: str = "carracing_controller"  # which is spoilt; file or shipped name
    controllers: tuple[Path, ...] = ()  # more policies, as those saved during evolution
    drives: Path | None = None  # folder that keeps real drives, and has them from earlier runs
    json: Path | None = None  # write all figures here
    figure: Path | None = None  # draw them here (PNG, PDF or SVG)
    quick: bool = False  # rough figures: at most 4 episodes, 16 dreams, 600 frames
    episodes: int = 16  # real ones of each policy
    first_seed: int = 0  # of real tracks
    dreams: int = 32  # of each policy, with the same seeds for all
    steps: int = 1000  # frames of an episode at most
    temperature: float = 1.0  # of dreams with a policy in them, as the next two
    persistence: float = 0.0
    dropout: float = 0.0
    seed: int = 0  # of open-loop dreams and replays
    backend: Literal["gymnasium", "envpool"] = field(default_factory=default_backend)


def run(config: FidelityConfig) -> Fidelity:
    """Measure, print tables, write JSON and figure where asked.

    Raises:
        ValueError: a number outside its range, or worlds that do not share the driver's V.
        WeightsError: a world or a controller cannot be loaded, or they do not fit.
        StoreError: a file of kept drives cannot be used.
    """
    if config.quick:
        config = replace(
            config, **{name: min(most, getattr(config, name)) for name, most in _QUICK.items()}
        )
    _check(config)
    worlds = [world_for(CAR_RACING, name) for name in config.world]
    driver = worlds[0] if config.driver is None else world_for(CAR_RACING, config.driver)
    features = driver.latent_size + driver.hidden_size
    suite = policy_suite(load_variant(config.controller, features=features))
    suite |= load_variants(config.controllers, features=features)
    fidelity = measure(worlds, suite, config, driver=driver)
    print_fidelity(fidelity)
    if config.json is not None:
        facts = {"options": _options(config), "versions": _versions(config), **fidelity.as_dict()}
        write_atomically(config.json, (json.dumps(facts, indent=1) + "\n").encode())
    if config.figure is not None:
        from wm_env.fidelity.figure import draw  # matplotlib takes a second to import

        draw(fidelity, config.figure, title=_title(config, len(suite)))
    return fidelity


def measure(
    worlds: Sequence[WorldModel],
    suite: Suite,
    config: FidelityConfig,
    *,
    driver: WorldModel | None = None,
) -> Fidelity:
    """Compare the dreams of a world, or of an ensemble, with real drives of the suite's policies.

    The policies see [z, h] of the `driver`, which is the first world unless told. Of `config` only
    numbers, `backend` and `drives` count here.

    Raises:
        ValueError: the worlds do not share the driver's V.
        StoreError: a file of kept drives cannot be used.
    """
    driver = worlds[0] if driver is None else driver
    options = {name: getattr(config, name) for name in ("temperature", "persistence", "dropout")}
    members = driven_by(driver, worlds, steps=config.steps, **options)
    windows, steps = OpenLoopConfig(), config.steps
    drives = _real(driver, suite, config, windows.moments(steps))
    dreamt = dream_returns(members, suite, config.dreams, steps=steps)
    scores = tuple(
        Score(name, tuple(round(one.ret, 4) for one in drives if one.policy == name), returns)
        for name, returns in dreamt.items()
    )
    # Of policies that hardly drive, anything foretells the next picture.
    driving = tuple(score.policy for score in better_half(scores))
    driven = [drive for drive in drives if drive.policy in driving]
    loops = [open_loop(world, driven, windows, steps=steps, seed=config.seed) for world in worlds]
    return Fidelity(
        scores=scores,
        open_loop=OpenLoop.across(loops),
        open_loop_policies=driving,
        calibration=calibration([foresee(world, drives, steps=steps) for world in worlds]),
        replays=tuple(
            replay(members, suite, drives, ReplayConfig(), steps=steps, seed=config.seed)
        ),
    )


def _real(
    driver: WorldModel, suite: Suite, config: FidelityConfig, moments: set[int]
) -> list[Drive]:
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    asked = {"backend": config.backend, "steps": config.steps, "moments": moments}
    if config.drives is None:
        return record_drives(driver, suite, seeds, **asked)
    return kept_drives(config.drives, driver, suite, seeds, **asked)


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


def _check(config: FidelityConfig) -> None:
    if isinstance(config.world, str):
        raise ValueError(f"world is {config.world!r}; expected a tuple, as ({config.world!r},).")
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    choosing = HELD_OUT["choosing"]
    if config.episodes < 1 or not (seeds[0] in choosing and seeds[-1] in choosing):
        raise ValueError(
            f"first_seed {config.first_seed} and episodes {config.episodes} ask for other tracks "
            f"than {choosing[0]}..{choosing[-1]}; expected some of these, for those that judge "
            "controllers must not choose worlds. Lower episodes or first_seed."
        )
    if not 1 <= len(config.world) <= min(config.dreams, ReplayConfig().dreams):
        raise ValueError(
            f"dreams is {config.dreams} and worlds are {len(config.world)}; expected one world or "
            f"more, a dream or more of each, and at most {ReplayConfig().dreams} worlds."
        )
    windows = OpenLoopConfig()
    if not windows.starts(config.steps):
        raise ValueError(
            f"steps is {config.steps}; expected {windows.first + max(windows.horizons)} or more, "
            "for open-loop dreams of that length to fit."
        )


def _options(config: FidelityConfig) -> dict[str, Any]:
    options = {**asdict(config), "controllers": [str(path) for path in config.controllers]}
    paths = {name: options[name] for name in ("drives", "json", "figure")}
    return options | {name: path and str(path) for name, path in paths.items()}


def _versions(config: FidelityConfig) -> dict[str, str]:
    packages = ["gymnasium", "jax"] + ["envpool"] * (config.backend == "envpool")
    own = {"python": platform.python_version(), "wm_env": __version__}
    return own | {name: version(name) for name in packages}


def _title(config: FidelityConfig, policies: int) -> str:
    worlds = " + ".join(Path(name).stem for name in config.world)
    driver = "" if config.driver is None else f", drivers of {Path(config.driver).stem}"
    return (
        f"How true is the dream? {worlds}{driver}: {policies} policies, each on {config.episodes} "
        f"real tracks ({config.backend}) and in {config.dreams} dreams of {config.steps} frames"
    )
