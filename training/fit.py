"""The fitting loop that V and M share: compiled steps, metrics, checkpoints, and a stop when the loss explodes."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from training.progress import progress_bar
from training.store import publish

_State = TypeVar("_State")


class FitError(RuntimeError):
    """A fit that cannot go on: the message names the step and the last good checkpoint."""


def save_state(state: Any, step: int, path: Path) -> None:
    """Write the arrays of a pytree and its step to one safetensors file, atomically."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array))]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{index:05d}": np.ascontiguousarray(leaf) for index, leaf in enumerate(leaves)},
        temporary,
        metadata={"step": str(step), "format": "wm_env.checkpoint", "format_version": "1"},
    )
    publish(temporary, path)


def load_state(like: _State, path: Path) -> tuple[_State, int]:
    """Read what `save_state` wrote into a pytree of the same structure; returns it and its step.

    Raises:
        FitError: when the file is not a checkpoint, or one of another model.
    """
    arrays, static = eqx.partition(like, eqx.is_array)
    leaves, treedef = jax.tree.flatten(arrays)
    remedy = "remove it, or run with the configuration that wrote it."
    try:
        with safe_open(path, framework="numpy") as file:
            step = int((file.metadata() or {})["step"])
            loaded = [file.get_tensor(name) for name in sorted(file.keys())]
    except Exception as error:  # safetensors raises its own kinds, and KeyError where the step is missing
        raise FitError(f"checkpoint {path} cannot be read ({error!r}); {remedy}") from error
    if [leaf.shape for leaf in loaded] != [leaf.shape for leaf in leaves]:
        raise FitError(f"checkpoint {path} holds arrays of other shapes than this model; {remedy}")
    loaded = [jax.numpy.asarray(new, old.dtype) for new, old in zip(loaded, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(treedef, loaded), static), step


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
    examples_a_batch: int,
    validate: Callable[[_State], dict[str, float]] | None = None,
    every: int = 200,
) -> _State:
    """Run `train_step` from step `start` to `steps`.

    Every `every` steps: a line in `metrics.jsonl` (means since the last one, rate, held-out figures) and a
    checkpoint `checkpoint.safetensors`, both under `out`.

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
                        f"{name}: the loss is not finite at step {step + 1} ({means}); the last good checkpoint is {checkpoint}. "
                        "Lower the learning rate, or look at the data with `python -m training data`."
                    )
                rate = len(recent) * examples_a_batch / (time.monotonic() - since)
                line = {"step": step + 1, "per_second": round(rate, 1), **means}
                if validate:
                    line |= {f"held_out_{k}": v for k, v in validate(state).items()}
                _append(out / "metrics.jsonl", line)
                save_state(state, step + 1, checkpoint)
                bar.advance(0, note=" ".join(f"{k} {v:.3g}" for k, v in line.items() if k != "step"))
                recent, since = [], time.monotonic()
    return state


def _append(path: Path, line: dict[str, float]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n")
