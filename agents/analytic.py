"""`python -m agents analytic`: a controller learns to drive by the gradient of its dreamt return.

Reality only says which controller to keep.
"""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax

from agents.ascent import ascend, begin
from agents.controllers import Controller, load_controller_policy, policy_of, save_any
from agents.history import AscentHistory
from agents.linear import LinearController
from agents.mlp import MLPController
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.dream import DreamParams
from wm_env.evaluation import evaluate
from wm_env.gym_arguments import dream_params
from wm_env.progress import progress_bar
from wm_env.reward import TYPICAL_TRACK_TILES
from wm_env.seeds import check_choosing
from wm_env.simulator import default_backend
from wm_env.task import CAR_RACING
from wm_env.weights import checksum_of, world_for
from wm_env.world_model import WorldModel

# What may change when a training goes on from its checkpoint.
_FREE = {"out", "updates", "backend", "validate_every", "validation_episodes"}
_FREE |= {"validation_first_seed", "validation_steps"}


@dataclass(frozen=True)
class AnalyticConfig:
    """What to train, in which dream, and how often reality is asked.

    Each update dreams `batch` windows of `steps` frames (50 a second) from the world's start
    states. Validation drives whole episodes, dreamt and real, from seed `validation_first_seed` on;
    keep those seeds below 100, which leaves 1000..1099 for judging.
    """

    world: str = "carracing"
    # Begin from this controller's file or shipped name, of either kind; else straight on.
    controller: str | None = None
    out: Path = Path("out/analytic")
    hidden: tuple[int, ...] = ()  # sizes of the hidden layers; none is the linear controller
    updates: int = 200
    batch: int = 256
    steps: int = 64
    learning_rate: float = 0.003
    clip: float = 100.0  # length of a single dream's gradient at most
    temperature: float = 1.0
    dropout: float = 0.0
    start_middle: float = 0.7
    seed: int = 0
    validate_every: int = 20
    validation_episodes: int = 16
    validation_first_seed: int = 0
    validation_steps: int = 1000  # frames of such an episode at most
    backend: Literal["gymnasium", "envpool"] = field(default_factory=default_backend)

    def validation_seeds(self) -> range:
        """The tracks and dreams that choose."""
        first = self.validation_first_seed
        return range(first, first + self.validation_episodes)


def run(config: AnalyticConfig) -> Path:
    """Train, resuming from `out/checkpoint.safetensors`.

    Returns the controller that reality preferred.

    Raises:
        ValueError: a number outside its range, fewer updates than there were already, or hidden
            layers that the controller has not.
        WeightsError: the world or the controller cannot be loaded, or they do not fit.
        CheckpointError: the checkpoint is another training's.
    """
    _check(config)
    world = world_for(CAR_RACING, config.world)
    params = _dreams(config, world)
    controller = _first(config, world)
    state, done = begin(controller), 0
    checkpoint = config.out / "checkpoint.safetensors"
    config.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state, done = load_checkpoint(state, checkpoint, _fixed(config))
    if done > config.updates:
        raise ValueError(
            f"updates is {config.updates}, but {checkpoint} has had {done}; expected as many or "
            "more. Ask for those, or train in another folder."
        )
    history = AscentHistory(config.out / "history.jsonl", done)
    key = jax.random.key(config.seed + 1)
    sizes = {name: getattr(config, name) for name in ("batch", "steps", "learning_rate", "clip")}
    with progress_bar("climbing", total=config.updates, done=done, unit="updates") as bar:
        for update in range(done + 1, config.updates + 1):
            since = time.monotonic()
            key_update = jax.random.fold_in(key, update)
            state, slope = ascend(state, params, key_update, policy=policy_of(controller), **sizes)
            figures = {name: float(value) for name, value in slope._asdict().items()}
            figures["seconds"] = time.monotonic() - since
            if update % config.validate_every == 0 or update == config.updates:
                figures |= _validate(state.controller, world, config, update)
            history.add(**figures)
            save_checkpoint(state, update, checkpoint, _fixed(config))
            bar.advance(1, frames=config.batch * config.steps, note=history.note())
    history.draw(config.out / "analytic.png")
    return _keep_best(history, config)


def _check(config: AnalyticConfig) -> None:
    names = ("updates", "batch", "steps", "learning_rate", "clip")
    for name in (*names, "validate_every", "validation_episodes", "validation_steps"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            default = getattr(AnalyticConfig(), name)
            raise ValueError(f"{name} is {value}; expected more than 0. The default is {default}.")
    check_choosing(config.validation_seeds())


def _dreams(config: AnalyticConfig, world: WorldModel) -> DreamParams:
    return dream_params(
        CAR_RACING,
        world_model=world,
        temperature=config.temperature,
        dropout=config.dropout,
        track_tiles=TYPICAL_TRACK_TILES,
        lap_complete_percent=1.0,
        start=config.start_middle,
        max_episode_steps=config.steps,
    )


def _first(config: AnalyticConfig, world: WorldModel) -> Controller:
    """The controller to begin from."""
    features = world.latent_size + world.hidden_size
    if config.controller is not None:
        _, controller, _ = load_controller_policy(
            config.controller, features=features, task=CAR_RACING
        )
        hidden = getattr(controller, "hidden", ())
        if config.hidden not in ((), hidden):
            raise ValueError(
                f"hidden is {config.hidden} but {config.controller} has {hidden}; leave hidden out "
                "to train that controller on, or leave out the controller to begin anew."
            )
        return controller
    if config.hidden:
        return MLPController.init(features, config.hidden, key=jax.random.key(config.seed))
    return LinearController.zeros(features)


def _validate(
    controller: Controller, world: WorldModel, config: AnalyticConfig, update: int
) -> dict[str, float]:
    """Whole episodes for real and, of the same number, in dreams as those it learns in."""
    figures = {}
    dream = {"temperature": config.temperature, "dropout": config.dropout}
    for env, backend in (("dream", "gymnasium"), ("real", config.backend)):
        outcome = evaluate(
            policy_of(controller),
            controller,
            env=env,
            seeds=config.validation_seeds(),
            world_model=world,
            backend=backend,
            max_episode_steps=config.validation_steps,
            progress=False,
            dream=dream if env == "dream" else None,
        )
        figures |= {f"{env}_mean": outcome.mean, f"{env}_std": outcome.std}
    figures["real_episodes"] = config.validation_episodes
    facts = {"update": update, "analytic": _jsonable(config), "validation": figures}
    save_any(controller, _path(config, update), facts)
    return figures


def _keep_best(history: AscentHistory, config: AnalyticConfig) -> Path:
    _, controller, facts = load_controller_policy(_path(config, int(history.best["update"])))
    path = config.out / "controller.safetensors"
    save_any(controller, path, {**facts, "chosen_among": len(history.validated)})
    return path


def _path(config: AnalyticConfig, update: int) -> Path:
    return config.out / f"controller-{update:04d}.safetensors"


def _fixed(config: AnalyticConfig) -> dict[str, Any]:
    """What may not change in the middle of a training."""
    weights = [name for name in (config.world, config.controller) if name is not None]
    facts = {name: value for name, value in _jsonable(config).items() if name not in _FREE}
    return {**facts, "checksums": [checksum_of(name) for name in weights]}


def _jsonable(config: AnalyticConfig) -> dict[str, Any]:
    return asdict(replace(config, out=str(config.out)))  # pyright: ignore[reportArgumentType]
