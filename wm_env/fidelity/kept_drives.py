"""Real drives that are kept: what was driven once is read again, as they are what takes long.

Drives follow from the driver's V and M, the policies, tracks, steps and backend, not from the
world whose dreams are compared with them.
"""

import hashlib
import itertools
import json
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wm_env.fidelity.drives import Drive, record_drives
from wm_env.fidelity.policy_suite import Suite
from wm_env.storage import StoreError, appearing_whole
from wm_env.world_model import WorldModel

_FORMAT = "wm_env drives 1"


def kept_drives(
    folder: Path,
    driver: WorldModel,
    suite: Suite,
    seeds: range,
    *,
    backend: str,
    steps: int,
    moments: set[int],
    show: bool = True,
) -> list[Drive]:
    """As `record_drives`, or from the file in `folder` where the very same were kept.

    Raises:
        StoreError: that file is damaged, or holds other drives.
    """
    question = {
        "format": _FORMAT,
        "driver": f"{driver.vae.config} {_digest((driver.vae, driver.mdn_rnn))}",
        "suite": _digest(suite),
        "policies": list(suite),
        "seeds": list(seeds),
        "steps": steps,
        "backend": f"{backend} {version(backend)}",
        "moments": sorted(moments),
    }
    told = json.dumps(question)
    path = folder / f"drives-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        return _read(path, question)
    options = {"backend": backend, "steps": steps, "moments": moments, "show": show}
    drives = record_drives(driver, suite, seeds, **options)
    _write(path, told, drives)
    return drives


def _write(path: Path, question: str, drives: list[Drive]) -> None:
    shown = [(row, *item) for row, drive in enumerate(drives) for item in drive.images.items()]
    with appearing_whole(path) as hidden, open(hidden, "wb") as file:
        np.savez(
            file,
            question=np.array(question),
            lengths=np.array([drive.length for drive in drives]),
            z=np.concatenate([drive.z for drive in drives]),
            actions=np.concatenate([drive.actions for drive in drives]),
            rewards=np.concatenate([drive.rewards for drive in drives]),
            shown=np.array([(row, time) for row, time, _ in shown], int).reshape(-1, 2),
            images=np.array([image for *_, image in shown], np.uint8),
        )


def _read(path: Path, question: dict[str, Any]) -> list[Drive]:
    try:
        with np.load(path, allow_pickle=False) as file:  # reading checks each array's CRC
            told = dict(json.loads(str(file["question"])))
            arrays = {name: file[name] for name in file.files if name != "question"}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path}: not a whole file of drives ({error!r}). Delete it, and they are driven anew."
        ) from error
    other = {name: told.get(name) for name, asked in question.items() if told.get(name) != asked}
    if other:
        asked = {name: question[name] for name in other}
        raise StoreError(
            f"{path}: holds drives of {other}; expected those of {asked}, for which it is named. "
            "Move it away, and they are driven anew."
        )
    return _drives(question, **arrays)


def _drives(
    asked: dict[str, Any],
    lengths: np.ndarray,
    z: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    shown: np.ndarray,
    images: np.ndarray,
) -> list[Drive]:
    seen: list[dict[int, np.ndarray]] = [{} for _ in lengths]
    for (row, time), image in zip(shown.tolist(), images, strict=True):
        seen[row][time] = image
    jobs = itertools.product(asked["policies"], asked["seeds"])
    drives, first = [], 0
    for row, ((policy, seed), length) in enumerate(zip(jobs, lengths.tolist(), strict=True)):
        end = first + length
        latents = z[first + row : end + row + 1]  # of each drive before this, one more too
        rest = actions[first:end], rewards[first:end], seen[row]
        drives.append(Drive(policy, seed, latents, *rest))
        first = end
    return drives


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        place = jax.tree_util.keystr(path)
        digest.update(f"{place} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
