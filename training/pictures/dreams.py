"""A sheet of dreams beside the real film: what M makes of the road when it no longer sees it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.recording import FPS, decode
from agents.sheet import Block, Strip, write_sheet
from training.pictures.foretelling import dream, foretell
from training.pictures.held_out import Drive
from wm_env.foresight import Foresight
from wm_env.world_model import WorldModel

WATCH = 50  # frames that M sees before it dreams: a second
HORIZONS = (1, 2, 5, 10, 20, 50, 100, 200)  # steps that it has been alone


def open_loop_dreams(world: WorldModel, drives: Sequence[Drive], path: Path) -> None:
    """Five rows a drive: real, reconstructed, foretold a step before, dreamt at tau 0 and 1.

    The dreams begin in the middle of the drive and are given the real actions.
    """
    foretold = foretell(world, [drive.episode for drive in drives])
    write_sheet(
        path,
        "Open-loop dreams beside the real film\n"
        f"In amber, M watches the real frames (burn-in of at most {WATCH} steps). Then it sees "
        "none and dreams on, given the real actions; the columns are steps since.\n"
        "'foretold': M's mean prediction of this very frame from the real frames before it, which "
        "it does see (teacher-forced). 'dreamt': at temperature tau.\n"
        "The number is the squared error to the real image, summed over pixels and colours of "
        "intensities in [0, 1].",
        [_block(world, drive, one) for drive, one in zip(drives, foretold, strict=True)],
    )


def dream_window(length: int) -> tuple[int, int]:
    """The first frame that M watches, and how many, so that its dream lies amid `length` steps."""
    watch = min(WATCH, length // 2)
    return max(0, (length - watch - HORIZONS[-1]) // 2), watch


def _block(world: WorldModel, drive: Drive, foretold: Foresight) -> Block:
    row = drive.episode.row
    begin, watch = dream_window(row.length)
    horizons = [horizon for horizon in HORIZONS if begin + watch + horizon <= row.length]
    ages = np.array([-(watch // 2), 0, *horizons])
    frames = begin + watch + ages
    real = drive.images[frames]
    dreamt = dream(
        world,
        drive.episode,
        begin=begin,
        watch=watch,
        steps=HORIZONS[-1],
        temperatures=(0.0, 1.0),
    ).z[:, watch + ages]
    rows = {
        "reconstruction": drive.episode.mu[frames],
        "foretold\na step before": foretold.z[np.maximum(frames - 1, 0)],
        "dreamt, tau 0": dreamt[0],
        "dreamt, tau 1": dreamt[1],
    }
    strips = [Strip("real", real)]
    for label, z in rows.items():
        images = decode(world, z, batch=16)
        notes = [f"{error:.0f}" for error in squared_errors(real, images)]
        strips.append(Strip(label, images, notes))
    return Block(
        f"{row.driver}, track {row.seed}: M dreams from frame {begin + watch} of {row.length} on",
        [
            f"{age:+d}\n" + (f"{age / FPS:.2f} s" if age > 0 else "watching")
            for age in ages.tolist()
        ],
        strips,
        marked=2,
    )


def squared_errors(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of uint8 images [n, h, w, 3], summed to [n] over pixels and colours, in [0, 1] each."""
    difference = (one.astype(np.float32) - other.astype(np.float32)) / 255.0
    return np.sum(difference**2, axis=(1, 2, 3))
