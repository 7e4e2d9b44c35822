"""Moments of an episode at which M was wrong: what it did not expect, what it promised in vain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array
from numpy.lib.stride_tricks import sliding_window_view

from agents.recording import FPS, decode
from agents.sheet import Block, Strip, write_sheet
from wm_env.foresight import Foresight
from wm_env.world_model import WorldModel

UNUSUAL = 0.5  # nats a dimension of z above the episode's median, from which a step is a surprise
LEAST = 0.5  # tiles promised in vain, from which there is a delusion
AROUND = 10  # steps before and after a moment over which tiles are summed
SLACK = 10  # steps by which a tile may come earlier or later than foretold without a delusion
APART = 25  # steps between two moments, or one event would be counted again and again


@dataclass(frozen=True)
class Watched:
    """An episode of T steps as V and M saw it, M being fed every real frame (teacher-forced).

    images uint8 [T + 1, 64, 64, 3], z [T + 1, z], tiles hit in each step [T].
    """

    name: str
    images: np.ndarray
    z: np.ndarray
    tiles: np.ndarray
    foresight: Foresight


@dataclass(frozen=True)
class Moments:
    """The steps at which M was wrong, the worst first; all of them, so that they can be counted.

    nats [T] is each step's surprise, -log p of the real next latent (a density: it may be
    negative). promised [T] are the tiles from AROUND steps before it to AROUND after, given [T] the
    most that came in as many steps, SLACK or fewer earlier or later.
    """

    surprising: list[int]
    deluded: list[int]
    nats: np.ndarray
    promised: np.ndarray
    given: np.ndarray


def find_moments(foresight: Foresight, tiles: np.ndarray) -> Moments:
    """The moments of an episode of T steps that hit `tiles` [T].

    A surprise lies UNUSUAL nats a latent dimension above the episode's median: worlds differ in
    what is usual. A delusion promised LEAST tiles more than came, early or late ones included.
    """
    nats = np.asarray(foresight.surprise)
    promised, given = around(foresight.tiles), most_nearby(around(tiles))
    return Moments(
        surprising=peaks(nats, least=float(np.median(nats)) + UNUSUAL * foresight.z.shape[1]),
        deluded=peaks(promised - given, least=LEAST),
        nats=nats,
        promised=promised,
        given=given,
    )


def around(values: Array | np.ndarray) -> np.ndarray:
    """The sum over the AROUND steps before and after each step and itself, [T] of [T]."""
    padded = np.pad(np.asarray(values, np.float64), AROUND)
    return np.convolve(padded, np.ones(2 * AROUND + 1), "valid")


def most_nearby(values: np.ndarray) -> np.ndarray:
    """The largest of the values, none negative, at most SLACK steps from each, [T] of [T]."""
    return sliding_window_view(np.pad(values, SLACK), 2 * SLACK + 1).max(axis=1)


def peaks(values: np.ndarray, *, least: float) -> list[int]:
    """The steps of the largest values from `least` on, APART or more from each other."""
    chosen: list[int] = []
    for step in np.argsort(-values, kind="stable").tolist():
        if values[step] < least:
            break
        if all(abs(step - other) >= APART for other in chosen):
            chosen.append(step)
    return chosen


def write_moments(world: WorldModel, watched: Watched, path: Path, *, count: int = 10) -> Moments:
    """Draw the `count` most surprising and most deluded moments, a column each, and return all.

    Above one another: the real frame and what V keeps of it, what M expected to see, and the real
    frames shortly before and after.
    """
    moments = find_moments(watched.foresight, watched.tiles)
    nats, promised, given = moments.nats, moments.promised, moments.given
    surprises = (
        f"{_told(moments.surprising, count, 'surprise')}: -log p of the real next latent is "
        f"{UNUSUAL:g} nats a dimension or more above the median ({np.median(nats):.0f} nats)"
    )
    delusions = (
        f"{_told(moments.deluded, count, 'delusion')}: {LEAST:g} tiles or more promised in vain, "
        f"from {AROUND} steps before to {AROUND} after (given: the most in as many steps, up to "
        f"{SLACK} earlier or later)"
    )
    surprising, deluded = moments.surprising[:count], moments.deluded[:count]
    captions = {step: f"{nats[step]:.0f} nats" for step in surprising}
    promises = {
        step: f"promised {promised[step]:.1f}\ngiven {given[step]:.0f}\n{nats[step]:.0f} nats"
        for step in deluded
    }
    write_sheet(
        path,
        f"Where M was wrong: {watched.name}, {len(watched.tiles)} steps\n"
        "M saw every real frame up to the step before (teacher-forced); 'expected' is the mean of "
        "what it then expected to see.\n"
        "The difference is 4 x (expected - reconstruction) about grey; step t leads from frame t "
        "to the frame shown, t + 1."
        + ("" if surprising else "\nNothing surprised it.")
        + ("" if deluded else "\nIt promised no tiles in vain."),
        [
            _block(world, watched, title, told)
            for title, told in ((surprises, captions), (delusions, promises))
            if told
        ],
    )
    return moments


def _told(steps: Sequence[int], count: int, name: str) -> str:
    """How many there are, and whether all are shown."""
    shown = f", the {count} largest" if len(steps) > count else ""
    return f"{len(steps)} {name}{'s' * (len(steps) != 1)}{shown}"


def _block(world: WorldModel, watched: Watched, title: str, captions: dict[int, str]) -> Block:
    steps = np.array(list(captions))
    seen = decode(world, watched.z[steps + 1], batch=16)
    expected = decode(world, np.asarray(watched.foresight.z)[steps], batch=16)
    difference = np.clip(128 + 4.0 * (expected.astype(np.float32) - seen), 0, 255)
    seconds = f"{AROUND / FPS:.1f} s"
    return Block(
        title,
        [f"step {step} ({step / FPS:.1f} s)\n{caption}" for step, caption in captions.items()],
        [
            Strip(f"real, {seconds} before", _frames(watched.images, steps + 1 - AROUND)),
            Strip("real", watched.images[steps + 1]),
            Strip("reconstruction", seen),
            Strip("expected", expected),
            Strip("difference", difference.astype(np.uint8)),
            Strip(f"real, {seconds} after", _frames(watched.images, steps + 1 + AROUND)),
        ],
    )


def _frames(images: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The images at those frames; white where the episode has not begun or is over."""
    shown = images[at.clip(0, len(images) - 1)]
    shown[(at < 0) | (at >= len(images))] = 255
    return shown
