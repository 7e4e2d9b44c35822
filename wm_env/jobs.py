"""Jobs for workers, and what is told of them.

`work(shared, job)` is a generator function at the top level of a module. What it yields are signs
of life, small and often enough for the workers' patience; what it returns is the result. A job may
be begun more than once, where a worker is lost: its effects must be the same each time.
"""

import functools
import pickle
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

ATTEMPTS = 3  # at one job, after which it is the job that kills

Work = Callable[[Any, Any], Generator[Any, None, Any]]


class WorkersError(RuntimeError):
    """There are no workers to do the jobs; the message tells why."""


class JobLostError(WorkersError):
    """Job number `index` lost its worker too often."""

    def __init__(self, index: int, message: str):
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Progress:
    """A sign of life of job number `index`."""

    index: int
    sign: Any


@dataclass(frozen=True)
class Done:
    """Job number `index` is done."""

    index: int
    result: Any


@dataclass(frozen=True)
class Lost:
    """The worker of job number `index` was lost; another begins the job anew."""

    index: int
    reason: str


Event = Progress | Done | Lost


class Attempts:
    """How often each job lost its worker."""

    def __init__(self) -> None:
        self._reasons: dict[int, list[str]] = {}

    def lost(self, index: int, reason: str) -> Lost:
        """Note a loss; what to tell about it.

        Raises:
            JobLostError: it was the last attempt.
        """
        reasons = self._reasons.setdefault(index, [])
        reasons.append(reason)
        if len(reasons) >= ATTEMPTS:
            raise JobLostError(
                index,
                f"its worker was lost {len(reasons)} times ({'; '.join(reasons)}). Run it again, "
                "with fewer processes if memory ran out.",
            )
        return Lost(index, reason)


def pack(work: Work, shared: Any) -> bytes:
    """What `signs` takes as its task."""
    return pickle.dumps((work, shared))


def signs(task: bytes, job: Any) -> Iterator[tuple[str, Any]]:
    """A job as messages: ("progress", sign) …, then ("done", result) or ("failed", error)."""
    try:
        work, shared = _unpacked(task)
        steps = work(shared, job)
        while True:
            yield "progress", next(steps)
    except StopIteration as end:
        yield "done", end.value
    except Exception as error:
        error.add_note(traceback.format_exc())
        yield "failed", _picklable(error)


_unpacked = functools.lru_cache(maxsize=1)(pickle.loads)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(traceback.format_exc())
        return plain
