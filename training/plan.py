"""The plan of a collection: which driver drives which tracks, shard by shard."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from wm_env.cores import usable_cores
from wm_env.simulator import default_backend
from wm_env.task import CAR_RACING, Task, task_named
from wm_env.workers import PATIENCE


@dataclass(frozen=True)
class CollectConfig:
    """What to collect: episodes by driver, on tracks seeded from `first_seed` on.

    `first_seed` is far from the seeds on which controllers are chosen (0..99) and judged
    (1000..1099). The driver `on_policy` is a controller in a world, both by file or shipped name,
    with action noise; the shipped ones unless told. `env` is the environment's id in Gymnasium.
    """

    env: str = CAR_RACING.id

    episodes: dict[str, int] = field(
        default_factory=lambda: {
            "heuristic": 256,
            "recovery": 160,
            "aggressive": 96,
            "explore": 192,
            "blind": 256,
            "failures": 32,
            "brownian": 96,
        }
    )
    first_seed: int = 100_000
    cars: int = 16  # that drive at once in a worker, and episodes in a shard
    max_steps: int = 1000
    backend: Literal["gymnasium", "envpool"] = field(default_factory=default_backend)
    workers: int = field(default_factory=usable_cores)
    world: str | None = None
    controller: str | None = None
    noise: float = 0.3
    ray: str | None = None  # address of a Ray cluster whose cores are the workers
    patience: float = PATIENCE  # seconds without a sign of life until a worker counts as hung

    @property
    def task(self) -> Task:
        """What is driven.

        Raises:
            ValueError: `env` is unknown.
        """
        return task_named(self.env)

    def plan(self) -> list["ShardPlan"]:
        """Every shard, the drivers spread evenly: an unfinished store is a mixture too."""
        spread = sorted(
            ((first + 0.5 * size) / episodes, driver, size)
            for driver, episodes in self.episodes.items()
            for first in range(0, episodes, self.cars)
            for size in [min(self.cars, episodes - first)]
        )
        begins = np.cumsum([self.first_seed, *(size for *_, size in spread)]).tolist()
        return [
            ShardPlan(index, driver, range(begin, begin + size))
            for index, ((_, driver, size), begin) in enumerate(zip(spread, begins, strict=False))
        ]


@dataclass(frozen=True)
class ShardPlan:
    """What shard number `index` is to hold: an episode of a driver on the track of each seed."""

    index: int
    driver: str
    seeds: range

    def settings(self, config: CollectConfig) -> dict[str, Any]:
        """What a finished shard must have been made with to be this one."""
        chosen = {"driver": self.driver, "first_seed": self.seeds[0], "episodes": len(self.seeds)}
        chosen |= {"max_steps": config.max_steps, "backend": config.backend}
        if self.driver == "on_policy":
            # It brings JAX, which the others do without.
            from wm_env.weights import checksum_of, controller_name, world_name

            task = config.task
            names = world_name(task, config.world), controller_name(task, config.controller)
            chosen |= {"noise": config.noise, "weights": [checksum_of(name) for name in names]}
        return chosen

    def driver_options(self, config: CollectConfig) -> dict[str, Any]:
        """Those of `agents.drivers.make_driver`."""
        names = ("world", "controller", "noise") if self.driver == "on_policy" else ()
        return {name: getattr(config, name) for name in names}
