"""`python -m training sweep`: one change of M at a time, and what it does to the dream.

Every M is fitted on from the same one, or anew, on the same latents. All are driven by the same
policies, which remember with the M of `driver`, on the same real tracks, driven once. What is
finished is kept, in files named for all that it follows from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from training.latents import LatentShard, check_encoded_by, open_latents
from training.memory import data_of, fit_memory
from training.memory_loss import MemoryConfig
from training.starts import assemble_world
from training.vision import VisionConfig, load_vision
from wm_env.fidelity.driven_dream import check_same_v
from wm_env.fidelity.report import FidelityConfig
from wm_env.fidelity.report import run as report
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig, couplings_of
from wm_env.simulator import default_backend
from wm_env.vae import VAE
from wm_env.weights import checksum_of, digest_of, load_world, save_world

_WIDTH = 120  # of the table, where stdout is narrower or a file


@dataclass(frozen=True)
class Change:
    """What is other than in the base: of the fit, of M, and of the dreams."""

    memory: Mapping[str, Any] = field(default_factory=dict)  # of MemoryConfig
    mdn_rnn: Mapping[str, Any] = field(default_factory=dict)  # of MDNRNNConfig
    dream: Mapping[str, Any] = field(default_factory=dict)  # temperature, dropout
    fits: tuple[str, ...] = ()  # of which changes the M's are; more than one are an ensemble
    mixture_anew: bool = (
        False  # whether the mixture's head is drawn anew, as where its form changes
    )


CHANGES = {
    "base": Change(),
    "another seed": Change({"seed": 1}),
    "never its own samples": Change({"own_shares": (0.0,)}),
    "own samples foretold": Change({"own_foretold": True}),
    "mixture anew": Change(mixture_anew=True),
    "shared mixture": Change(mdn_rnn={"shared_mixture": True}),
    "dimensions by themselves": Change(mdn_rnn={"correlated": False}),
    "no motion": Change(mdn_rnn={"motion": False}),
    "no motion, by themselves": Change(mdn_rnn={"motion": False, "correlated": False}),
    "one component": Change(mdn_rnn={"mixtures": 1}),
    "tiles by squared error": Change(mdn_rnn={"tiles": "squared"}),
    "reward by squared error": Change(mdn_rnn={"tiles": "reward"}),
    "over-prediction x 5": Change({"asymmetry": 5.0}),
    "weights 1, 1, 1": Change({"tiles_weight": 1.0, "off_field_weight": 1.0}),
    "falls x 10": Change({"fall_weight": 10.0}),
    "dropout 0.05, dreamt with 0.1": Change(mdn_rnn={"dropout": 0.05}, dream={"dropout": 0.1}),
    "dropout 0.05, dreamt with 0": Change(fits=("dropout 0.05, dreamt with 0.1",)),
    "the same, another seed": Change({"seed": 1}, mdn_rnn={"dropout": 0.05}),
    "posterior samples": Change({"latent_noise": 0.0, "posterior_noise": 1.0}),
    "no noise": Change({"latent_noise": 0.0}),
    "whole episodes": Change({"length": None, "batch": 13}),
    "batch 256, half the steps": Change({"batch": 256, "steps": 0.5}),
    "temperature 0.5": Change(dream={"temperature": 0.5}, fits=("base",)),
    "temperature 1.3": Change(dream={"temperature": 1.3}, fits=("base",)),
    "ensemble of two": Change(fits=("base", "another seed")),
}


@dataclass(frozen=True)
class SweepConfig:
    """Which changes are compared, on how long a fit."""

    changes: tuple[str, ...] = tuple(CHANGES)
    steps: int = 300
    begin_from: str | None = "carracing_motion"  # world whose M is fitted on; None fits anew
    driver: str = "carracing_motion"  # world of the same V in whose M the controller is at home
    controller: str = "carracing_motion_controller"


def run(config: SweepConfig, memory: MemoryConfig, vision: VisionConfig, out: Path) -> list[dict]:
    """Compare the changes in `out/sweep`, and print their table; returns its rows.

    Raises:
        ValueError: no change or an unknown one, or worlds of another V than the run's.
    """
    unknown = [name for name in config.changes if name not in CHANGES]
    if unknown or not config.changes:
        known = ", ".join(map(repr, CHANGES))
        raise ValueError(f"changes are {unknown or 'none'}; expected some of {known}.")
    vae = load_vision(vision, out / "vision")
    begin = load_world(config.begin_from) if config.begin_from else None
    if begin:  # before hours of fitting, as the driver
        check_same_v(begin, vae, f"begin_from {config.begin_from}")
    check_same_v(load_world(config.driver), vae, f"driver {config.driver}")
    folders = [out, *sorted(path.parent for path in out.glob("round-*/latents"))]
    latents = [shard for folder in folders for shard in open_latents(folder / "latents")]
    check_encoded_by(latents, vae)
    # Dropout is among the changes, so that no preset's may be in the base.
    plain = replace(memory.mdn_rnn, dropout=0.0)
    base, rows = replace(memory, steps=config.steps, mdn_rnn=plain), []
    fitting = _Fitting(base, begin and begin.mdn_rnn, vae, latents, data_of(latents), out / "sweep")
    drivers = [checksum_of(weights) for weights in (config.driver, config.controller)]
    for name in config.changes:
        fits = CHANGES[name].fits or (name,)
        worlds = tuple(str(_world(fit, fitting)) for fit in fits)
        asked = [*map(checksum_of, worlds), *drivers, CHANGES[name].dream, default_backend()]
        told = out / "sweep" / f"{_named(name, asked)}.json"
        if not told.exists():
            report(
                FidelityConfig(
                    world=worlds,
                    driver=config.driver,
                    controller=config.controller,
                    drives=out / "sweep" / "drives",
                    json=told,
                    quick=True,
                    **CHANGES[name].dream,
                )
            )
        rows.append({"change": name, **json.loads(told.read_text())["row"]})
    print_rows(rows)
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table on stdout, a line a change."""
    title = (
        "One change of M at a time: correlation of dreamt with real returns, over all policies and "
        "the better half; bias of returns; open-loop error of z after 10 and 50 steps; error of "
        "foreseen tiles; tiles that a dream pays too much in 100 steps, from 20 steps before "
        "failures and in ordinary driving"
    )
    names = "Spearman,better half,Pearson,bias,z 10,z 50,tiles,failures,ordinary".split(",")
    table = Table("", title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        change, *figures = row.values()
        table.add_row(change, *("" if value is None else f"{value:.3g}" for value in figures))
    Console(width=max(Console().width, _WIDTH)).print(table)


def changed(base: MemoryConfig, change: Change) -> MemoryConfig:
    """The base with a change; a number of steps below 1 is a share of the base's."""
    told = dict(change.memory)
    if told.get("steps", 1) < 1:
        told["steps"] = int(told["steps"] * base.steps)
    return replace(base, mdn_rnn=replace(base.mdn_rnn, **change.mdn_rnn), **told)


def begun_from(begin: MDNRNN, config: MDNRNNConfig, *, mixture: bool, seed: int) -> MDNRNN:
    """An M of `config` with the gates of `begin`, and what of its heads means the same.

    `mixture` says whether the mixture's head is taken over where it is of the same form.
    """
    fresh, told = MDNRNN(config, key=jax.random.key(seed)), begin.config
    alike = (told.mixtures, told.shared_mixture) == (config.mixtures, config.shared_mixture)
    there, wanted = couplings_of(told), couplings_of(config)
    weight, bias = (
        jnp.concatenate(
            [
                (old if mixture and there == wanted else new)[..., :wanted],
                old[..., there:-2] if mixture and alike else new[..., wanted:-2],
                (old if told.tiles == config.tiles else new)[..., -2:-1],
                old[..., -1:],
            ],
            axis=-1,
        )
        for old, new in (
            (begin.head_weight, fresh.head_weight),
            (begin.head_bias, fresh.head_bias),
        )
    )
    # What the gates see between z and h is the action or the motion.
    size, known = config.latent_size, begin.gate_weight
    given = known if config.motion == told.motion else fresh.gate_weight
    given = given[size : -config.hidden_size]
    gates = jnp.concatenate([known[:size], given, known[-config.hidden_size :]])
    return eqx.tree_at(
        lambda m: (m.gate_weight, m.gate_bias, m.head_weight, m.head_bias, m.motion),
        fresh,
        (
            gates,
            begin.gate_bias,
            weight,
            bias,
            begin.motion if config.motion and told.motion else fresh.motion,
        ),
        is_leaf=lambda leaf: leaf is None,
    )


@dataclass(frozen=True, eq=False)
class _Fitting:
    """What all fits of a sweep share."""

    base: MemoryConfig
    begin: MDNRNN | None
    vae: VAE
    latents: list[LatentShard]
    data: str  # the name of the latents
    out: Path


def _world(name: str, of: _Fitting) -> Path:
    config, anew = changed(of.base, CHANGES[name]), CHANGES[name].mixture_anew
    asked = [asdict(config), of.begin and digest_of(of.begin), of.data, *(["anew"] * anew)]
    folder = of.out / _named(name, asked)
    path = folder / "world.safetensors"
    if not path.exists():
        taken = {"mixture": not anew, "seed": config.seed}
        begin_from = [begun_from(of.begin, config.mdn_rnn, **taken)] if of.begin else []
        mdn_rnn, *_ = fit_memory(of.latents, config, folder / "memory", begin_from=begin_from)
        save_world(assemble_world(of.vae, mdn_rnn, of.latents, {"memory": asdict(config)}), path)
    return path


def _named(name: str, asked: list[Any]) -> str:
    """A file's name for the answer to just this question."""
    words = "".join(c if c.isalnum() or c == "." else " " for c in name).split()
    return "-".join([*words, hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]])
