"""Worlds and controllers on disk: safetensors files that say what they are and notice damage.

The header carries `format`, `format_version`, `kind`, `config` and `provenance` (JSON), and a
SHA-256 `checksum` of the tensors. Arrays may be stored in float16; in memory they are float32. A
world's config names its task, where that is not CarRacing, and the shipped world whose V it has,
where it leaves out V's tensors: V is five sixths of a world.
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
import safetensors
import safetensors.numpy

from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.task import CAR_RACING, Task, marked, task_named
from wm_env.vae import VAE, VAEConfig
from wm_env.world_model import Metadata, StartStates, WorldModel

FORMAT = "wm_env"
FORMAT_VERSION = "1"
ASSETS = Path(__file__).parent / "assets"
HUB_SCHEME = "hf://"

_SUFFIX = ".safetensors"
_VAE_OF = "vae_of"  # in a config: the shipped world that has the tensors of V, left out here


class WeightsError(ValueError):
    """A weights file cannot be used; the message tells what was found, expected, and what to do."""


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
    with np.errstate(over="ignore"):  # `_write` refuses what overflowed, by name
        tensors = {name: np.asarray(leaf, dtype) for name, leaf in _named_leaves(world).items()}
    if vae_of is not None:
        _check_shared(path, tensors, vae_of)
    config = {
        "vae": dataclasses.asdict(world.vae.config),
        "mdn_rnn": dataclasses.asdict(world.mdn_rnn.config),
        "starts": {"first": len(world.starts.first_z), "middle": len(world.starts.z)},
        **world.task.mark,
        **({} if vae_of is None else {_VAE_OF: vae_of}),
    }
    provenance = {**world.metadata, **(metadata or {})}
    _write(tensors, path, kind="world", config=config, provenance=provenance)


def load_world(path_or_shipped_name: str | os.PathLike = "carracing") -> WorldModel:
    """Read a world as float32: from a file, a shipped one by its name, or hf://OWNER/NAME.

    Raises:
        WeightsError: it cannot be fetched; or the file is missing, damaged, foreign, of another
            kind or version, or its tensors do not fit its config.
    """
    path = _resolve(path_or_shipped_name)
    tensors, config, provenance = _read(path, kind="world")
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
    _write(tensors, path, kind="controller", config={}, provenance=dict(metadata or {}))


def load_controller(
    path_or_shipped_name: str | os.PathLike = "carracing_controller",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a controller: its arrays by name, and its metadata.

    Raises:
        WeightsError: as for `load_world`.
    """
    tensors, _, provenance = _read(_resolve(path_or_shipped_name), kind="controller")
    return tensors, provenance


def checksum_of(path_or_shipped_name: str | os.PathLike) -> str:
    """The checksum that a file of weights says it has, without reading the weights.

    Raises:
        WeightsError: there is no such file, or it is none of ours.
    """
    return _header(_resolve(path_or_shipped_name), "checksum")


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
    path = _resolve(path_or_shipped_name)
    config = _header(path, "config")
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


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in ASSETS.glob(f"*{_SUFFIX}"))


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Put `content` at `path` whole or not at all, whenever the process may die."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _vae_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vae.")}


def _check_shared(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], vae_of: str) -> None:
    """Look whether a world to be written has the V of a shipped one, another than itself."""
    shipped = _resolve(vae_of)
    if shipped.resolve() == Path(path).resolve():
        raise WeightsError(f"{path} cannot leave its V to itself; write it without vae_of.")
    ours, theirs = _vae_tensors(tensors), _vae_tensors(_read(shipped, kind="world")[0])
    if _checksum(ours) != _checksum(theirs):
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


def _resolve(path_or_shipped_name: str | os.PathLike) -> Path:
    if not isinstance(path_or_shipped_name, str | os.PathLike):
        raise WeightsError(
            f"weights are given as {path_or_shipped_name!r}; expected the path of a {_SUFFIX} file "
            f"or the name of shipped weights, which are {shipped_names()}."
        )
    if str(path_or_shipped_name).startswith(HUB_SCHEME):
        from wm_env.hub import fetch  # needs an extra

        return fetch(str(path_or_shipped_name))
    path = Path(path_or_shipped_name)
    if path.is_file():
        return path
    shipped = ASSETS / f"{path_or_shipped_name}{_SUFFIX}"
    if path.name == str(path_or_shipped_name) and shipped.is_file():
        return shipped
    raise WeightsError(
        f"no weights at {str(path_or_shipped_name)!r}: neither a file nor the name of shipped "
        f"weights, which are {shipped_names()}. Give the path of a {_SUFFIX} file, or the address "
        "hf://OWNER/NAME of a world on the Hugging Face Hub, or make it: "
        "python -m training memory writes a world, evolve a controller."
    )


def _header(path: Path, field: str) -> str:
    """One of the fields of a file's header."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {})[field]
    except (safetensors.SafetensorError, KeyError, OSError) as error:
        raise WeightsError(
            f"{path}: not a file of weights ({error!r}). Copy or download it again, or give one "
            "written by save_world or save_controller."
        ) from error


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _write(
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    kind: str,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    for name, array in tensors.items():
        if not np.all(np.isfinite(array)):
            raise WeightsError(
                f"{name} is not finite in {array.dtype}; expected finite weights. Train from an "
                "earlier checkpoint, or store in float32 when float16 overflows."
            )
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": json.dumps(config),
        "provenance": json.dumps(provenance),
        "checksum": _checksum(tensors),
    }
    left_out = _vae_tensors(tensors).keys() if _VAE_OF in config else ()
    contiguous = {
        name: np.asarray(array, order="C")
        for name, array in tensors.items()
        if name not in left_out
    }
    write_atomically(path, safetensors.numpy.save(contiguous, header))


def _read(path: Path, *, kind: str) -> tuple[dict[str, np.ndarray], dict, dict]:
    """Tensors, config and provenance of a checked file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            _check_header(path, header, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = dict(json.loads(header["config"]))
        provenance = dict(json.loads(header["provenance"]))
        if _VAE_OF in config:
            tensors |= _vae_tensors(_read(_resolve(config[_VAE_OF]), kind="world")[0])
    except (
        safetensors.SafetensorError,
        json.JSONDecodeError,
        KeyError,
        OSError,
        TypeError,
    ) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}); it was cut off or is of another "
            "format. Copy or download it again, or write it with save_world / save_controller."
        ) from error
    found = _checksum(tensors)
    if found != header.get("checksum"):
        raise WeightsError(
            f"{path}: the tensors' checksum is {found}, the header says "
            f"{header.get('checksum')}; the file is damaged"
            + (f", or the V of {config[_VAE_OF]!r} is another" if _VAE_OF in config else "")
            + ". Copy or download it again."
        )
    return tensors, config, provenance


def _check_header(path: Path, header: Mapping[str, str], kind: str) -> None:
    expected = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind}
    remedies = {
        "format": "It comes from other software; give a file written by save_world.",
        "format_version": "Install the wm_env release that wrote it, or write it again.",
        "kind": "Read worlds with load_world and controllers with load_controller.",
    }
    for field, value in expected.items():
        if header.get(field) != value:
            raise WeightsError(
                f"{path}: {field} is {header.get(field)!r}; expected {value!r}. {remedies[field]}"
            )
