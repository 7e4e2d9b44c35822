"""The table at the end of a run: what each stage made, in how long, and where it is."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.contender import Contender, best_of
from training.fit import FitConfig
from training.latents import two_sided
from training.presets import Preset
from wm_env.shard import Shard
from wm_env.storage import StorePath
from wm_env.task import Task

# What a stage writes only when it has something to do.
_MARKS = {
    "vision": ("vision/checkpoint.safetensors",),
    "latents": ("latents/*.safetensors",),
    "memory": ("memory/checkpoint.safetensors", "world*.safetensors"),
    "evolve": ("evolve/checkpoint.safetensors", "evolve/history.jsonl"),
    "loop": (
        "round-*/data/shard-*.zip",
        "round-*/latents/*.safetensors",
        "round-*/*/checkpoint.safetensors",
        "round-*/world*.safetensors",
        "round-*/report.json",
        "**/latents-round-*/*.safetensors",
    ),
    "evaluation": ("evaluation.json",),
}


def marks(stage: str, store: StorePath, out: Path) -> dict[str, tuple[float, int]]:
    """The files by which one sees whether a stage did anything: when written, and how large."""
    if stage == "collect":
        found = store.glob("shard-*.zip")
    else:
        found = (path for pattern in _MARKS[stage] for path in out.glob(pattern))
    return {str(path): (path.stat().st_mtime, path.stat().st_size) for path in found}


def print_summary(
    preset: Preset,
    out: Path,
    shards: Sequence[Shard],
    contenders: Sequence[Contender],
    spent: dict[str, str],
) -> None:
    """Print the table of a finished run, and the command that judges its best controller.

    `shards` are those of the run itself, `contenders` the run and its rounds; `spent` says of each
    stage how many seconds it took, or that it was kept.
    """
    first, *rounds = contenders
    best, evaluation = best_of(contenders), json.loads((out / "evaluation.json").read_text())
    frames = sum(shard.frames for shard in shards)
    mirrored = " and mirrored" if two_sided(preset.collect.task, preset.vision.vae) else ""
    made = {
        "collect": (_driven(shards), "data/"),
        "vision": (_fitted(preset.vision, out / "vision"), "vision/ vae.safetensors, 2 pictures"),
        "latents": (f"{frames:,} frames, plain{mirrored}", "latents/"),
        "memory": (
            _fitted(preset.memory, first.memory),
            "memory/ mdn_rnn.safetensors, pictures; world.safetensors",
        ),
        "evolve": (
            _evolved(first),
            "evolve/ controller.safetensors, evolution.png; score_over_time.png",
        ),
        "loop": (
            "\n".join(f"{one.folder.name}: {_evolved(one)}" for one in rounds) or "no rounds",
            "\n".join(f"{one.folder.name}/" for one in rounds),
        ),
        "evaluation": (_evaluated(best, out, evaluation, preset.collect.task), "evaluation.json"),
    }
    table = Table("stage", "made", "seconds", "files", box=box.SIMPLE_HEAD, title=escape(str(out)))
    for stage, (what, files) in made.items():
        table.add_row(stage, what, spent[stage], files)
    console = Console()
    console.print(table)
    console.print(
        "Seeds 0..99 choose controllers: none of these figures is of the tracks that judge. To "
        "drive those, once:\n"
        "python -m agents evaluate --episodes 100 "
        f"--world {best.world} --controller {best.controller}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _driven(shards: Sequence[Shard]) -> str:
    rows = [row for shard in shards for row in shard.episodes]
    drivers = ", ".join(f"{driver} {n}" for driver, n in Counter(r.driver for r in rows).items())
    frames = sum(shard.frames for shard in shards)
    return f"{len(rows):,} episodes ({drivers}), {frames:,} frames"


def _fitted(config: FitConfig, folder: Path) -> str:
    """The held-out figures of the weights that were kept: the best with patience, else the last."""
    if not (folder / "metrics.jsonl").exists():
        return "taken over"
    lines = _lines(folder / "metrics.jsonl")
    kept = lines[-1]
    if config.patience is not None:
        kept = min(lines, key=lambda line: line["held_out_loss"])
    held_out = {
        name.removeprefix("held_out_").replace("_", " "): value
        for name, value in kept.items()
        if name.startswith("held_out_")
    }
    figures = ", ".join(f"{name} {value:.4g}" for name, value in held_out.items())
    return f"step {kept['step']:,}, held out: {figures}"


def _evolved(contender: Contender) -> str:
    history = contender.history()
    real = max((line for line in history if "real_mean" in line), key=lambda one: one["real_mean"])
    dream = max(line["fixed_return"] for line in history)
    searched = "taken over" if real["generation"] == 0 else f"{len(history)} generations"
    return (
        f"{searched}, best dream {dream:.0f}, best validation "
        f"{real['real_mean']:.0f} ± {real['real_std']:.0f} on {real['real_episodes']} real tracks "
        f"(generation {real['generation']})"
    )


def _evaluated(best: Contender, out: Path, evaluation: dict[str, Any], task: Task) -> str:
    seeds, ci95 = evaluation["seeds"], evaluation["ci95"]
    spread = "" if ci95 is None else f" (95 % of the mean ± {ci95:.1f})"
    laps = f"{sum(evaluation['laps_finished'])} of {len(seeds)} laps"
    if not task.pays_tiles:
        laps = f"{sum(evaluation['off_field'])} of {len(seeds)} terminated"
    return (
        f"controller of {'evolve' if best.folder == out else best.folder.name}: "
        f"{evaluation['mean']:.1f} ± {evaluation['std']:.1f}{spread}, "
        f"{laps}; real tracks of "
        f"{evaluation['backend']}, seeds {seeds[0]}..{seeds[-1]}, at most "
        f"{evaluation['max_steps']:,} frames"
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
