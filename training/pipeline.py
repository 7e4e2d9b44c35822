"""The stages from nothing to a controller, each in a folder of one output, skipped when done.

data/       shards of real driving            (collect)
vision/     V, metrics, pictures              (vision)
latents/    the data seen by V                (latents)
memory/     M, metrics, pictures              (memory)
world.safetensors                             (memory)
evolve/     controllers, history, figure      (evolve)
round-NN/   data, world, report of a round    (loop)
evaluation.json                               (evaluation)
times.jsonl                                   (each)
score_over_time.png                           (evolve, loop)

Of several processes the first alone writes, and the others share its fits.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from training.begin import take_controller, take_memory, take_vision
from training.contender import Contender, best_of, evaluate_contender
from training.devices import is_first, wait_for_all
from training.latents import open_latents
from training.loop import run_loop
from training.presets import Preset
from training.run import Run
from training.summary import marks, print_summary
from training.timeline import Timeline, draw_score
from training.vision import fit_vision


def run_collect(preset: Preset, out: Path) -> None:
    """Fill `data/`."""
    run = Run(preset, out)
    run.collect(run.store, preset.collect)


def run_vision(preset: Preset, out: Path) -> None:
    """Fit V on `data/`, or take over that of the world that the run begins from."""
    if preset.begin.world:
        _take(take_vision, preset, out)
        return
    # Not what rounds of the loop added: a second run must find the data of the first.
    fit_vision(Run(preset, out).shards(), preset.vision, out / "vision")


def run_latents(preset: Preset, out: Path) -> None:
    """Encode `data/` and what the rounds of the loop added, as each V sees it."""
    Run(preset, out).encode_all()


def run_memory(preset: Preset, out: Path) -> None:
    """Fit M on `latents/` and write the world, or take that over."""
    if preset.begin.world:
        _take(take_memory, preset, out)
        return
    run, latents = Run(preset, out), open_latents(out / "latents")
    run.fit_world(out, out / "vision", run.shards(), latents, preset.memory)


def run_evolve(preset: Preset, out: Path) -> None:
    """Evolve a controller in the dream of `world.safetensors`, or take over one."""
    if preset.begin.world:
        _take(take_controller, preset, out)
        return
    evolving = replace(preset.evolve, world=str(Contender(out).world), out=out / "evolve")
    Run(preset, out).evolve(evolving)


def run_evaluation(preset: Preset, out: Path) -> None:
    """Drive the best controller on real tracks that chose none, and write `evaluation.json`."""
    if is_first():
        best = best_of(Run(preset, out).contenders())
        seeds, steps = preset.evaluation_seeds(), preset.evaluation.max_steps
        evaluate_contender(best, seeds=seeds, max_steps=steps, path=out / "evaluation.json")
    wait_for_all("the evaluation is written")


STAGES: dict[str, Callable[[Preset, Path], None]] = {
    "collect": run_collect,
    "vision": run_vision,
    "latents": run_latents,
    "memory": run_memory,
    "evolve": run_evolve,
    "loop": run_loop,
    "evaluation": run_evaluation,
}


def run_stage(stage: str, preset: Preset, out: Path) -> None:
    """Run one of `STAGES`, and note when it was at work.

    Raises:
        ValueError: what the preset asks for cannot be, of whatever stage.
        StoreError: something that the stage needs is not there, or of another run.
    """
    preset.check()
    elsewhere = stage == "collect" and preset.store is not None  # what other runs may share
    noted = is_first() and not elsewhere
    with Timeline(out).stage(stage) if noted else nullcontext():
        STAGES[stage](preset, out)
    if is_first() and stage in ("evolve", "loop"):
        draw_score(out, Run(preset, out).contenders(), out / "score_over_time.png")


def run_all(preset: Preset, out: Path) -> None:
    """Every stage in order; what is done is kept. At the end a table says what there is."""
    run, spent = Run(preset, out), {}
    for stage in STAGES:
        before, since = marks(stage, run.store, out), time.monotonic()
        run_stage(stage, preset, out)
        kept = marks(stage, run.store, out) == before
        spent[stage] = "kept" if kept else f"{time.monotonic() - since:.1f}"
    if is_first():
        print_summary(preset, out, run.shards(), run.contenders(), spent)


def _take(take: Callable[[Preset, Path], None], preset: Preset, out: Path) -> None:
    if is_first():
        take(preset, out)
    wait_for_all("what the run begins from is there")
