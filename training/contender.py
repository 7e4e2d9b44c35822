"""Contenders of a run: a controller with the world it was evolved in, and how real tracks rank it.

A run and each of its rounds are folders of one layout, and bring forth a contender each.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.linear import linear_policy, load_linear
from wm_env.evaluation import evaluate
from wm_env.seeds import HELD_OUT
from wm_env.storage import StoreError
from wm_env.weights import checksum_of, write_atomically


@dataclass(frozen=True)
class Contender:
    """What is in one folder: `memory/`, `world.safetensors` and `evolve/`."""

    folder: Path

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

    def check(self) -> None:
        """Look whether both are there.

        Raises:
            StoreError: one is not.
        """
        for needed, stage in ((self.world, "memory"), (self.controller, "evolve")):
            if not needed.is_file():
                raise StoreError(
                    f"{needed} does not exist; `python -m training {stage}` writes it."
                )

    def validated(self) -> float:
        """The mean return on the real tracks that chose this controller in its evolution."""
        return load_linear(self.controller)[1]["validation"]["real_mean"]


def best_of(contenders: Sequence[Contender]) -> Contender:
    """The one that was validated best; of equal ones the first."""
    return max(contenders, key=Contender.validated)


def evaluate_contender(
    contender: Contender, *, seeds: range, max_steps: int, path: Path
) -> dict[str, Any]:
    """Drive a contender on real tracks of Gymnasium, and keep the figures in a JSON file.

    What the file says already of these very weights, seeds and steps is not driven again.

    Raises:
        ValueError: seeds that are not for choosing.
        EvaluationError: an episode could not be driven.
    """
    choosing = HELD_OUT["choosing"]
    if not set(seeds) <= set(choosing):
        raise ValueError(
            f"the evaluation would drive seeds {seeds[0]}..{seeds[-1]}; expected some of "
            f"{choosing[0]}..{choosing[-1]}. Take fewer episodes; others are judged by `python -m "
            "agents evaluate`."
        )
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
