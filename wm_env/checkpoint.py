"""Checkpoints: any pytree's arrays and a step number in one safetensors file, whole or absent."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import safe_open

from wm_env.storage import write_atomically

_Tree = TypeVar("_Tree")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message says which, what is wrong and what to do."""


def save_checkpoint(
    tree: Any, step: int, path: str | os.PathLike, config: Mapping[str, Any] | None = None
) -> None:
    """Write the arrays of `tree` in their own dtypes, with `step` and `config`, atomically."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    tensors = {f"{index:05d}": np.asarray(leaf, order="C") for index, leaf in enumerate(leaves)}
    header = {"format": "wm_env.checkpoint", "format_version": "1", "step": str(step)}
    header["config"] = _as_json(config)
    write_atomically(path, safetensors.numpy.save(tensors, header))


def load_checkpoint(
    like: _Tree, path: str | os.PathLike, config: Mapping[str, Any] | None = None
) -> tuple[_Tree, int]:
    """Read a checkpoint into a pytree with the structure and dtypes of `like`.

    Returns it and the step.

    Raises:
        CheckpointError: when the file is missing, damaged, not a checkpoint, one of another model,
            or, where `config` is given, one that another configuration wrote.
    """
    arrays, static = eqx.partition(like, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    path = Path(path)
    remedy = "Remove it to begin anew, or use the configuration that wrote it."
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; run the stage that writes it first.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            step = int(header["step"])
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
    except Exception as error:  # safetensors has its own errors; a missing step is a KeyError
        raise CheckpointError(f"{path} is not a whole checkpoint ({error!r}). {remedy}") from error
    found, expected = [t.shape for t in tensors], [leaf.shape for leaf in leaves]
    if header.get("format") != "wm_env.checkpoint" or found != expected:
        raise CheckpointError(
            f"{path} holds {len(found)} arrays of a {header.get('format')}, not the "
            f"{len(expected)} of this model with its sizes. {remedy}"
        )
    if config is not None and header.get("config") != _as_json(config):
        wrote, given = json.loads(header.get("config") or "{}") or {}, json.loads(_as_json(config))
        changes = "; ".join(
            f"{name} was {wrote.get(name)!r} and is {given.get(name)!r}"
            for name in sorted({*wrote, *given})
            if wrote.get(name) != given.get(name)
        )
        raise CheckpointError(f"{path} was written by another configuration: {changes}. {remedy}")
    restored = [jnp.asarray(new, old.dtype) for new, old in zip(tensors, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, restored), static), step


def _as_json(config: Mapping[str, Any] | None) -> str:
    return json.dumps(config, sort_keys=True, default=str)
