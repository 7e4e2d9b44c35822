"""How long the first step takes: imports, and `gym.make` with and without compiled programs.

    uv run python benchmarks/start_up.py [--repeats N] [--json FILE]

Every time is the shortest of a few processes. "cold" has an empty compilation cache of JAX, "warm"
one that an earlier process filled.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from wm_env.bench import Row, report  # noqa: E402

TIMED = """
import time
begin = time.perf_counter()
{what}
print(time.perf_counter() - begin)
"""
FIRST_STEP = """
import gymnasium, wm_env
env = gymnasium.make("DreamCarRacing-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
"""


@dataclass(frozen=True)
class Config:
    """Time the beginning."""

    json: Path | None = None  # write the rows here too
    repeats: int = 3


def seconds(what: str, repeats: int = 1, cache: str | None = None) -> float:
    """The shortest time of `repeats` processes for a piece of code, in seconds."""
    environment = dict(os.environ)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", TIMED.format(what=what)]
    told = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(repeats)
    ]
    return min(float(text.split()[-1]) for text in told)


def main(config: Config) -> None:
    """Time and print."""
    times = {
        f"import {name}": seconds(f"import {name}", config.repeats)
        for name in ("jax", "gymnasium", "gymnax", "wm_env")
    }
    colds, warms = [], []
    for _ in range(config.repeats):
        with tempfile.TemporaryDirectory() as cache:
            colds.append(seconds(FIRST_STEP, cache=cache))
            warms.append(seconds(FIRST_STEP, cache=cache))
    times["from import to the first step of gym.make, cold"] = min(colds)
    times["from import to the first step of gym.make, warm"] = min(warms)
    rows = [Row(name, value, "seconds") for name, value in times.items()]
    report(rows, config.json)


if __name__ == "__main__":
    main(tyro.cli(Config))
