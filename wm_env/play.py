"""`python -m wm_env play`: drive the dream with the arrow keys, the real car beside it."""

import os
import sys
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import gymnasium
import numpy as np

import registrations
from wm_env.beside import DreamBesideReal
from wm_env.car_racing import make_car_racing


@dataclass(frozen=True)
class PlayConfig:
    """Drive the dream with the arrow keys: steer, up for gas, down for the brake."""

    world: str = "carracing"  # file or shipped name
    real: bool = False  # the real car beside it, given the same keys
    temperature: float = 1.0
    start: str = "first"  # first, middle or mixed
    seed: int | None = None
    fps: int = 50


class NoDisplayError(RuntimeError):
    """There is no screen to open a window on."""


def run(config: PlayConfig) -> None:
    """Drive until the window is closed; an ended episode begins anew.

    Raises:
        NoDisplayError: without a display.
        WeightsError: the world cannot be loaded.
    """
    require_display()
    drive(make(config), seed=config.seed, fps=config.fps)


def drive(env: gymnasium.Env, *, seed: int | None, fps: int) -> None:
    """Drive `env`, which renders to arrays, until the window is closed; then close it.

    With a seed, every episode is on its track.
    """
    from gymnasium.utils.play import play

    print("arrow keys: steer, gas (up) and brake (down); Escape leaves", file=sys.stderr)
    try:
        noop = np.zeros(3, np.float32)
        play(env, fps=fps, keys_to_action=keys_to_action(), seed=seed, noop=noop)
    finally:
        env.close()


def make(config: PlayConfig) -> gymnasium.Env:
    """The environment that PlayConfig names, rendering to arrays."""
    dream = gymnasium.make(
        registrations.DREAM_ID,
        render_mode="rgb_array",
        world_model=config.world,
        temperature=config.temperature,
        start=config.start,
    )
    if not config.real:
        return dream
    return DreamBesideReal(make_car_racing(render_mode="rgb_array"), dream)


def keys_to_action() -> dict[Any, np.ndarray]:
    """Arrow keys, alone and together, with the strengths of CarRacing's own keyboard loop.

    Left and right together cancel out, and leave gas and brake as they are.
    """
    import pygame

    effects = {
        pygame.K_LEFT: (-1.0, 0.0, 0.0),
        pygame.K_RIGHT: (1.0, 0.0, 0.0),
        pygame.K_UP: (0.0, 1.0, 0.0),
        pygame.K_DOWN: (0.0, 0.0, 0.8),
    }
    return {
        keys: np.array([effects[key] for key in keys], np.float32).sum(axis=0)
        for count in range(1, len(effects) + 1)
        for keys in combinations(sorted(effects), count)
    }


def require_display() -> None:
    """Open and close the display once, so that its lack is told before anything is loaded.

    Raises:
        NoDisplayError: there is none.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
    except pygame.error as error:
        driver = str(error)
    else:
        pygame.display.quit()
        if driver not in ("dummy", "offscreen"):
            return
    raise NoDisplayError(
        f"no display to drive on: SDL says {driver!r}, DISPLAY is {os.environ.get('DISPLAY')!r}. "
        "Run this on a desktop or through `ssh -X`; without one, `python -m agents demo` "
        "writes films."
    )
