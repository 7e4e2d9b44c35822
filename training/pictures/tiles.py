"""Tiles along an episode: those that the real car hit, and those that M expects."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents.sheet import AMBER, write_figure
from training.latents import EpisodeLatents
from training.pictures.foretelling import Dreams, dream, foretell
from wm_env.foresight import Foresight
from wm_env.task import Task
from wm_env.world_model import WorldModel

WATCH = 50  # frames that M sees before each dream: a second
ALONE = 250  # steps of each dream: five seconds
DREAMS = 8


@dataclass(frozen=True)
class Tiles:
    """Tiles hit or expected before each frame of an episode, [T + 1], and dreams on the way.

    A dream is its first frame and the tiles [dreams, n + 1] from there on, beginning with the real
    number.
    """

    real: np.ndarray
    foretold: np.ndarray
    dreamt: list[tuple[int, np.ndarray]]


def tiles_along(world: WorldModel, episodes: Sequence[EpisodeLatents], path: Path) -> None:
    """A panel an episode: tiles so far, real, foretold step by step, and dreamt.

    Of a task without tiles it is the return so far, in the task's unit.
    """
    unit = world.task.reward_unit
    what = "Tiles of the track hit" if unit is None else f"Return in units of {unit:g}"
    figure = Figure((11.0, 1.8 + 2.9 * len(episodes)), layout="constrained")
    figure.suptitle(
        f"{what} so far: the real {'car' if unit is None else 'one'}, and what M expects of the "
        "same actions",
        fontsize=14,
        weight="bold",
    )
    axes = figure.subplots(len(episodes), squeeze=False)[:, 0]
    foretold = foretell(world, episodes)
    for axis, episode, one in zip(axes, episodes, foretold, strict=True):
        tiles = count_tiles(episode, one, dreams_on_the_way(world, episode))
        _draw(axis, episode, tiles, world.task)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=10)
    axes[-1].set_xlabel("step of the episode (50 a second)")
    write_figure(figure, path)


def dreams_on_the_way(world: WorldModel, episode: EpisodeLatents) -> list[Dreams]:
    """Dreams at temperature 1, one set after the other, each after a second of watching."""
    length = len(episode.actions)
    watch = min(WATCH, length // 2)
    return [
        dream(world, episode, begin=begin, watch=watch, steps=ALONE, temperatures=(1.0,) * DREAMS)
        for begin in range(0, length - watch, ALONE)
    ]


def count_tiles(episode: EpisodeLatents, foretold: Foresight, dreams: Sequence[Dreams]) -> Tiles:
    """The running sums of tiles; those of a dream go on from the real one."""
    real = _running(episode.tiles)
    dreamt = []
    for one in dreams:
        dreamt.append((one.alone, real[one.alone] + _running(one.tiles)))
    return Tiles(real, _running(foretold.tiles), dreamt)


def _running(tiles: Array | np.ndarray) -> np.ndarray:
    """The sum before each frame [..., T + 1] of what each step gives [..., T]."""
    sums = np.cumsum(tiles, axis=-1, dtype=np.float64)
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def _draw(axis: Axes, episode: EpisodeLatents, tiles: Tiles, task: Task) -> None:
    axis.plot(tiles.real, color="black", lw=2, label="real")
    axis.plot(
        tiles.foretold, color="tab:blue", label="foretold: M sees every real frame (teacher-forced)"
    )
    for index, (begin, dreamt) in enumerate(tiles.dreamt):
        steps = begin + np.arange(dreamt.shape[1])
        label = (
            f"dreamt: M sees no frame for {ALONE} steps, then starts anew at the dot (open loop, "
            f"tau 1; mean and range of {DREAMS})"
        )
        axis.plot(steps, dreamt.mean(axis=0), color=AMBER, label=None if index else label)
        axis.fill_between(steps, dreamt.min(axis=0), dreamt.max(axis=0), color=AMBER, alpha=0.2)
        axis.plot(begin, dreamt[0, 0], "o", color=AMBER, ms=5)
    row, plain = episode.row, not task.pays_tiles
    ended = "terminated" if plain else "left the field"
    axis.set_title(
        f"{row.driver}, track {row.seed}: {tiles.real[-1]:.0f}{'' if plain else ' tiles'} real, "
        f"{tiles.foretold[-1]:.0f} foretold"
        + (f"; {ended} in step {row.length}" if row.off_field else ""),
        loc="left",
        fontsize=11,
    )
    axis.set_ylabel("return so far" if plain else "tiles so far")
    axis.grid(alpha=0.3)
