"""How long until an agent drives the real car well: trained in the dream, or on the real car.

    uv run --extra envpool python benchmarks/time_to_score.py [--minutes 20]
    uv run --extra sb3 --extra envpool python benchmarks/time_to_score.py --agent ppo

The same agent, from nothing and with one seed, on the same observations [z, h] learns in the dream,
on Gymnasium's CarRacing-v3 and on EnvPool's, one after another, on an otherwise idle machine:
CMA-ES of a linear controller (cma_es_anywhere.py), or PPO (agents/third_party/cleanrl_ppo.py), of
which the lanes differ (64, 8 and 16), the 2,048 frames between two updates do not. Now and
then its clock stops and it drives 16 real tracks (EnvPool, seeds 0 to 15). Writes
time_to_score.json after each place, and time_to_score.png; a place in the file is not done again.
"""

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import matplotlib.pyplot as plt
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

import wm_env  # noqa: E402
from benchmarks import cma_es_anywhere  # noqa: E402
from wm_env.storage import write_atomically  # noqa: E402

Place = Literal["dream", "envpool", "gymnasium"]
SCORES = 200, 300, 500, 600, 800, 900


@dataclass(frozen=True)
class Config:
    """Where to train and for how long."""

    agent: Literal["cma_es", "ppo"] = "cma_es"
    places: tuple[Place, ...] = ("dream", "envpool", "gymnasium")
    world: str = "carracing_beginner"  # dreamt in; the agent sees its features everywhere
    minutes: float = 20.0  # of training in each place; driving real tracks does not count
    first: float = 5.0  # seconds of training before the first look at the real tracks;
    growth: float = 1.5  # each next look comes after so many times as many
    episodes: int = 16
    seed: int = 0
    out: Path = Path("out/time_to_score")


@dataclass(frozen=True)
class Point:
    """A look at the agent."""

    seconds: float  # of training so far
    frames: int  # trained on so far
    real: float  # mean return on the real tracks
    std: float


class TimeIsUp(Exception):
    """Training has had its minutes."""


class Watch:
    """Stops the clock while the agent drives real tracks, and keeps what they said."""

    def __init__(self, config: Config):
        self._config, self._spent, self._since = config, 0.0, time.monotonic()
        self._next = config.first
        self.points: list[Point] = []

    def __call__(self, frames: int, *policy: Any) -> None:
        """Look, if it is time to, at a policy (and its parameters, if it has any)."""
        spent = self._spent + time.monotonic() - self._since
        if spent < min(self._next, 60.0 * self._config.minutes):
            return
        while self._next <= spent:
            self._next *= self._config.growth
        seeds = range(self._config.episodes)
        told = wm_env.evaluate(
            *policy,
            world_model=self._config.world,
            backend="envpool",
            seeds=seeds,
            progress=False,
        )
        self.points.append(Point(spent, frames, told.mean, told.std))
        print(
            f"{spent:7.0f} s  {frames:>10,} frames  real {told.mean:6.1f} ± {told.std:.1f}",
            flush=True,
        )
        if spent >= 60.0 * self._config.minutes:
            raise TimeIsUp
        self._spent, self._since = spent, time.monotonic()


def lanes_of(place: Place, world: str) -> gym.vector.VectorEnv:
    """The environment to train in: as many lanes as suit it."""
    if place == "dream":
        return gym.make_vec("wm_env:DreamCarRacing-v0", 64, world_model=world)
    if place == "envpool":
        return wm_env.make_real_vector(16, world_model=world, backend="envpool")
    # A process each, begun anew: JAX does not survive a fork.
    return wm_env.make_real_vector(
        8,
        world_model=world,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
    )


def learn(place: Place, config: Config, watch: Watch) -> None:
    """Learn in one place until `watch` raises."""
    if config.agent == "cma_es" and place == "dream":
        cma_es_anywhere.learn_in_dreams(wm_env.load_world(config.world), config.seed, watch)
        return
    with contextlib.closing(lanes_of(place, config.world)) as envs:
        if config.agent == "cma_es":
            cma_es_anywhere.learn_on_the_road(envs, config.seed, watch)
        else:
            from agents.third_party import cleanrl_ppo  # which needs torch

            limits = cleanrl_ppo.Config(steps=10**12, lanes=envs.num_envs, seed=config.seed)
            cleanrl_ppo.train(limits, envs, watch)


def train(place: Place, config: Config) -> list[Point]:
    """Learn in one place until its minutes are over."""
    watch = Watch(config)
    with contextlib.suppress(TimeIsUp):
        learn(place, config, watch)
    return watch.points


def table(found: dict[str, list[dict]]) -> str:
    """Minutes until each score was first seen; what was reached where it never was."""
    rows = ["place      " + "".join(f"{score:>8}" for score in SCORES) + "  best  frames/s"]
    for place, points in found.items():
        first = [next((p["seconds"] for p in points if p["real"] >= s), None) for s in SCORES]
        shown = "".join("       –" if t is None else f"{t / 60:>6.1f} m" for t in first)
        rate = points[-1]["frames"] / points[-1]["seconds"]
        best = max(p["real"] for p in points)
        rows.append(f"{place:<11}{shown}{best:>6.0f}{rate:>10,.0f}")
    return "\n".join(rows)


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Real return against minutes of training."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, points in found.items():
        minutes, real = [p["seconds"] / 60 for p in points], [p["real"] for p in points]
        axes.plot(minutes, real, marker="o", label=place)
    axes.set(xlabel="minutes of training", ylabel="mean real return", xscale="log")
    axes.set_xticks([], minor=True)
    most = max(p["seconds"] / 60 for points in found.values() for p in points)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= most]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(config: Config) -> None:
    """Train in each place, and tell."""
    path = config.out / "time_to_score.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    fixed = {name: value for name, value in asdict(config).items() if name not in ("out", "places")}
    if told and told["config"] != fixed:
        sys.exit(f"{path} was made with {told['config']}, now {fixed}: take another --out.")
    found = told.get("places", {})
    for place in config.places:
        if place not in found:
            print(f"training in {place}")
            found[place] = [asdict(point) for point in train(place, config)]
            write_atomically(path, json.dumps({"config": fixed, "places": found}).encode())
    draw(found, path.with_suffix(".png"))
    print(table(found))


if __name__ == "__main__":
    main(tyro.cli(Config))
