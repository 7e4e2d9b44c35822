"""`python -m agents drive`: a person at the arrow keys, in the dream or in the real car."""

from dataclasses import dataclass
from typing import Literal

from wm_env import play


@dataclass(frozen=True)
class DriveConfig:
    """Drive with the arrow keys: steer, up for gas, down for the brake; Escape leaves."""

    env: Literal["dream", "real"] = "dream"
    world: str = "carracing"  # file or shipped name
    temperature: float = 1.0  # of the dream
    start: Literal["first", "middle", "mixed"] = "first"  # where dreams begin
    seed: int | None = None
    fps: int = 50


def run(config: DriveConfig) -> None:
    """Drive until the window is closed; an ended episode begins anew.

    Raises:
        NoDisplayError: without a display.
        WeightsError: the world cannot be loaded.
    """
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
