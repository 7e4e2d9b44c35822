"""Jobs spread over the cores of a Ray cluster; wm_env/jobs.py says what a job is.

Every node needs this project in the same environment and at the same path, and sees the same files:
a shared folder or a URL. Source: Ray's streaming generators (docs.ray.io, "Dynamic generators").
"""

import contextlib
import inspect
import logging
import os
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from wm_env.jobs import Attempts, Done, Event, Progress, Work, WorkersError, pack, signs
from wm_env.worker_process import enter_environment


def run_on_ray(
    work: Work, shared: Any, jobs: Sequence[Any], *, address: str, patience: float
) -> Generator[Event, None, None]:
    """Do every job on the cluster at `address`, as `wm_env.workers.run_jobs` does locally.

    A cluster that this process is connected to already is used as it is.

    Args:
        address: as `ray.init` takes it: HOST:PORT, "auto", or "local" for a new one here.

    Raises:
        WorkersError: Ray is not installed, or there is no cluster.
        JobLostError: a job was lost too often.
    """
    with connection_to(address) as ray:
        streams, attempts = _Streams(ray, pack(work, shared), jobs, patience), Attempts()
        try:
            for index in range(len(jobs)):
                streams.begin(index)
            while streams.running:
                for index, kind, value in streams.listen():
                    if kind == "failed":
                        raise value
                    if kind == "lost":
                        yield attempts.lost(index, value)
                        streams.begin(index)
                    else:
                        yield Progress(index, value) if kind == "progress" else Done(index, value)
        finally:
            for stream in streams.running:
                streams.cancel(stream)


class _Streams:
    """The jobs that the cluster has in hand, each a stream of messages."""

    def __init__(self, ray: Any, task: bytes, jobs: Sequence[Any], patience: float):
        self._ray, self._task, self._jobs, self._patience = ray, ray.put(task), jobs, patience
        # Ray takes generator functions only, and the wrapper of a run-time type checker is none.
        stream = inspect.unwrap(_signs)
        self._remote = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(stream)
        self.running: dict[Any, int] = {}
        self._heard: dict[Any, float] = {}  # not yet of a job that waits for a core

    def begin(self, index: int) -> None:
        """Hand over a job, for the next core that is free."""
        self.running[self._remote.remote(os.getcwd(), self._task, self._jobs[index])] = index

    def listen(self) -> Iterator[tuple[int, str, Any]]:
        """Messages of the next second: a job's number, kind and value."""
        streams = list(self.running)
        self._ray.wait(streams, timeout=1.0, fetch_local=False)
        # All that are ready now: the wait above tells of one.
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0, fetch_local=False)
        now = time.monotonic()
        for stream in ready:
            self._heard[stream] = now
            kind, value = self._next(stream)
            yield self.running[stream] if kind == "progress" else self._over(stream), kind, value
        hung = [one for one, heard in self._heard.items() if now - heard > self._patience]
        for stream in hung:
            self.cancel(stream)
            reason = f"its worker hung: silent for {self._patience:.0f} s"
            yield self._over(stream), "lost", reason

    def _over(self, stream: Any) -> int:
        self._heard.pop(stream, None)
        return self.running.pop(stream)

    def _next(self, stream: Any) -> tuple[str, Any]:
        try:
            return self._ray.get(next(stream))
        except StopIteration:
            return "lost", "its worker ended without a result"
        except self._ray.exceptions.RayError as error:  # the worker or its node died
            cause = getattr(error, "cause", None) or error
            return "lost", f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"

    def cancel(self, stream: Any) -> None:
        """Stop a job, whatever it is at."""
        with contextlib.suppress(Exception):  # it may be gone, and its cluster too
            self._ray.cancel(stream, force=True)


def _signs(folder: str, task: bytes, job: Any) -> Any:
    os.chdir(folder)  # where relative paths mean what they mean to who asks
    enter_environment()
    yield "progress", None  # it has a core now
    yield from signs(task, job)


@contextlib.contextmanager
def connection_to(address: str) -> Iterator[Any]:
    """Ray, connected to that cluster; one that this process is connected to already stays so.

    Raises:
        WorkersError: Ray is not installed, or there is no cluster.
    """
    ray, connected_here = _connect(address)
    try:
        yield ray
    finally:
        if connected_here:
            ray.shutdown()


def _connect(address: str) -> tuple[Any, bool]:
    try:
        import ray
    except ImportError:
        raise WorkersError(
            f"ray={address!r} needs Ray, which is not installed: `uv sync --extra ray`."
        ) from None
    if ray.is_initialized():
        return ray, False
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10.0).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkersError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head` and give "
            "its HOST:PORT, or 'auto' on one of its nodes."
        ) from error
    return ray, True
