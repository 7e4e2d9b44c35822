"""`python -m agents record`: real episodes as films, filmstrips and telemetry."""

from dataclasses import dataclass
from pathlib import Path

from agents.film import make_film, write_filmstrip, write_gif, write_mp4
from agents.linear import linear_policy, load_linear
from agents.recording import Recording, record, write_telemetry
from wm_env.foresight import foresee
from wm_env.weights import load_world


@dataclass(frozen=True)
class RecordConfig:
    """Drive real tracks with a controller; a film, a filmstrip and a telemetry file for each.

    The telemetry (npz) holds z, h, action, reward, real and predicted tiles, and M's surprise.
    """

    out: Path = Path("out/record")
    episodes: int = 1
    first_seed: int = 0
    world: str = "carracing"  # file or shipped name
    controller: str = "carracing_controller"  # file or shipped name
    gif: bool = False
    steps: int = 1000  # frames of an episode at most, as CarRacing-v3


def run(config: RecordConfig) -> list[Path]:
    """Record the tracks of seeds `first_seed`, `first_seed + 1`, …; returns the files written.

    Raises:
        ValueError: fewer than one episode or step.
        WeightsError: the world or the controller cannot be loaded, or they do not fit.
    """
    for name in ("episodes", "steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more.")
    world = load_world(config.world)
    features = world.latent_size + world.hidden_size
    controller, _ = load_linear(config.controller, features=features)
    files = []
    for seed in range(config.first_seed, config.first_seed + config.episodes):
        recording = record(linear_policy, controller, world, seed=seed, max_steps=config.steps)
        foresight = foresee(world, recording.z, recording.actions)
        film = make_film(world, recording, seed=seed)
        stem = config.out / f"seed-{seed:04d}"
        write_mp4(film, stem.with_suffix(".mp4"))
        write_filmstrip(film, stem.with_suffix(".png"))
        write_telemetry(recording, foresight, stem.with_suffix(".npz"))
        files += [stem.with_suffix(end) for end in (".mp4", ".png", ".npz")]
        if config.gif:
            write_gif(film, stem.with_suffix(".gif"))
            files.append(stem.with_suffix(".gif"))
        print(_outcome(recording, float(foresight.tiles.sum())))
    print("written:", *files, sep="\n  ")
    return files


def _outcome(recording: Recording, predicted: float) -> str:
    end = "time limit"
    if recording.lap_finished:
        end = "lap finished"
    elif recording.off_field:
        end = "off the field"
    return (
        f"seed {recording.seed}: return {recording.ret:.1f} in {recording.length} frames ({end}); "
        f"{recording.tiles.sum():.0f} tiles, {predicted:.0f} predicted"
    )
