"""Jobs spread over workers: who dies or falls silent is replaced, and its job done again.

wm_env/jobs.py says what a job is.
"""

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from wm_env.cores import usable_cores
from wm_env.jobs import Attempts, Event, Lost, Work, pack
from wm_env.worker_process import WorkerProcess

PATIENCE = 120.0  # seconds without a sign of life, start-up and compilation included


@contextlib.contextmanager
def connected_workers(processes: int | None = None, ray: str | None = None) -> Iterator[int]:
    """How many workers `run_jobs` has for many jobs; a Ray cluster stays connected meanwhile.

    Raises:
        WorkersError: there is no Ray, or no cluster.
    """
    if ray is None:
        yield processes or usable_cores()
    else:
        from wm_env.ray_workers import connection_to

        with connection_to(ray) as cluster:
            yield max(1, int(cluster.cluster_resources().get("CPU", 1)))


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
        work: see wm_env/jobs.py.
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


def _run_locally(
    work: Work, shared: Any, jobs: Sequence[Any], count: int, patience: float
) -> Generator[Event, None, None]:
    to_do, attempts = deque(range(len(jobs))), Attempts()
    task = pack(work, shared)
    workers: list[WorkerProcess] = []
    try:
        while to_do or any(worker.busy for worker in workers):
            while to_do and len(workers) < count:
                workers.append(WorkerProcess(task))
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


def _speaking(workers: list[WorkerProcess], patience: float) -> list[WorkerProcess]:
    """Those busy workers that have something to say, have died, or have been silent too long."""
    busy = [worker for worker in workers if worker.busy]
    first = min(worker.heard for worker in busy) + patience
    timeout = max(0.0, first - time.monotonic())
    begin = time.monotonic()
    ready = connection.wait([worker.pipe for worker in busy], timeout)
    if time.monotonic() - begin > timeout + 10.0:  # this process itself was stopped for a while
        for worker in busy:
            worker.heard = time.monotonic()
    return [worker for worker in busy if worker.pipe in ready or worker.silent_for() > patience]
