"""Contenders of a run: a controller with the world it was evolved in, and how real tracks rank it.

A run and each of its rounds are folders of one layout, and bring forth a contender each. It drives
for the data of the next round, as it is and spoilt.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.linear import linear_policy, load_linear
from training.plan import CollectConfig, ShardPlan
from wm_env.evaluation import evaluate
from wm_env.linear import spoil
from wm_env.seeds import check_choosing
from wm_env.storage import StoreError, write_atomically
from wm_env.weights import checksum_of


@dataclass(frozen=True)
class Contender:
    """What is in one folder: `memory/`, `world.safetensors` and `evolve/`."""

    folder: Path

    @property
    def reconstruction(self) -> Path:
        """What a round found out about V: errors, and which V it used."""
        return self.folder / "reconstruction.json"

    @property
    def vision(self) -> Path:
        """The folder of V: its own, or one that it took over."""
        if self.reconstruction.exists():
            return self.folder.parent / json.loads(self.reconstruction.read_text())["vision"]
        own = self.folder / "vision"
        return own if own.exists() else self.folder.parent / "vision"

    @property
    def memory(self) -> Path:
        """The folder of M."""
        return self.folder / "memory"

    @property
    def world(self) -> Path:
        """The world that M is part of."""
        return self.folder / "world.safetensors"

    @property
    def controller(self) -> Path:
        """The controller that was evolved there."""
        return self.folder / "evolve" / "controller.safetensors"

    @property
    def finished(self) -> bool:
        """Whether both are there, and the controller is not one of an evolution that goes on."""
        there = self.world.is_file() and self.controller.is_file()
        return there and load_linear(self.controller)[1].get("finished", True)

    def check(self) -> None:
        """Look whether both are there.

        Raises:
            StoreError: one is not, or the controller's evolution was stopped.
        """
        for needed, stage in ((self.world, "memory"), (self.controller, "evolve")):
            if not needed.is_file():
                raise StoreError(
                    f"{needed} does not exist; `python -m training {stage}` writes it."
                )
        if not self.finished:
            raise StoreError(
                f"{self.controller} is still evolving; `python -m training evolve` goes on with it."
            )

    def validated(self) -> float:
        """The mean return on the real tracks that chose this controller in its evolution."""
        return load_linear(self.controller)[1]["validation"]["real_mean"]

    def history(self) -> list[dict[str, float]]:
        """What `agents.history.EvolutionHistory` tells of its evolution; taken over, one line."""
        lines = (self.folder / "evolve" / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def scores(self) -> dict[str, float]:
        """How the controller did: `generation`, `dream` (its mean return there), `real_mean`, ….

        The real figures are those of the validation that chose it.
        """
        facts = load_linear(self.controller)[1]
        dream = {line["generation"]: line["fixed_return"] for line in self.history()}
        generation = facts["generation"]
        return {"generation": generation, "dream": dream[generation], **facts["validation"]}


def best_of(contenders: Sequence[Contender]) -> Contender:
    """The one that was validated best; of equal ones the first."""
    return max(contenders, key=Contender.validated)


def without_gain(contenders: Sequence[Contender]) -> int:
    """How many came after the best one."""
    return len(contenders) - 1 - contenders.index(best_of(contenders))


@dataclass(frozen=True)
class RoundCollect(CollectConfig):
    """A collection in which shards of `on_policy` take turns in how spoilt the controller is.

    `noises` are of its actions, in place of `noise`; `weight_noise` is in root mean squares of its
    weights. It errs then as it would not by noise on its actions: for an episode long, in the same
    places.
    """

    noises: tuple[float, ...] = (0.3,)
    weight_noise: tuple[float, ...] = (0.0,)

    def plan(self) -> list[ShardPlan]:
        """As `CollectConfig.plan`."""
        turns = zip(
            itertools.cycle(self.noises or (0.0,)), itertools.cycle(self.weight_noise or (0.0,))
        )
        return [
            SpoiltPlan(one.index, one.driver, one.seeds, *next(turns))
            if one.driver == "on_policy"
            else one
            for one in super().plan()
        ]


@dataclass(frozen=True)
class SpoiltPlan(ShardPlan):
    """A shard with noise on its controller's actions, and on its weights, from its first seed."""

    noise: float = 0.0
    weight_noise: float = 0.0

    def settings(self, config: CollectConfig) -> dict[str, Any]:
        """As `ShardPlan.settings`; of weights as they are the very same."""
        spoilt = {"weight_noise": self.weight_noise} if self.weight_noise else {}
        return super().settings(config) | {"noise": self.noise} | spoilt

    def driver_options(self, config: CollectConfig) -> dict[str, Any]:
        """As `ShardPlan.driver_options`, with the spoilt controller itself."""
        options = super().driver_options(config) | {"noise": self.noise}
        if self.weight_noise:
            controller, _ = load_linear(config.controller, task=config.task)
            options["controller"] = spoil(controller, self.weight_noise, seed=self.seeds[0])
        return options


def evaluate_contender(
    contender: Contender, *, seeds: range, max_steps: int, path: Path
) -> dict[str, Any]:
    """Drive a contender on real tracks of Gymnasium, and keep the figures in a JSON file.

    What the file says already of these very weights, seeds and steps is not driven again.

    Raises:
        ValueError: seeds that are not for choosing.
        EvaluationError: an episode could not be driven.
    """
    check_choosing(seeds)
    weights = {
        "world": checksum_of(contender.world),
        "controller": checksum_of(contender.controller),
    }
    asked = {"weights": weights, "seeds": list(seeds), "max_steps": max_steps}
    kept = json.loads(path.read_text()) if path.exists() else {}
    if {name: kept.get(name) for name in asked} == asked:
        return kept
    controller, _ = load_linear(contender.controller)
    evaluation = evaluate(
        linear_policy,
        controller,
        seeds=seeds,
        world_model=contender.world,
        max_episode_steps=max_steps,
    )
    figures = {
        **evaluation.as_dict(),
        **asked,
        "files": [str(contender.world), str(contender.controller)],
    }
    write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())
    return figures
