"""`python -m agents record`: real episodes as films, filmstrips, telemetry, and M's mistakes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.controllers import load_controller_policy
from agents.film import Expect, make_film, write_filmstrip, write_gif, write_mp4
from agents.moments import Watched, write_moments
from agents.recording import Syncing, record
from agents.telemetry import write_telemetry
from wm_env.rollouts import Policy
from wm_env.storage import write_atomically
from wm_env.task import CAR_RACING
from wm_env.weights import world_for
from wm_env.world_model import WorldModel


@dataclass(frozen=True)
class RecordConfig:
    """Drive real tracks with a controller, and show beside each what the dream expected.

    For each seed: a film (mp4) and a filmstrip (png) of the real road, its reconstruction and what
    the dream expected; telemetry (npz: z, h, action, predicted and real tiles and reward,
    surprise); and a page (moments.png) of the moments at which M was wrong. episodes.json lists the
    episodes and counts those moments. Films show the road that M dreams on alone, looking up every
    five seconds (--alone); with --expect next what it expects one step ahead.
    """

    out: Path = Path("out/record")
    episodes: int = 1
    first_seed: int = 0
    world: str = "carracing_motion"  # file or shipped name
    controller: str = "carracing_motion_controller"  # file or shipped name
    expect: Expect = "dream"
    alone: int = Syncing.every  # frames until a film's dream looks at the road again
    gif: bool = False
    steps: int = 1000  # frames of an episode at most, as CarRacing-v3


@dataclass(frozen=True)
class EpisodeFiles:
    """A recorded episode in figures, and the files that show it.

    The expected figures are sums of what M expected one step ahead, on the real road.
    """

    seed: int
    ret: float
    expected_return: float
    tiles: int
    expected_tiles: float
    length: int
    end: str
    surprises: int
    delusions: int
    files: tuple[Path, ...]


def run(config: RecordConfig) -> list[Path]:
    """Record the tracks of seeds `first_seed`, `first_seed + 1`, …; returns the files written.

    Stopped in between, it leaves whole files, and a list of the episodes that are done.

    Raises:
        ValueError: fewer than one episode or step, a seed that is none, or `out` is a file.
        WeightsError: the world or the controller cannot be loaded, or they do not fit.
    """
    _check(config)
    world = world_for(CAR_RACING, config.world)
    features = world.latent_size + world.hidden_size
    policy, controller, _ = load_controller_policy(
        config.controller, features=features, task=CAR_RACING
    )
    told = config.out / "episodes.json"
    episodes: list[EpisodeFiles] = []
    try:
        for seed in range(config.first_seed, config.first_seed + config.episodes):
            episode = record_episode(
                policy,
                controller,
                world,
                seed=seed,
                out=config.out,
                steps=config.steps,
                expect=config.expect,
                syncing=Syncing(every=config.alone),
                gif=config.gif,
            )
            episodes.append(episode)
            write_atomically(told, _as_json(episodes, config))
    finally:
        if episodes:
            print(summary(episodes))
    files = [path for episode in episodes for path in episode.files] + [told]
    print("written:", *files, sep="\n  ")
    return files


def record_episode(
    policy: Policy,
    policy_params: Any,
    world: WorldModel,
    *,
    seed: int,
    out: Path,
    steps: int = 1000,
    expect: Expect = "dream",
    syncing: Syncing = Syncing(),  # noqa: B008, frozen
    gif: bool = False,
    progress: bool = True,
) -> EpisodeFiles:
    """Drive the real track of `seed` and write `seed-NNNN` mp4, png, npz and moments.png in `out`.

    `policy` sees the features [z, h], as in `wm_env.evaluation.evaluate`.
    """
    recording = record(policy, policy_params, world, seed=seed, max_steps=steps, progress=progress)
    film = make_film(world, recording, expect=expect, syncing=syncing, seed=seed)
    watched = Watched(
        f"track {seed}", recording.images, recording.z, recording.tiles, film.foresight
    )
    ends = (".mp4", ".png", ".npz", "-moments.png") + (".gif",) * gif
    files = tuple(out / f"seed-{seed:04d}{end}" for end in ends)
    moments = write_moments(world, watched, files[3])
    write_telemetry(recording, film.foresight, moments, files[2])
    write_filmstrip(film, files[1])
    write_mp4(film, files[0], progress=progress)
    if gif:
        write_gif(film, files[4])
    return EpisodeFiles(
        seed=seed,
        ret=recording.ret,
        expected_return=float(film.expected_rewards.sum()),
        tiles=int(recording.tiles.sum()),
        expected_tiles=float(film.foresight.tiles.sum()),
        length=recording.length,
        end=recording.end,
        surprises=len(moments.surprising),
        delusions=len(moments.deluded),
        files=files,
    )


def summary(episodes: Sequence[EpisodeFiles]) -> str:
    """A table of the episodes, the worst first, and their totals."""
    head = "seed,return,expected,tiles,expected,frames,end,surprises,delusions"
    rows: list[list[str]] = [[*head.split(",")]]
    for one in sorted(episodes, key=lambda one: one.ret):
        real = f"{one.seed}", f"{one.ret:.1f}", f"{one.expected_return:.1f}", f"{one.tiles}"
        then = f"{one.expected_tiles:.1f}", f"{one.length}", one.end
        rows.append([*real, *then, f"{one.surprises}", f"{one.delusions}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
    count, mean = len(episodes), np.mean([one.ret for one in episodes])
    totals = f"{sum(one.surprises for one in episodes)} surprises, "
    totals += f"{sum(one.delusions for one in episodes)} delusions"
    return "\n".join([*lines, f"{count} recorded: return {mean:.1f} on average; {totals}"])


def _as_json(episodes: Sequence[EpisodeFiles], config: RecordConfig) -> bytes:
    rows = [{**asdict(one), "files": [path.name for path in one.files]} for one in episodes]
    told = {
        "world": config.world,
        "controller": config.controller,
        "surprises": sum(one.surprises for one in episodes),
        "delusions": sum(one.delusions for one in episodes),
        "episodes": rows,
    }
    return (json.dumps(told, indent=1) + "\n").encode()


def _check(config: RecordConfig) -> None:
    for name in ("episodes", "steps", "alone"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more.")
    if not 0 <= config.first_seed <= 2**31 - config.episodes:
        raise ValueError(
            f"first_seed is {config.first_seed} with {config.episodes} episodes; expected seeds "
            "from 0 to 2**31 - 1, such as 0 to 99."
        )
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"out is {config.out}, a file; name a folder, new or old.")
