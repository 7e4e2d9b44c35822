"""What an example needs and is not installed is told with the extra that brings it."""

from types import TracebackType


class Extra:
    """`with Extra("rejax"): import rejax` turns an ImportError into one that tells the remedy."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, ImportError):
            raise ImportError(
                f"{error}: this example needs `uv sync --extra {self._name}`."
            ) from error
