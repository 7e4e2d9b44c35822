"""`python -m agents drive`: a person at the arrow keys, in the dream or in the real car."""

from dataclasses import dataclass
from typing import Literal

from wm_env import play
from wm_env.car_racing import make_car_racing
from wm_env.recorder import Recorder
from wm_env.seeds import refuse_held_out
from wm_env.shard import Shard


@dataclass(frozen=True)
class DriveConfig:
    """Drive with the arrow keys: steer, up for gas, down for the brake; Escape leaves.

    `--env dream` shows the dream, `--env real` the real car with its dream beside it, given the
    same keys. `--env real --store DIR` shows the real car alone and records it for training: each
    episode becomes a shard of that store, by the driver `human`, as soon as it ends. One that you
    leave is kept up to there if it has lasted 3 seconds.
    """

    env: Literal["dream", "real"] = "dream"
    store: str | None = None  # folder or URL of real driving: record into it
    world: str = "carracing"  # file or shipped name
    temperature: float = 1.0  # of the dream
    start: Literal["first", "middle", "mixed"] = "first"  # where dreams begin
    seed: int | None = None  # of every episode; each gets its own unless told
    fps: int = 50


def run(config: DriveConfig) -> None:
    """Drive until the window is closed; an ended episode begins anew.

    Raises:
        ValueError: a dream is to be recorded, or a track that is kept for judging.
        NoDisplayError: without a display.
        WeightsError: the world cannot be loaded.
    """
    if config.store is not None:
        return _record(config, config.store)
    play.run(
        play.PlayConfig(
            world=config.world,
            real=config.env == "real",
            temperature=config.temperature,
            start=config.start,
            seed=config.seed,
            fps=config.fps,
        )
    )


def _record(config: DriveConfig, store: str) -> None:
    if config.env != "real":
        raise ValueError(
            f"--store {store} with --env {config.env}: a store holds real driving only; add "
            "--env real, or leave --store out."
        )
    refuse_held_out([] if config.seed is None else [config.seed])
    play.require_display()
    env = Recorder(make_car_racing(render_mode="rgb_array"), store, on_shard=_tell)
    play.drive(env, seed=config.seed, fps=config.fps)


def _tell(shard: Shard) -> None:
    row = shard.episodes[0]
    print(f"{shard.path}: {row.length} steps on track {row.seed}, return {row.ret:.0f}")
