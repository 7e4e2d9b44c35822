"""`python -m agents evaluate`: a controller's return on real tracks, or in dreams."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from agents.controllers import load_controller_policy
from wm_env import __version__
from wm_env.evaluation import Evaluation, evaluate
from wm_env.storage import write_atomically
from wm_env.weights import load_world


@dataclass(frozen=True)
class EvaluateConfig:
    """Drive one episode for each seed with a controller and tell how it went.

    The defaults are the protocol of published figures: 100 episodes of Gymnasium's CarRacing-v3,
    seeds 1000 to 1099, a deterministic controller, no warm-up.
    """

    env: Literal["real", "dream"] = "real"
    episodes: int = 100
    first_seed: int = 1000
    backend: Literal["gymnasium", "envpool"] = "gymnasium"  # of the real tracks
    controller: str = "carracing_motion_controller"  # file, linear or MLP, or shipped name
    world: str = "carracing_motion"  # file or shipped name
    json: Path | None = None  # write all figures here
    processes: int | None = None  # on Gymnasium; one a core unless told
    ray: str | None = None  # on Gymnasium: HOST:PORT or "auto" of a Ray cluster that drives
    steps: int = 1000  # frames of an episode at most
    temperature: float = 1.0  # of dreams, as the next three
    persistence: float = 0.0
    dropout: float = 0.0
    track_tiles: float = 281.0


def run(config: EvaluateConfig) -> Evaluation:
    """Evaluate, print a summary, and write JSON where asked.

    Raises:
        ValueError: a number outside its range.
        EvaluationError: an episode could not be driven.
        WorkersError: there is no Ray cluster at that address.
        WeightsError: the world or the controller cannot be loaded, or they do not fit.
    """
    if config.episodes < 1:
        raise ValueError(f"episodes is {config.episodes}; expected 1 or more.")
    names = ("temperature", "persistence", "dropout", "track_tiles")
    options = {name: getattr(config, name) for name in names}
    dream = {
        name: value for name, value in options.items() if value != getattr(EvaluateConfig, name)
    }
    world = load_world(config.world)
    features = world.latent_size + world.hidden_size
    policy, controller, training = load_controller_policy(
        config.controller, features=features, task=world.task
    )
    evaluation = evaluate(
        policy,
        controller,
        env=config.env,
        seeds=range(config.first_seed, config.first_seed + config.episodes),
        world_model=world,
        backend=config.backend,
        processes=config.processes,
        ray=config.ray,
        max_episode_steps=config.steps,
        dream=dream or None,  # refused on real tracks
    )
    print(evaluation.summary())
    if config.json is not None:
        facts = {**evaluation.as_dict(), **_circumstances(config), "training": training}
        write_atomically(config.json, (json.dumps(facts, indent=1) + "\n").encode())
    return evaluation


def _circumstances(config: EvaluateConfig) -> dict[str, Any]:
    """What else one must know to get the same figures."""
    packages = ["gymnasium", "jax"] + ["envpool"] * (config.backend == "envpool")
    options = {**asdict(config), "json": str(config.json)}
    versions = {"python": platform.python_version(), "wm_env": __version__}
    versions |= {name: version(name) for name in packages}
    return {"options": options, "versions": versions}
