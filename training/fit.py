"""The fitting loop that V and M share: compiled steps, metrics, checkpoints, early stopping.

A fit that was interrupted goes on from its checkpoint and ends, on a CPU, with the very weights
that it would have had: keys and the order of the data are functions of the step.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from training.devices import Devices, check_same_start, gather, is_first
from training.metrics import MetricsLog
from training.watch import Watch
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.progress import Bar, progress_bar


@dataclass(frozen=True)
class FitConfig:
    """How much a model is fitted on at a time, how long, and how fast it learns.

    The learning rate rises over `warm_up` steps, or a tenth of all, and falls to nothing along a
    cosine. `patience` ends a fit before that fall, with the best weights so far: it saves time
    where things are tried out, and is off by default.
    """

    batch: int = 128
    steps: int = 2000
    learning_rate: float = 1e-3
    warm_up: int = 100
    clip: float = 1.0  # of the norm of the whole gradient
    seed: int = 0
    every: int = 100  # steps: a held-out loss, a line of metrics and a checkpoint
    patience: int | None = None  # held-out losses in a row that are not the lowest so far
    pictures_every: int = 1000  # steps, at the next held-out loss; 0: only at the end


def adam(config: FitConfig) -> optax.GradientTransformation:
    """Adam on clipped gradients, with the config's learning rates."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warm_up, config.steps // 10),
        config.steps,
        config.learning_rate * 0.02,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))


class Best(NamedTuple):
    """The model with the lowest held-out loss so far, that loss, and its step."""

    model: Any
    loss: jax.Array
    step: jax.Array


class Progress(NamedTuple):
    """All that a fit needs to go on, as it is in a checkpoint; `best` only with patience."""

    state: Any
    best: Best | None
    first_loss: jax.Array  # NaN before there is one


def fit(
    name: str,
    state: Any,
    train_step: Callable[[Any, Any, jax.Array], tuple[Any, dict[str, jax.Array]]],
    batches: Callable[[int], Iterator[Any]],
    validate: Callable[[Any], dict[str, float]],
    *,
    config: FitConfig,
    data: str,
    out: Path,
    unit: int = 1,
    begun_from: str | None = None,
    pictures: Callable[[Any], None] | None = None,
) -> Any:
    """Fit a model, from `out/checkpoint.safetensors` on where there is one; returns it.

    Args:
        name: what people call the model.
        state: a named tuple, the model first; it is used up.
        train_step: `(state, batch, key)` to the next state and its metrics, "loss" among them.
        batches: from a step on; of several processes each gives its share of every batch.
        validate: a model's figures on held-out data, "loss" among them.
        config: a checkpoint of another one is refused, and so is one of other data.
        data: the name of the data, see `data_name`.
        out: the folder of checkpoint, `metrics.jsonl` and event files.
        begun_from: the name of the weights that the fit goes on from; of others a checkpoint is
            refused.
        unit: what one example of a batch counts in the rate "per_second".
        pictures: draws those of a model, now and then and at the end; one that fails is told on
            stderr and ends nothing.

    Raises:
        FitError: a loss is not finite, or has exploded.
        CheckpointError: the checkpoint is damaged, or of another config or other data.
    """
    checkpoint, devices = out / "checkpoint.safetensors", Devices(config.batch)
    about = {**asdict(config), "data": data, "processes": jax.process_count()}
    if begun_from:
        about["begun_from"] = begun_from
    del about["pictures_every"]  # another number of it changes no weight
    (state, best, first_loss), done = _begin(state, config, checkpoint, about)
    state, best, key = *devices.replicate((state, best)), devices.key(config.seed + 1)
    watch = Watch(
        name, checkpoint, saved=done, first_loss=float(first_loss), examples=config.batch * unit
    )
    stream = batches(done)
    with MetricsLog(out, after=done) as log, _bar(name, config, done) as bar:
        while done < config.steps and not _is_stale(best, done, config):
            batch = next(stream)  # an accelerator is still at the step before
            state, metrics = train_step(state, devices.split(batch), jax.random.fold_in(key, done))
            done += 1
            watch.add(done, batch, metrics)
            bar.advance(1)
            if done % config.every == 0 or done == config.steps:
                line = watch.means()
                held_out = validate(state[0])
                watch.check(done, batch, held_out["loss"], "held-out loss")
                best = _better(best, state[0], held_out["loss"], done)
                line |= {f"held_out_{part}": value for part, value in held_out.items()}
                log.write(done, line)
                bar.advance(0, note=" ".join(f"{k} {v:.3g}" for k, v in line.items()))
                # Before the checkpoint: a fit that is done has all of its pictures.
                if pictures and is_first() and _shows(best, done, config):
                    _draw(pictures, gather(best.model if best else state[0]), bar, done)
                if is_first():
                    now = Progress(state, best, jnp.float32(watch.first_loss))
                    save_checkpoint(now, done, checkpoint, about)
                watch.begin_interval(saved=done)
    return gather(best.model if best else state[0])


def data_name(marks: Sequence[str]) -> str:
    """A name for training data from what marks each of its files, such as a checksum of it.

    Files in another order are other data: batches depend on it.
    """
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    return f"{len(marks)} shards, sha256 {digest[:16]}"


def _begin(
    state: Any, config: FitConfig, checkpoint: Path, about: dict[str, Any]
) -> tuple[Progress, int]:
    best = None
    if config.patience is not None:
        best = Best(_copy(state[0]), jnp.float32(jnp.inf), jnp.int32(0))
    progress, done = Progress(state, best, jnp.float32(jnp.nan)), 0
    if checkpoint.exists():
        progress, done = load_checkpoint(progress, checkpoint, about)
    check_same_start(done)
    return progress, done


def _bar(name: str, config: FitConfig, done: int) -> AbstractContextManager[Bar]:
    return progress_bar(name, total=config.steps, done=done, show=is_first())


def _is_stale(best: Best | None, done: int, config: FitConfig) -> bool:
    if best is None or config.patience is None:
        return False
    return done - int(best.step) >= config.patience * config.every


def _shows(best: Best | None, done: int, config: FitConfig) -> bool:
    """Whether pictures are due at this held-out loss."""
    due = 0 < config.pictures_every and done % config.pictures_every < config.every
    return due or done == config.steps or _is_stale(best, done, config)


def _draw(pictures: Callable[[Any], None], model: Any, bar: Bar, done: int) -> None:
    try:
        pictures(model)
    except Exception as error:  # hours of fitting must not end by a full disk or a missing font
        told = f"{type(error).__name__}: {error}"
        bar.say(f"warning: the fit goes on without pictures of step {done}: {told}")


def _better(best: Best | None, model: Any, loss: float, step: int) -> Best | None:
    if best is None or loss >= float(best.loss):
        return best
    return Best(_copy(model), jnp.float32(loss), jnp.int32(step))


def _copy(model: Any) -> Any:
    # The train step uses its state up, so what is to be kept needs arrays of its own.
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, model)
