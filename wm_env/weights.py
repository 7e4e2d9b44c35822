"""Worlds and controllers on disk: files that say what they are and notice damage.

Arrays may be stored in float16; in memory they are float32. A world's config names its task, where
that is not CarRacing.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.task import CAR_RACING, Task, marked, task_named
from wm_env.vae import VAE, VAEConfig
from wm_env.weights_file import (
    VAE_OF,
    WeightsError,
    header_field,
    read_weights,
    resolve,
    tensors_checksum,
    vae_tensors,
    write_weights,
)
from wm_env.world_model import Metadata, StartStates, WorldModel


def save_world(
    world: WorldModel,
    path: str | os.PathLike,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    metadata: Mapping[str, Any] | None = None,
    vae_of: str | None = None,
) -> None:
    """Write a world atomically. `metadata` (JSON-able) is added to what the world itself carries.

    `vae_of` names a shipped world of the same V, whose tensors the file then leaves out; it can be
    read where that world is shipped. Its checksum is the same as if it held them.

    Raises:
        WeightsError: a weight is not finite, or overflows `dtype`; or V is not that of `vae_of`.
    """
    with np.errstate(over="ignore"):  # `write_weights` refuses what overflowed, by name
        tensors = {name: np.asarray(leaf, dtype) for name, leaf in _named_leaves(world).items()}
    if vae_of is not None:
        _check_shared(path, tensors, vae_of)
    config = {
        "vae": dataclasses.asdict(world.vae.config),
        "mdn_rnn": dataclasses.asdict(world.mdn_rnn.config),
        "starts": {"first": len(world.starts.first_z), "middle": len(world.starts.z)},
        **world.task.mark,
        **({} if vae_of is None else {VAE_OF: vae_of}),
    }
    provenance = {**world.metadata, **(metadata or {})}
    write_weights(tensors, path, kind="world", config=config, provenance=provenance)


def load_world(path_or_shipped_name: str | os.PathLike = "carracing") -> WorldModel:
    """Read a world as float32: from a file, a shipped one by its name, or hf://OWNER/NAME.

    Raises:
        WeightsError: it cannot be fetched; or the file is missing, damaged, foreign, of another
            kind or version, or its tensors do not fit its config.
    """
    path = resolve(path_or_shipped_name)
    tensors, config, provenance = read_weights(path, kind="world")
    try:
        template = _world_template(config)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its config {config} does not describe a world ({error!r}); expected the "
            "fields of VAEConfig and MDNRNNConfig, and a known task. Write the file again with "
            "save_world."
        ) from error
    leaves, structure = jax.tree.flatten(template)
    names = list(_named_leaves(template))
    if set(names) != set(tensors):
        raise WeightsError(
            f"{path}: lacks tensors {sorted(set(names) - set(tensors))} and has unexpected "
            f"{sorted(set(tensors) - set(names))}; expected those that its config implies. "
            "Write the file again with save_world."
        )
    for name, leaf in zip(names, leaves, strict=True):
        if tensors[name].shape != leaf.shape:
            raise WeightsError(
                f"{path}: tensor {name} has shape {tensors[name].shape}; its config implies "
                f"{leaf.shape}. Write the file again with save_world."
            )
    # A world may be loaded while a program is traced (default parameters); its arrays are values.
    with jax.ensure_compile_time_eval():
        arrays = [jnp.asarray(tensors[name], jnp.float32) for name in names]
    world = jax.tree.unflatten(structure, arrays)
    return dataclasses.replace(world, metadata=Metadata(provenance))


def world_for(task: Task | None, world_model: WorldModel | str | os.PathLike | None) -> WorldModel:
    """The world that is given, by itself, its file or its name; None is the task's shipped one.

    A task of None is the world's own, or without a world CarRacing.

    Raises:
        WeightsError: the world is of another task, or cannot be loaded, or none is shipped.
    """
    if world_model is None:
        world_model = world_name(CAR_RACING if task is None else task, None)
    world = world_model if isinstance(world_model, WorldModel) else load_world(world_model)
    if task is not None and world.task != task:
        named = "the world" if isinstance(world_model, WorldModel) else f"the world {world_model}"
        raise WeightsError(
            f"{named} is of {world.task.id}; expected one of {task.id}. It dreams as "
            f"{world.task.dream_id}."
        )
    return world


def world_name(task: Task, given: str | os.PathLike | None) -> str | os.PathLike:
    """The file or name of the world that is given; None is the task's shipped one.

    Raises:
        WeightsError: none is shipped.
    """
    return _named(
        given,
        task.world,
        f"no world of {task.id} is shipped; expected world_model=, a WorldModel or the path of "
        f"one. Make one: python -m training all --env {task.id} --preset laptop --out DIR "
        "writes DIR/world.safetensors.",
    )


def controller_name(task: Task, given: str | os.PathLike | None) -> str | os.PathLike:
    """The file or name of the controller that is given; None is the task's shipped one.

    Raises:
        WeightsError: none is shipped.
    """
    return _named(
        given,
        task.controller,
        f"no controller of {task.id} is shipped; expected the path of one. Evolve one: python "
        "-m agents evolve --world WORLD.safetensors.",
    )


def _named(given: str | os.PathLike | None, shipped: str | None, missing: str) -> str | os.PathLike:
    name = shipped if given is None else given
    if name is None:
        raise WeightsError(missing)
    return name


def save_controller(
    arrays: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a controller's arrays (float32) atomically, with JSON-able `metadata`.

    Raises:
        WeightsError: an array is not finite.
    """
    tensors = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    write_weights(tensors, path, kind="controller", config={}, provenance=dict(metadata or {}))


