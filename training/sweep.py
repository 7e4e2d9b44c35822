"""`python -m training sweep`: one change of M at a time, and what it does to the dream.

Every M is fitted on from the same one, or anew, on the same latents. All are driven by the same
policies, which remember with the M of `driver`, on the same real tracks, driven once. What is
finished is kept.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from rich.console import Console
from rich.table import Table

from training.latents import LatentShard, open_latents
from training.memory import fit_memory
from training.memory_loss import MemoryConfig
from training.starts import assemble_world
from training.vision import VisionConfig, load_vision
from wm_env.fidelity.report import FidelityConfig
from wm_env.fidelity.report import run as report
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.vae import VAE
from wm_env.weights import load_world, save_world


@dataclass(frozen=True)
class Change:
    """What is other than in the base: of the fit, of M, and of the dreams."""

    memory: Mapping[str, Any] = field(default_factory=dict)  # of MemoryConfig
    mdn_rnn: Mapping[str, Any] = field(default_factory=dict)  # of MDNRNNConfig
    dream: Mapping[str, Any] = field(default_factory=dict)  # temperature, dropout
    fits: tuple[str, ...] = ()  # of which changes the M's are; more than one are an ensemble


CHANGES = {
    "base": Change(),
    "another seed": Change({"seed": 1}),
    "never its own samples": Change({"own_shares": (0.0,)}),
    "shared mixture": Change(mdn_rnn={"shared_mixture": True}),
    "one component": Change(mdn_rnn={"mixtures": 1}),
    "tiles by squared error": Change(mdn_rnn={"tiles": "squared"}),
    "reward by squared error": Change(mdn_rnn={"tiles": "reward"}),
    "over-prediction x 5": Change({"asymmetry": 5.0}),
    "weights 1, 1, 1": Change({"tiles_weight": 1.0, "off_field_weight": 1.0}),
    "falls x 10": Change({"fall_weight": 10.0}),
    "dropout 0.05, dreamt with 0.1": Change(mdn_rnn={"dropout": 0.05}, dream={"dropout": 0.1}),
    "dropout 0.05, dreamt with 0": Change(fits=("dropout 0.05, dreamt with 0.1",)),
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
    begin_from: str | None = "carracing"  # world whose M is fitted on; None fits anew
    driver: str = "carracing"  # world of the same V in whose M the controller is at home
    controller: str = "carracing_controller"


def run(config: SweepConfig, memory: MemoryConfig, vision: VisionConfig, out: Path) -> list[dict]:
    """Compare the changes in `out/sweep`, and print their table; returns its rows.

    Raises:
        ValueError: an unknown change, or a driver of another V than the latents'.
    """
    for name in config.changes:
        if name not in CHANGES:
            known = ", ".join(map(repr, CHANGES))
            raise ValueError(f"no change is called {name!r}; expected some of {known}.")
    vae = load_vision(vision, out / "vision")
    folders = [out, *sorted(path.parent for path in out.glob("round-*/latents"))]
    latents = [shard for folder in folders for shard in open_latents(folder / "latents")]
    begin = load_world(config.begin_from).mdn_rnn if config.begin_from else None
    base, rows = replace(memory, steps=config.steps), []
    for name in config.changes:
        fits = CHANGES[name].fits or (name,)
        worlds = tuple(str(_world(fit, base, begin, vae, latents, out / "sweep")) for fit in fits)
        told = out / "sweep" / _slug(name) / "fidelity.json"
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
    table = Table(title="One change of M at a time", title_justify="left")
    for index, name in enumerate(rows[0]):
        table.add_column(name.replace("_", " "), justify="right" if index else "left")
    for row in rows:
        name, *figures = row.values()
        table.add_row(name, *("" if value is None else f"{value:.2f}" for value in figures))
    Console().print(table)


def changed(base: MemoryConfig, change: Change) -> MemoryConfig:
    """The base with a change; a number of steps below 1 is a share of the base's."""
    told = dict(change.memory)
    if told.get("steps", 1) < 1:
        told["steps"] = int(told["steps"] * base.steps)
    return replace(base, mdn_rnn=replace(base.mdn_rnn, **change.mdn_rnn), **told)


def begun_from(begin: MDNRNN, config: MDNRNNConfig, seed: int) -> MDNRNN:
    """An M of `config` with the gates of `begin`, and what of its heads means the same."""
    fresh = MDNRNN(config, key=jax.random.key(seed))
    heads = begin.head_weight, begin.head_bias
    if (begin.config.mixtures, begin.config.shared_mixture) != (
        config.mixtures,
        config.shared_mixture,
    ):
        heads = fresh.head_weight, fresh.head_bias
    elif begin.config.tiles != config.tiles:
        heads = heads[0].at[:, -2].set(fresh.head_weight[:, -2]), heads[1].at[-2].set(0.0)
    return eqx.tree_at(
        lambda m: (m.gate_weight, m.gate_bias, m.head_weight, m.head_bias),
        fresh,
        (begin.gate_weight, begin.gate_bias, *heads),
    )


def _world(
    name: str,
    base: MemoryConfig,
    begin: MDNRNN | None,
    vae: VAE,
    latents: list[LatentShard],
    out: Path,
) -> Path:
    folder, config = out / _slug(name), changed(base, CHANGES[name])
    path = folder / "world.safetensors"
    if not path.exists():
        begin_from = [begun_from(begin, config.mdn_rnn, config.seed)] if begin else []
        mdn_rnn, *_ = fit_memory(latents, config, folder / "memory", begin_from=begin_from)
        save_world(assemble_world(vae, mdn_rnn, latents, {"memory": asdict(config)}), path)
    return path


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name).split())
