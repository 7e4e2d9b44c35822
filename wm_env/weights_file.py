"""Files of weights: safetensors with a header that says what they are, by path, name or address.

The header carries `format`, `format_version`, `kind`, `config` and `provenance` (JSON), and a
SHA-256 `checksum` of the tensors. A world's config names the shipped world whose V it has, where
the file leaves out V's tensors: V is five sixths of a world.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from wm_env.storage import write_atomically

FORMAT = "wm_env"
FORMAT_VERSION = "1"
ASSETS = Path(__file__).parent / "assets"
HUB_SCHEME = "hf://"
VAE_OF = "vae_of"  # in a config: the shipped world that has the tensors of V, left out here

_SUFFIX = ".safetensors"


class WeightsError(ValueError):
    """A weights file cannot be used; the message tells what was found, expected, and what to do."""


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in ASSETS.glob(f"*{_SUFFIX}"))


def resolve(path_or_shipped_name: str | os.PathLike) -> Path:
    """The file that a path, a shipped name or an address hf://OWNER/NAME stands for.

    Raises:
        WeightsError: there is none.
    """
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


def header_field(path: Path, field: str) -> str:
    """One of the fields of a file's header, without reading the tensors.

    Raises:
        WeightsError: it is no file of weights, or has no such field.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {})[field]
    except (safetensors.SafetensorError, KeyError, OSError) as error:
        raise WeightsError(
            f"{path}: not a file of weights ({error!r}). Copy or download it again, or give one "
            "written by save_world or save_controller."
        ) from error


def write_weights(
    tensors: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    kind: str,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a file atomically; V's tensors are left out where `config` names whose they are.

    Raises:
        WeightsError: a tensor is not finite.
    """
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
        "checksum": tensors_checksum(tensors),
    }
    left_out = vae_tensors(tensors).keys() if VAE_OF in config else ()
    contiguous = {
        name: np.asarray(array, order="C")
        for name, array in tensors.items()
        if name not in left_out
    }
    write_atomically(path, safetensors.numpy.save(contiguous, header))


def read_weights(path: Path, *, kind: str) -> tuple[dict[str, np.ndarray], dict, dict]:
    """Tensors, config and provenance of a file, V's tensors from wherever they are.

    Raises:
        WeightsError: it is missing, damaged, foreign, or of another kind or version.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            _check_header(path, header, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = dict(json.loads(header["config"]))
        provenance = dict(json.loads(header["provenance"]))
        if VAE_OF in config:
            tensors |= vae_tensors(read_weights(resolve(config[VAE_OF]), kind="world")[0])
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
    found = tensors_checksum(tensors)
    if found != header.get("checksum"):
        raise WeightsError(
            f"{path}: the tensors' checksum is {found}, the header says "
            f"{header.get('checksum')}; the file is damaged"
            + (f", or the V of {config[VAE_OF]!r} is another" if VAE_OF in config else "")
            + ". Copy or download it again."
        )
    return tensors, config, provenance


def vae_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of them that are V's."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vae.")}


def tensors_checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


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
