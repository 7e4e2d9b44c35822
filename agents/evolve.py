"""`python -m agents evolve`: a linear controller learns to drive in the dream.

Reality only says which controller to keep.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax

from agents.cma_es import CMAESConfig, Evolution
from agents.dream_mix import DreamMix, Range, load_worlds
from agents.history import EvolutionHistory
from agents.linear import LinearController, linear_policy, load_linear, save_linear
from agents.principal_axes import PrincipalAxes
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.dream import DreamParams
from wm_env.evaluation import evaluate
from wm_env.progress import progress_bar
from wm_env.seeds import check_choosing
from wm_env.simulator import check_backend, default_backend
from wm_env.task import Task
from wm_env.weights import checksum_of
from wm_env.world_model import WorldModel


@dataclass(frozen=True)
class EvolveConfig:
    """What to evolve, in which dreams, and how often reality is asked.

    Dreams are spread evenly over `world` and `worlds`, which share its V; the driver sees the h of
    whichever it is in, and that of `world` on the real track. Each dream of a generation draws its
    temperature and dropout from the ranges, where such are given; the fixed dreams that tell how
    the search goes are of `world`, `temperature` and `dropout`.

    Validation drives `validation_episodes` real tracks from `validation_first_seed` on with the
    mean controller, every `validate_every` generations. Those seeds are below 100, which leaves
    1000..1099 for judging. After `patience` validations in a row without a better mean, the search
    stops.
    """

    world: str = "carracing"
    worlds: tuple[str, ...] = ()
    # Begin from this controller's file or shipped name; zeros otherwise.
    controller: str | None = None
    out: Path = Path("out/evolve")
    generations: int = 30
    search: CMAESConfig = field(default_factory=CMAESConfig)
    temperature: float = 1.0
    temperature_range: Range | None = None
    persistence: float = 0.0
    dropout: float = 0.0
    dropout_range: Range | None = None
    start_middle: float = 0.3
    seed: int = 0
    validate_every: int = 5
    validation_episodes: int = 16
    validation_first_seed: int = 0
    validation_steps: int = 1000  # frames of such an episode at most
    patience: int | None = None
    # Of the real tracks: EnvPool where it is installed and has the world's task, unless told.
    backend: Literal["gymnasium", "envpool"] | None = None

    def check(self) -> None:
        """Look whether all of it can be.

        Raises:
            ValueError: a number is out of its range.
        """
        self.search.check()
        for name in ("generations", "validate_every", "validation_episodes", "validation_steps"):
            _check_at_least_one(name, getattr(self, name))
        if self.patience is not None:
            _check_at_least_one("patience", self.patience)
        for name, fits, expected in (
            ("start_middle", lambda share: 0.0 <= share <= 1.0, "a share from 0 to 1"),
            ("temperature", lambda tau: 0.0 <= tau < math.inf, "0 or more; 1 is as the data"),
            ("persistence", lambda share: 0.0 <= share < 1.0, "0 or more and less than 1"),
            ("dropout", lambda rate: 0.0 <= rate < 1.0, "0 or more and less than 1"),
        ):
            value, ends = getattr(self, name), getattr(self, f"{name}_range", None)
            if not fits(value):
                raise ValueError(f"{name} is {value}; expected {expected}.")
            if ends is not None and not (ends[0] <= ends[1] and all(map(fits, ends))):
                raise ValueError(
                    f"{name}_range is {ends}; expected least and greatest, each {expected}."
                )
        check_choosing(self.validation_seeds())

    def validation_seeds(self) -> range:
        """The real tracks that choose."""
        first = self.validation_first_seed
        return range(first, first + self.validation_episodes)


def run(config: EvolveConfig) -> Path:
    """Evolve, resuming from `out/checkpoint.safetensors`.

    Returns the controller that reality preferred; after every validation it and the figure are
    those of the search so far.

    Raises:
        ValueError: the configuration cannot be, as the backend for the world's task or a price that
            no world can tell, or is not that of the search in `out`.
    """
    config.check()
    worlds = load_worlds((config.world, *config.worlds))
    features = worlds[0].latent_size + worlds[0].hidden_size
    task = worlds[0].task
    controller = LinearController.zeros(features, task)
    if config.controller:
        controller, _ = load_linear(config.controller, features=features, task=task)
    check_backend(_backend(config, task), task)
    config.search.check_task(task)
    for world in worlds:
        config.search.check_memory(world.mdn_rnn.config)
    count = config.search.axes
    axes = None if count is None else PrincipalAxes.of(controller, worlds[0], count)
    evolution = Evolution(controller, linear_policy, config.search, axes)
    mix, key = _mix(worlds, config), jax.random.key(config.seed + 1)
    state, done = evolution.init(jax.random.key(config.seed)), 0
    checkpoint = config.out / "checkpoint.safetensors"
    if checkpoint.exists():
        state, done = load_checkpoint(state, checkpoint, _dream_of(config))
    history = EvolutionHistory(config.out / "history.jsonl", done)
    total = config.generations
    with progress_bar("evolving", total=total, done=done, unit="generations") as bar:
        # A run that was stopped while it validated has that before it still.
        _validate_if_due(evolution.controller(state), worlds[0], config, history)
        for number in range(done + 1, total + 1):
            if history.is_stalled(config.patience):
                bar.say(f"stopped: no better for real in {config.patience} validations")
                break
            since = time.monotonic()
            state, outcome = evolution.advance(
                state, mix, jax.random.fold_in(key, number), number=number
            )
            figures = {name: float(value) for name, value in outcome._asdict().items()}
            figures |= {"sigma": float(state.std), "horizon": config.search.horizon(number)}
            history.add(**figures, seconds=time.monotonic() - since)
            save_checkpoint(state, number, checkpoint, _dream_of(config))
            _validate_if_due(evolution.controller(state), worlds[0], config, history)
            bar.advance(1, note=history.note())
    return _conclude(config, history, finished=True)


def _mix(worlds: Sequence[WorldModel], config: EvolveConfig) -> DreamMix:
    params = DreamParams(
        world_model=worlds[0],
        temperature=config.temperature,
        persistence=config.persistence,
        dropout=config.dropout,
        start_middle=config.start_middle,
        max_steps_in_episode=config.search.steps,
    )
    ranges = {"temperature": config.temperature_range, "dropout": config.dropout_range}
    return DreamMix(params, worlds[1:], **ranges)


def _backend(config: EvolveConfig, task: Task) -> str:
    return config.backend or default_backend(task)


def validate(
    controller: LinearController,
    world: WorldModel,
    config: EvolveConfig,
    *,
    progress: bool = False,
) -> dict[str, float]:
    """What a controller gets on the config's real tracks: `real_mean`, `real_std`, and how many."""
    real = evaluate(
        linear_policy,
        controller,
        env="real",
        seeds=config.validation_seeds(),
        world_model=world,
        backend=_backend(config, world.task),
        max_episode_steps=config.validation_steps,
        progress=progress,
    )
    return {
        "real_mean": real.mean,
        "real_std": real.std,
        "real_episodes": config.validation_episodes,
    }


