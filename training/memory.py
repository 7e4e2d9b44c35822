"""Fitting M: what happens next, given the latent that the driver saw and what it did."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from safetensors import safe_open

from training.dataset import Windows, WindowStream
from training.devices import is_first, own_share, wait_for_all
from training.fit import adam, data_name, fit
from training.latents import LatentShard
from training.memory_loss import MemoryConfig, memory_loss
from wm_env.checkpoint import load_checkpoint, save_checkpoint
from wm_env.mdn_rnn import MDNRNN
from wm_env.weights import digest_of

_RARE = -7.0  # log odds: once in 1,100 frames


class MemoryState(NamedTuple):
    """The members of an ensemble of M, stacked along a first axis, and their optimizers' states."""

    mdn_rnns: MDNRNN
    optimizers: optax.OptState


def new_state(config: MemoryConfig, members: Sequence[MDNRNN] = ()) -> MemoryState:
    """Fresh M's (or some to fine-tune) with fresh optimizers.

    Raises:
        ValueError: there are other than `config.members` to fine-tune.
    """
    if members and len(members) != config.members:
        raise ValueError(
            f"{len(members)} M's are to be fine-tuned, but members is {config.members}; expected "
            "as many. Give all that were fitted together, or change members."
        )
    keys = jax.random.split(jax.random.key(config.seed), config.members)
    members = members or [_rarely_falling(MDNRNN(config.mdn_rnn, key=key)) for key in keys]
    mdn_rnns = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return MemoryState(mdn_rnns, jax.vmap(adam(config).init)(mdn_rnns))


def _rarely_falling(mdn_rnn: MDNRNN) -> MDNRNN:
    """M that begins by expecting a fall about as rarely as there are some.

    From an even chance a short fit does not come down to that, and its dreams end in no time.
    Source: the prior of Lin et al. (2017), "Focal loss for dense object detection", 4.1.
    """
    return eqx.tree_at(
        lambda m: m.head_bias, mdn_rnn, replace_fn=lambda bias: bias.at[-1].set(_RARE)
    )


def make_batch_loss(
    config: MemoryConfig,
) -> Callable[[MDNRNN, Windows, Array], tuple[Array, dict[str, Array]]]:
    """`batch_loss(mdn_rnn, windows [b, ...], key)`: the mean loss of a step, and its parts."""

    def batch_loss(mdn_rnn: MDNRNN, windows: Windows, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, len(windows.z))
        losses, parts = jax.vmap(
            lambda window, key: memory_loss(mdn_rnn, window, key=key, config=config)
        )(windows, keys)
        count = jnp.maximum(windows.weight.sum(), 1.0)
        return losses.sum() / count, jax.tree.map(lambda part: part.sum() / count, parts)

    return batch_loss


def make_train_step(
    config: MemoryConfig,
) -> Callable[[MemoryState, Windows, Array], tuple[MemoryState, dict[str, Array]]]:
    """`train_step(state, windows [b, ...], key)`, compiled. The state that goes in is used up."""
    optimizer = adam(config)
    gradient_of = eqx.filter_value_and_grad(make_batch_loss(config), has_aux=True)

    @eqx.filter_jit(donate="all-except-first")
    def train_step(
        windows: Windows, state: MemoryState, key: Array
    ) -> tuple[MemoryState, dict[str, Array]]:
        def improve(
            mdn_rnn: MDNRNN, optimizer_state: optax.OptState, key: Array
        ) -> tuple[MDNRNN, optax.OptState, dict[str, Array]]:
            (loss, parts), gradient = gradient_of(mdn_rnn, windows, key)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            return eqx.apply_updates(mdn_rnn, updates), optimizer_state, {"loss": loss, **parts}

        keys = jax.random.split(key, config.members)
        *after, metrics = _each(improve, config)(state.mdn_rnns, state.optimizers, keys)
        return MemoryState(*after), jax.tree.map(jnp.mean, metrics)

    return lambda state, windows, key: train_step(windows, state, key)


