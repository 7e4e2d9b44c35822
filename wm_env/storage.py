"""Files of a store, in a local folder or at any URL that fsspec knows."""

import contextlib
import functools
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

StorePath = Any  # a pathlib.Path, or universal_pathlib's UPath, which has its methods but is none


class StoreError(ValueError):
    """A store or shard that cannot be used: the message names it, what is wrong and what to do."""


def to_path(where: str | StorePath) -> StorePath:
    """A folder or file by its name: a pathlib path, or for a URL (`s3://…`) one of fsspec.

    The latter is universal_pathlib's, which has the methods of pathlib.

    Raises:
        StoreError: a URL, and universal_pathlib is not installed.
    """
    if "://" not in str(where):
        return Path(where)
    try:
        from upath import UPath
    except ImportError:
        raise StoreError(
            f"{where} is a URL, which needs universal_pathlib: `uv sync --extra url`, and the "
            "fsspec package of that protocol (for s3:// it is s3fs)."
        ) from None
    # Listings that a process remembers lack what others write meanwhile.
    path = UPath(where, use_listings_cache=False)
    return Path(path.path) if path.protocol == "file" else path


@contextlib.contextmanager
def appearing_whole(path: StorePath) -> Iterator[Path]:
    """A local file to write, which gets the name `path` when the block ends without an error.

    A kill leaves the old state or the new, and at most a hidden `.NAME.…` beside it.
    """
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield hidden
            with open(hidden, "rb") as file:
                os.fsync(file.fileno())
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="wm_env-") as folder:
        local = Path(folder) / path.name
        yield local
        path.fs.makedirs(path.parent.path, exist_ok=True)
        path.fs.put_file(str(local), hidden.path)
        path.fs.mv(hidden.path, path.path)


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Put `content` at `path` whole or not at all, whenever the process may die."""
    with appearing_whole(Path(path)) as temporary:
        temporary.write_bytes(content)


def local_copy(path: StorePath) -> Path:
    """The file itself, or a copy of a remote one, fetched once a process: shards never change.

    Raises:
        StoreError: it cannot be fetched.
    """
    if isinstance(path, Path):
        return path
    copy = Path(_copies().name) / hashlib.sha256(str(path).encode()).hexdigest()
    if not copy.exists():
        try:
            with appearing_whole(copy) as temporary:
                path.fs.get_file(path.path, str(temporary))
        except Exception as error:  # each kind of storage has its own
            raise StoreError(
                f"{path} cannot be fetched ({error!r}); is it still there, and within reach?"
            ) from error
    return copy


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="wm_env-shards-")  # removed when the process ends
