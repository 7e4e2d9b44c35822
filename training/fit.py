"""The fitting loop that V and M share.

Compiled steps, metrics, checkpoints, and a stop when the loss explodes.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from wm_env.checkpoint import save_checkpoint
from wm_env.progress import progress_bar

_State = TypeVar("_State")


class FitError(RuntimeError):
    """A fit that cannot go on: the message names the step and the last good checkpoint."""


def fit(
    name: str,
    state: _State,
    train_step: Callable[[_State, Any, jax.Array], tuple[_State, dict[str, jax.Array]]],
    batches: Iterator[Any],
    *,
    steps: int,
    start: int,
    out: Path,
    key: jax.Array,
    config: Mapping[str, Any],
    examples_a_batch: int,
    validate: Callable[[_State], dict[str, float]] | None = None,
    every: int = 200,
) -> _State:
    """Run `train_step` from step `start` to `steps`.

    Every `every` steps: a line in `metrics.jsonl` (means since the last one, rate, held-out
    figures) and a checkpoint `checkpoint.safetensors` that names `config`, both under `out`.

    Raises:
        FitError: when the loss is no longer finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    recent: list[dict[str, jax.Array]] = []
    since = time.monotonic()
    with progress_bar(name, total=steps, done=start) as bar:
        for step in range(start, steps):
            state, metrics = train_step(state, next(batches), jax.random.fold_in(key, step))
            recent.append(metrics)
            bar.advance(1)
            if (step + 1) % every == 0 or step + 1 == steps:
                means = {k: float(np.mean([float(m[k]) for m in recent])) for k in metrics}
                if not all(np.isfinite(value) for value in means.values()):
                    raise FitError(
                        f"{name}: the loss is not finite at step {step + 1} ({means}); the last "
                        f"good checkpoint is {checkpoint}. Lower the learning rate, or look at "
                        "the data with `python -m training data`."
                    )
                rate = len(recent) * examples_a_batch / (time.monotonic() - since)
                line = {"step": step + 1, "per_second": round(rate, 1), **means}
                if validate:
                    line |= {f"held_out_{k}": v for k, v in validate(state).items()}
                save_checkpoint(state, step + 1, checkpoint, config)
                _append(out / "metrics.jsonl", line)
                bar.advance(
                    0, note=" ".join(f"{k} {v:.3g}" for k, v in line.items() if k != "step")
                )
                recent, since = [], time.monotonic()
    return state


def _append(path: Path, line: dict[str, float]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n")
