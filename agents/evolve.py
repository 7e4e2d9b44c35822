"""`python -m agents evolve`: a linear controller learns to drive in the dream.

Reality only says which controller to keep.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from agents.cma_es import CMAESConfig, Evolution, Generation
from agents.linear import LinearController, linear_policy, load_linear, save_linear
from wm_env.car_racing import default_backend
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.dream import DreamParams
from wm_env.evaluation import evaluate
from wm_env.progress import progress_bar
from wm_env.weights import checksum_of, load_world, write_atomically


@dataclass(frozen=True)
class EvolveConfig:
    """What to evolve, in which dream, and how often reality is asked.

    Validation drives `validation_episodes` real tracks from `validation_first_seed` on with the
    mean controller, every `validate_every` generations; keep those seeds below 100, which leaves
    1000..1099 for judging.
    """

    world: str = "carracing"
    # Begin from this controller's file or shipped name; zeros otherwise.
    controller: str | None = None
    out: Path = Path("out/evolve")
    generations: int = 30
    search: CMAESConfig = field(default_factory=CMAESConfig)
    temperature: float = 1.0
    dropout: float = 0.0
    start_middle: float = 0.3
    seed: int = 0
    validate_every: int = 5
    validation_episodes: int = 16
    validation_first_seed: int = 0
    validation_steps: int = 1000  # frames of such an episode at most
    backend: Literal["gymnasium", "envpool"] = field(default_factory=default_backend)


def run(config: EvolveConfig) -> Path:
    """Evolve, resuming from `out/checkpoint.safetensors`.

    Returns the controller that reality preferred.
    """
    world = load_world(config.world)
    controller = (
        load_linear(config.controller)[0] if config.controller else LinearController.zeros()
    )
    evolution = Evolution(controller, linear_policy, config.search)
    params = DreamParams(
        world_model=world,
        temperature=config.temperature,
        dropout=config.dropout,
        start_middle=config.start_middle,
        max_steps_in_episode=config.search.steps,
    )
    state, start = evolution.init(jax.random.key(config.seed)), 0
    checkpoint, log = config.out / "checkpoint.safetensors", config.out / "history.jsonl"
    config.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state, start = load_checkpoint(state, checkpoint, _dream_of(config))
    history = [line for line in _read(log) if line["generation"] <= start]
    key = jax.random.key(config.seed + 1)
    with progress_bar("evolving", total=config.generations, done=start, unit="generations") as bar:
        for generation in range(start + 1, config.generations + 1):
            since = time.monotonic()
            state, outcome = evolution.advance(state, params, jax.random.fold_in(key, generation))
            line = {"generation": generation, **_numbers(outcome), "sigma": float(state.std)}
            line["seconds"] = time.monotonic() - since
            if generation % config.validate_every == 0 or generation == config.generations:
                line |= _validate(evolution.controller(state), world, config, generation)
            history.append(line)
            write_atomically(log, "".join(json.dumps(row) + "\n" for row in history).encode())
            save_checkpoint(state, generation, checkpoint, _dream_of(config))
            bar.advance(1, note=_note(history))
    figure(history, config.out / "evolution.png")
    return _keep_best(history, config)


def _validate(
    controller: LinearController, world: Any, config: EvolveConfig, generation: int
) -> dict[str, float]:
    first = config.validation_first_seed
    real = evaluate(
        linear_policy,
        controller,
        env="real",
        seeds=range(first, first + config.validation_episodes),
        world_model=world,
        backend=config.backend,
        max_episode_steps=config.validation_steps,
        progress=False,
    )
    figures = {
        "real_mean": real.mean,
        "real_std": real.std,
        "real_episodes": config.validation_episodes,
    }
    facts = {"generation": generation, "evolve": _jsonable(config), "validation": figures}
    save_linear(controller, config.out / f"controller-{generation:04d}.safetensors", facts)
    return figures


def _keep_best(history: list[dict[str, float]], config: EvolveConfig) -> Path:
    validated = [line for line in history if "real_mean" in line]
    best = max(validated, key=lambda line: line["real_mean"])
    path = config.out / "controller.safetensors"
    controller, facts = load_linear(config.out / f"controller-{best['generation']:04d}.safetensors")
    save_linear(controller, path, {**facts, "chosen_among": len(validated)})
    return path


def figure(history: list[dict[str, float]], path: Path) -> None:
    """Dream and real return over generations, as a PNG."""
    generations = [line["generation"] for line in history]
    validated = [line for line in history if "real_mean" in line]
    fig, axes = plt.subplots(figsize=(8, 4.5))
    axes.plot(
        generations, [line["fixed_return"] for line in history], label="dream, the mean controller"
    )
    axes.plot(
        generations,
        [line["mean_return"] for line in history],
        alpha=0.4,
        label="dream, its population",
    )
    axes.errorbar(
        [line["generation"] for line in validated],
        [line["real_mean"] for line in validated],
        [line["real_std"] for line in validated],
        fmt="o",
        capsize=3,
        label="real (mean and standard deviation over tracks)",
    )
    axes.set(
        xlabel="generation",
        ylabel="return",
        title="Evolved in the dream, validated on the real track",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def _read(log: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _numbers(outcome: Generation) -> dict[str, float]:
    return {name: float(value) for name, value in outcome._asdict().items()}


def _note(history: list[dict[str, float]]) -> str:
    real = [line["real_mean"] for line in history if "real_mean" in line]
    reality = f"  real {real[-1]:.0f} (best {max(real):.0f})" if real else ""
    return f"dream {history[-1]['fixed_return']:.0f}{reality}"


def _dream_of(config: EvolveConfig) -> dict[str, Any]:
    """What may not change in the middle of an evolution."""
    fixed = ("search", "temperature", "dropout", "start_middle", "seed", "world", "controller")
    weights = [name for name in (config.world, config.controller) if name is not None]
    dream = {name: value for name, value in _jsonable(config).items() if name in fixed}
    return {**dream, "checksums": [checksum_of(name) for name in weights]}


def _jsonable(config: EvolveConfig) -> dict[str, Any]:
    return asdict(replace(config, out=str(config.out)))  # pyright: ignore[reportArgumentType]