def load_controller(
    path_or_shipped_name: str | os.PathLike = "carracing_controller",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a controller: its arrays by name, and its metadata.

    Raises:
        WeightsError: as for `load_world`.
    """
    tensors, _, provenance = read_weights(resolve(path_or_shipped_name), kind="controller")
    return tensors, provenance


def checksum_of(path_or_shipped_name: str | os.PathLike) -> str:
    """The checksum that a file of weights says it has, without reading the weights.

    Raises:
        WeightsError: there is no such file, or it is none of ours.
    """
    return header_field(resolve(path_or_shipped_name), "checksum")


def task_told(task: Task | str | None, world_model: WorldModel | str | os.PathLike | None) -> Task:
    """The task that is told, or else that of the world, of whose file only the header is read.

    Raises:
        ValueError: an unknown task.
        WeightsError: as for `task_of`.
    """
    if task is not None:
        return task_named(task)
    if world_model is None:
        return CAR_RACING
    return world_model.task if isinstance(world_model, WorldModel) else task_of(world_model)


def task_of(path_or_shipped_name: str | os.PathLike) -> Task:
    """The task that a world's file names, without reading the weights.

    Raises:
        WeightsError: there is no such file, or it is none of ours, or its task is unknown.
    """
    path = resolve(path_or_shipped_name)
    config = header_field(path, "config")
    try:
        return marked(dict(json.loads(config)))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its config names no known task ({error}). Write the file again with "
            "save_world."
        ) from error


def digest_of(tree: Any, *, salt: bytes = b"") -> str:
    """SHA-256 of `salt` and the bytes of a pytree's arrays, in whatever shapes."""
    digest = hashlib.sha256(salt)
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _check_shared(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], vae_of: str) -> None:
    """Look whether a world to be written has the V of a shipped one, another than itself."""
    shipped = resolve(vae_of)
    if shipped.resolve() == Path(path).resolve():
        raise WeightsError(f"{path} cannot leave its V to itself; write it without vae_of.")
    ours, theirs = vae_tensors(tensors), vae_tensors(read_weights(shipped, kind="world")[0])
    if tensors_checksum(ours) != tensors_checksum(theirs):
        raise WeightsError(
            f"{path}: the V of {vae_of!r} is not this world's, or not in the same dtype. Write it "
            "without vae_of."
        )


def _world_template(config: Mapping[str, Any]) -> WorldModel:
    """A WorldModel of shapes without values."""
    vae: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in config["vae"].items()}
    vae_config, mdn_rnn_config = VAEConfig(**vae), MDNRNNConfig(**config["mdn_rnn"])
    first, middle = config["starts"]["first"], config["starts"]["middle"]
    latent = mdn_rnn_config.latent_size

    def build() -> WorldModel:
        key = jax.random.key(0)
        vae, mdn_rnn = VAE(vae_config, key=key), MDNRNN(mdn_rnn_config, key=key)
        carries = mdn_rnn.initial_carries(middle)
        starts = StartStates(
            first_z=jnp.zeros((first, latent)),
            z=jnp.zeros((middle, latent)),
            h=carries.h,
            c=carries.c,
            motion=carries.motion,
        )
        return WorldModel(vae, mdn_rnn, starts, task=marked(config))

    return jax.eval_shape(build)