def fit_memory(
    shards: list[LatentShard],
    config: MemoryConfig,
    out: Path,
    *,
    begin_from: Sequence[MDNRNN] = (),
    pictures: Callable[[MDNRNN], None] | None = None,
) -> list[MDNRNN]:
    """Fit the members on latents; goes on from `out/checkpoint.safetensors`.

    Leaves `mdn_rnn.safetensors` (those of further members are numbered) and metrics in `out`.
    `begin_from` are M's to fit on; `pictures` draws those of the first member, as `fit` asks for
    them.

    Raises:
        ValueError: M is to follow the motion of a car that the task has not, or to heed its road.
    """
    _check_task(config, shards)
    whole = config.length is None
    length = config.length or max(row.length for shard in shards for row in shard.rows)
    burn_in = 0 if whole else config.burn_in
    stream = partial(
        WindowStream,
        length=length,
        burn_in=burn_in,
        whole=whole,
        trouble=config.trouble_weight,
        seed=config.seed,
    )
    validating = min(32, sum(len(shard.rows) > 1 for shard in shards))  # those that hold one out
    held_out = next(stream(shards, batch=max(1, validating), held_out=True, group=96).batches())
    batch_loss = make_batch_loss(config)

    @eqx.filter_jit
    def evaluate(mdn_rnns: MDNRNN, windows: Windows) -> dict[str, Array]:
        of_windows = lambda mdn_rnn: batch_loss(mdn_rnn, windows, jax.random.key(1))  # noqa: E731
        losses, parts = _each(of_windows, config)(mdn_rnns)
        return jax.tree.map(jnp.mean, {"loss": losses, **parts})

    def validate(mdn_rnns: MDNRNN) -> dict[str, float]:
        return {name: float(value) for name, value in evaluate(mdn_rnns, held_out).items()}

    def batches(step: int) -> Iterator[Windows]:
        share = config.batch // jax.process_count()
        return stream(own_share(shards), batch=share).batches(step)

    mdn_rnns = fit(
        "M",
        new_state(config, begin_from),
        make_train_step(config),
        batches,
        validate,
        config=config,
        data=data_of(shards),
        out=out,
        unit=length,
        begun_from=digest_of(begin_from) if begin_from else None,
        pictures=pictures and (lambda mdn_rnns: pictures(_members(mdn_rnns, 1)[0])),
    )
    members = _members(mdn_rnns, config.members)
    if is_first():
        for mdn_rnn, path in zip(
            members, member_paths(config, out / "mdn_rnn.safetensors"), strict=True
        ):
            save_checkpoint(mdn_rnn, config.steps, path)
    wait_for_all("M is written")
    return members


def _check_task(config: MemoryConfig, shards: Sequence[LatentShard]) -> None:
    if config.trouble_weight != 1.0 and not shards[0].task.pays_tiles:
        raise ValueError(
            f"trouble_weight is {config.trouble_weight}, but {shards[0].task.id} has no road that "
            "could be lost; expected 1."
        )
    if config.mdn_rnn.motion and not shards[0].task.pays_tiles:
        raise ValueError(
            f"M's motion is True, but {shards[0].task.id} has no car whose motion could be told; "
            "expected False."
        )


def load_memory(config: MemoryConfig, out: Path) -> list[MDNRNN]:
    """The members that `fit_memory` left in `out`."""
    like = MDNRNN(config.mdn_rnn, key=jax.random.key(0))
    return [
        load_checkpoint(like, path)[0] for path in member_paths(config, out / "mdn_rnn.safetensors")
    ]


def member_paths(config: MemoryConfig, path: Path) -> list[Path]:
    """A file for each member of an ensemble: `path` is the first's, then `NAME-2`, `NAME-3`, ..."""
    others = range(2, config.members + 1)
    return [path, *(path.with_stem(f"{path.stem}-{number}") for number in others)]


def data_of(shards: Sequence[LatentShard]) -> str:
    """The name of what M learns from: the V and the images that the latents were made of."""
    marks = []
    for shard in shards:
        with safe_open(shard.path, framework="numpy") as file:
            marks.append(json.dumps(file.metadata(), sort_keys=True))
    return data_name(marks)


def _each(function: Callable[..., Any], config: MemoryConfig) -> Callable[..., Any]:
    """`function` of each member, along the first axis of everything."""
    if config.members > 1:
        return jax.vmap(function)
    # On a CPU even an axis of 1 makes a tenth slower.
    first, stacked = lambda leaf: leaf[0], lambda leaf: leaf[None]
    return lambda *trees: jax.tree.map(stacked, function(*jax.tree.map(first, trees)))


def _members(mdn_rnns: MDNRNN, count: int) -> list[MDNRNN]:
    return [jax.tree.map(lambda leaf, at=at: leaf[at], mdn_rnns) for at in range(count)]
