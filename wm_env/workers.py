"""Jobs spread over worker processes: who dies or falls silent is replaced, and its job done again.

`work(shared, job)` is a generator function at the top level of a module. What it yields are signs
of life, small and often enough for `PATIENCE`; what it returns is the result. A job may thus be
begun more than once: its effects must be the same each time.
"""

import contextlib
import functools
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any, cast

PATIENCE = 120.0  # seconds without a sign of life, start-up and compilation included
ATTEMPTS = 3  # at one job, after which it is the job that kills

# Workers must not fight over cores, nor over the memory of a GPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # the size of XLA's thread pools
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false"

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


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    work: Work,
    shared: Any,
    jobs: Sequence[Any],
    *,
    processes: int | None = None,
    ray: str | None = None,
    patience: float = PATIENCE,
) -> Generator[Event, None, None]:
    """Do every job, in whatever order they get done; closing the generator stops the workers.

    Args:
        work: see the module.
        shared: what every job needs; sent once to each process.
        jobs: one call of `work` each.
        processes: worker processes of this machine; one a core unless told.
        ray: address of a Ray cluster to do the jobs instead, one a core of the cluster at a time.
        patience: seconds without a sign of life after which a worker counts as hung.

    Raises:
        JobLostError: a job lost its worker `ATTEMPTS` times.
        WorkersError: there is no Ray, or no cluster.
        Exception: what `work` raises is raised here, with the worker's traceback as a note.
    """
    if ray is not None:
        from wm_env.ray_workers import run_on_ray

        return run_on_ray(work, shared, jobs, address=ray, patience=patience)
    count = max(1, min(processes or usable_cores(), len(jobs)))
    return _run_locally(work, shared, jobs, count, patience)


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
                "with fewer processes if memory ran out. A script that starts workers needs the "
                "guard `if __name__ == '__main__':`.",
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


def _run_locally(
    work: Work, shared: Any, jobs: Sequence[Any], count: int, patience: float
) -> Generator[Event, None, None]:
    to_do, attempts = deque(range(len(jobs))), Attempts()
    task = pack(work, shared)
    workers: list[_Worker] = []
    try:
        while to_do or any(worker.busy for worker in workers):
            while to_do and len(workers) < count:
                workers.append(_Worker(task))
            for worker in workers:
                if not worker.busy and to_do:
                    index = to_do.popleft()
                    worker.begin(index, jobs[index])
            for worker in _speaking(workers, patience):
                event = worker.listen(patience)
                if isinstance(event, Lost):
                    workers.remove(worker)
                    worker.stop()
                    to_do.appendleft(event.index)
                    event = attempts.lost(event.index, event.reason)
                yield event
    finally:
        for worker in workers:
            worker.stop()


def _speaking(workers: list["_Worker"], patience: float) -> list["_Worker"]:
    """Those busy workers that have something to say, have died, or have been silent too long."""
    busy = [worker for worker in workers if worker.busy]
    first = min(worker.heard for worker in busy) + patience
    timeout = max(0.0, first - time.monotonic())
    ready = connection.wait([worker.pipe for worker in busy], timeout)
    return [worker for worker in busy if worker.pipe in ready or worker.silent_for() > patience]


class _Worker:
    """A process, the pipe to it, and the number of the job that it has in hand."""

    def __init__(self, task: bytes):
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: Any = context.Process(target=_live, args=(theirs,), daemon=True)
        with _environment():
            self._process.start()
        # Only the child may hold its end: thus its death closes the pipe.
        theirs.close()
        self._index: int | None = None
        self.heard = time.monotonic()
        self._task: bytes | None = task

    @property
    def busy(self) -> bool:
        """Whether it has a job in hand."""
        return self._index is not None

    def begin(self, index: int, job: Any) -> None:
        """Hand over a job."""
        self._index, self.heard = index, time.monotonic()
        if self._task is not None:
            self._send(self._task)
            self._task = None
        self._send(pickle.dumps(job))

    def _send(self, message: bytes) -> None:
        # A process that died is noticed by listening to it.
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(message)

    def silent_for(self) -> float:
        """Seconds since its last sign of life."""
        return time.monotonic() - self.heard

    def listen(self, patience: float) -> Event:
        """What it says, or that it is lost."""
        index = cast(int, self._index)
        try:
            if not self.pipe.poll():
                return Lost(index, f"process {self._process.pid} hung: silent for {patience:.0f} s")
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            how = f"exit code {self._process.exitcode}"
            return Lost(index, f"process {self._process.pid} died, {how}")
        self.heard = time.monotonic()
        if kind == "progress":
            return Progress(index, value)
        self._index = None
        if kind == "failed":
            raise value
        return Done(index, value)

    def stop(self) -> None:
        """End the process, whatever it is at, even if it is stopped."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _live(pipe: connection.Connection) -> None:
    """A process's life: what to do, then jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        task = pipe.recv_bytes()
        while True:
            for message in signs(task, pickle.loads(pipe.recv_bytes())):
                pipe.send(message)


def _end_with_parent() -> None:
    """End at once when the parent dies, even by kill -9."""
    connection.wait([cast(Any, parent_process()).sentinel])
    os._exit(1)


def enter_environment() -> None:
    """In a worker, before JAX starts: one thread, and no GPU."""
    os.environ.update(_changes())


def _changes() -> dict[str, str]:
    return {**ENVIRONMENT, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what XLA reads when it starts, for processes that begin meanwhile."""
    changes = _changes()
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
