"""`python -m agents demo`: the shipped controller in its dream and on real tracks, in pictures."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from agents.film import make_film, write_filmstrip, write_gif, write_mp4
from agents.linear import LinearController, linear_policy, load_linear
from agents.recording import FPS, record
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.evaluation import evaluate
from wm_env.machine import device_name
from wm_env.progress import progress_bar
from wm_env.rollouts import Rollout, rollout
from wm_env.storage import write_atomically
from wm_env.task import CAR_RACING
from wm_env.weights import world_for
from wm_env.world_model import WorldModel

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


@dataclass(frozen=True)
class DemoConfig:
    """Drive a batch of dreams and some real tracks with one controller, and film what happens.

    Real tracks are those of the seeds from 0 on: 1000..1099 are kept for judging controllers.
    """

    out: Path = Path("out")
    real_episodes: int = 3
    world: str = "carracing_motion"  # file or shipped name
    controller: str = "carracing_motion_controller"  # file or shipped name
    dreams: int = 256
    seed: int = 0  # of the dreams
    steps: int = 1000  # frames of an episode at most, as CarRacing-v3


@dataclass(frozen=True)
class Drives:
    """How the episodes of one world went."""

    where: str
    returns: np.ndarray
    lengths: np.ndarray
    laps: int


def run(config: DemoConfig) -> list[Path]:
    """Run the demonstration; returns the files that it wrote.

    Raises:
        ValueError: a number of dreams, episodes or steps below one.
        WeightsError: the world or the controller cannot be loaded, or they do not fit.
    """
    _check(config)
    begin = time.monotonic()
    world = world_for(CAR_RACING, config.world)
    features = world.latent_size + world.hidden_size
    controller, _ = load_linear(config.controller, features=features, task=CAR_RACING)
    print(f"device: {device_name()}")
    dream, rate = drive_dreams(world, controller, config)
    print(f"dream: {rate:,.0f} steps/s, {config.dreams} dreams of {config.steps} frames at once")
    real = drive_real(world, controller, config)
    print_table([dream, real])
    files = film(world, controller, config)
    plot = config.out / "returns.png"
    plot_returns(dream, real, plot)
    files.append(plot)
    print("written:", *files, sep="\n  ")
    print(f"done in {time.monotonic() - begin:.0f} s")
    return files


def drive_dreams(
    world: WorldModel, controller: LinearController, config: DemoConfig
) -> tuple[Drives, float]:
    """Drive `config.dreams` dreams at once; also returns dream steps/s without the compilation."""
    env = DreamCarRacing()
    params = DreamParams(world_model=world, max_steps_in_episode=config.steps)
    keys = jax.random.split(jax.random.key(config.seed), config.dreams)

    @jax.jit
    def drive(params: DreamParams, controller: LinearController, keys: jax.Array) -> Rollout:
        return jax.vmap(
            lambda key: rollout(env, params, linear_policy, controller, key, steps=config.steps)
        )(keys)

    with progress_bar("dreaming", total=config.dreams, unit="episodes") as bar:
        bar.advance(0, note="compiling")
        compiled = drive.lower(params, controller, keys).compile()
        bar.advance(0, note="")
        begin = time.perf_counter()
        dreams = jax.block_until_ready(compiled(params, controller, keys))
        seconds = time.perf_counter() - begin
        bar.advance(config.dreams)
    drives = Drives(
        where="dream",
        returns=np.asarray(dreams.ret),
        lengths=np.asarray(dreams.length),
        laps=int(dreams.lap_finished.sum()),
    )
    return drives, config.dreams * config.steps / seconds


def drive_real(world: WorldModel, controller: LinearController, config: DemoConfig) -> Drives:
    """Drive Gymnasium's CarRacing-v3 on the tracks of seeds 0, 1, …, a process a core."""
    real = evaluate(
        linear_policy,
        controller,
        env="real",
        seeds=range(config.real_episodes),
        world_model=world,
        max_episode_steps=config.steps,
    )
    return Drives(
        where="real CarRacing-v3",
        returns=np.asarray(real.returns),
        lengths=np.asarray(real.lengths),
        laps=int(np.sum(real.laps_finished)),
    )


def film(world: WorldModel, controller: LinearController, config: DemoConfig) -> list[Path]:
    """Drive the track of seed 0 once more with a camera: MP4, GIF and filmstrip."""
    recording = record(linear_policy, controller, world, seed=0, max_steps=config.steps)
    print(f"filmed: the track of seed 0, return {recording.ret:.0f}")
    views = make_film(world, recording, seed=config.seed)
    paths = [config.out / name for name in ("drive.mp4", "drive.gif", "filmstrip.png")]
    write_mp4(views, paths[0])
    write_gif(views, paths[1])
    write_filmstrip(views, paths[2])
    return paths


def print_table(drives: Sequence[Drives]) -> None:
    """Returns and laps of each world, on stdout."""
    table = Table(title="returns of an episode", title_justify="left")
    table.add_column("world")
    for column in ("episodes", "mean", "std", "min", "max", "laps", "mean frames"):
        table.add_column(column, justify="right")
    for row in drives:
        returns = row.returns
        figures = (returns.mean(), returns.std(), returns.min(), returns.max())
        table.add_row(
            row.where,
            str(len(returns)),
            *(f"{figure:.0f}" for figure in figures),
            str(row.laps),
            f"{row.lengths.mean():.0f}",
        )
    Console().print(table)


def plot_returns(dream: Drives, real: Drives, path: Path) -> None:
    """The dream's returns as a histogram, each real one as a point, means as lines; a PNG."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    both = np.concatenate([dream.returns, real.returns])
    low, high = both.min(), both.max()
    margin = max(10.0, 0.05 * (high - low))
    bars = axes.hist(
        dream.returns,
        bins=np.linspace(low - margin, high + margin, 41),
        color="tab:blue",
        alpha=0.55,
        label=_summary(dream),
    )
    most = np.max(bars[0])
    heights = np.full(len(real.returns), 0.06 * most)
    axes.plot(
        real.returns,
        heights,
        "o",
        color="tab:orange",
        markeredgecolor="black",
        markersize=9,
        label=_summary(real),
    )
    axes.axvline(dream.returns.mean(), color="tab:blue", linestyle="--", linewidth=1.5)
    axes.axvline(real.returns.mean(), color="tab:orange", linestyle="--", linewidth=1.5)
    axes.set(
        xlabel=f"return of an episode (at most {max(dream.lengths.max(), real.lengths.max())} "
        f"frames, {FPS} a second)",
        ylabel="dreams",
        title="One controller, in the dream it was evolved in and on real tracks",
        ylim=(0, 1.3 * most),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", framealpha=0.9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def _summary(drives: Drives) -> str:
    returns = drives.returns
    spread = f"mean {returns.mean():.0f}, standard deviation {returns.std():.0f}"
    return f"{drives.where}: {len(returns)} episodes, {spread}"


def _check(config: DemoConfig) -> None:
    for name in ("real_episodes", "dreams", "steps"):
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more.")
