"""The debug grid: moments that surprised M, and moments of which it promised too much."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array

from agents.recording import FPS, decode
from training.pictures.foretelling import foretell
from training.pictures.held_out import Drive
from training.pictures.sheet import Block, Strip, write_sheet
from wm_env.foresight import Foresight
from wm_env.world_model import WorldModel

AROUND = 10  # steps before and after: a tile foretold a little early or late is no delusion
LEAST = 0.5  # tiles promised in vain, below which there is no delusion
APART = 25  # steps between two moments, or one event would fill the grid


def debug_grid(world: WorldModel, drive: Drive, path: Path, *, count: int = 10) -> None:
    """The frames that M thought least likely, and those where it promised tiles in vain.

    Above one another: the real frame, what V keeps of it, and what M expected to see.
    """
    (foretold,) = foretell(world, [drive.episode])
    row = drive.episode.row
    promised, given = around(foretold.tiles), around(drive.episode.tiles)
    surprising = peaks(foretold.surprise, count)
    deluded = peaks(promised - given, count, above=LEAST)
    nats = [f"{foretold.surprise[step]:.0f} nats" for step in surprising]
    tiles = [f"promised {promised[step]:.1f}\ngiven {given[step]:.0f}" for step in deluded]
    surprises = (
        "Top surprises: the largest -log p of the real next latent (a density: it may be negative; "
        f"median {np.median(foretold.surprise):.0f} nats)"
    )
    delusions = (
        f"Top delusions: most tiles promised in vain, {LEAST} and more, from {AROUND} steps before "
        f"to {AROUND} after"
    )
    write_sheet(
        path,
        f"Where M was wrong: {row.driver}, track {row.seed}, {row.length} steps\n"
        "M saw every real frame up to the step before (teacher-forced); 'expected' is the mean of "
        "what it then expected to see.\n"
        "The last row shows 4 x (expected - reconstruction) about grey; step t leads from frame t "
        "to the frame shown, t + 1." + ("" if deluded else "\nNo tiles were promised in vain."),
        [
            _block(world, drive, foretold, *found)
            for found in ((surprises, surprising, nats), (delusions, deluded, tiles))
            if found[1]
        ],
    )


def around(values: Array | np.ndarray) -> np.ndarray:
    """The sum over the AROUND steps before and after each step and itself, [T] of [T]."""
    return np.convolve(np.pad(values.astype(np.float64), AROUND), np.ones(2 * AROUND + 1), "valid")


def peaks(values: Array | np.ndarray, count: int, *, above: float = -np.inf) -> list[int]:
    """The steps of the `count` largest values `above` a bound, APART or more from each other."""
    chosen: list[int] = []
    for step in np.argsort(-values, kind="stable").tolist():
        if values[step] <= above or len(chosen) == count:
            break
        if all(abs(step - other) >= APART for other in chosen):
            chosen.append(step)
    return chosen


def _block(
    world: WorldModel,
    drive: Drive,
    foretold: Foresight,
    title: str,
    steps: list[int],
    values: Sequence[str],
) -> Block:
    after = np.array(steps) + 1
    seen = decode(world, drive.episode.mu[after], batch=16)
    expected = decode(world, foretold.z[after - 1], batch=16)
    difference = np.clip(128 + 4.0 * (expected.astype(np.float32) - seen), 0, 255)
    return Block(
        title,
        [
            f"step {step} ({step / FPS:.1f} s)\n{value}"
            for step, value in zip(steps, values, strict=True)
        ],
        [
            Strip("real", drive.images[after]),
            Strip("reconstruction", seen),
            Strip("expected", expected),
            Strip("difference", difference.astype(np.uint8)),
        ],
    )