def _validate_if_due(
    controller: LinearController,
    world: WorldModel,
    config: EvolveConfig,
    history: EvolutionHistory,
) -> None:
    """Drive real tracks every so often and at the end; keep the controller, and the best so far."""
    number = len(history)
    due = number and (number % config.validate_every == 0 or number >= config.generations)
    if not due or "real_mean" in history.lines[-1]:
        return
    figures = validate(controller, world, config)
    facts = {"generation": number, "evolve": _jsonable(config), "validation": figures}
    save_linear(controller, _controller(config, number), facts)
    history.amend(**figures, at=time.time())
    _conclude(config, history, finished=False)


def _conclude(config: EvolveConfig, history: EvolutionHistory, *, finished: bool) -> Path:
    """Draw the figure, and put the controller that drove best for real in its place."""
    history.draw(config.out / "evolution.png")
    path = config.out / "controller.safetensors"
    controller, facts = load_linear(_controller(config, int(history.best["generation"])))
    told = {"chosen_among": len(history.validated), "finished": finished}
    save_linear(controller, path, {**facts, **told})
    return path


def _controller(config: EvolveConfig, generation: int) -> Path:
    return config.out / f"controller-{generation:04d}.safetensors"


def _dream_of(config: EvolveConfig) -> dict[str, Any]:
    """What may not change in the middle of an evolution.

    Options that not every search has are told only where they are used, so that a checkpoint
    outlives the coming of new ones.
    """
    told = _jsonable(config)
    names = ("temperature", "dropout", "start_middle", "seed", "world", "controller")
    options = ("worlds", "temperature_range", "persistence", "dropout_range")
    dream = {name: told[name] for name in names}
    dream |= {name: told[name] for name in options if told[name]}
    sizes, plain = ("population", "dreams", "steps", "sigma"), asdict(CMAESConfig())
    dream["search"] = {
        name: value
        for name, value in told["search"].items()
        if name in sizes or value != plain[name]
    }
    weights = [config.world, config.controller, *config.worlds]
    return {**dream, "checksums": [checksum_of(name) for name in weights if name is not None]}


def _jsonable(config: EvolveConfig) -> dict[str, Any]:
    return asdict(replace(config, out=str(config.out)))  # pyright: ignore[reportArgumentType]


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; expected 1 or more.")
