"""A process of this machine that does jobs, and the pipe to it."""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection, get_context, parent_process
from typing import Any, cast

from wm_env.jobs import Done, Event, Lost, Progress, signs

# Workers must not fight over cores, nor over the memory of a GPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # the size of XLA's thread pools
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false"


class WorkerProcess:
    """A process, the pipe to it, and the number of the job that it has in hand."""

    def __init__(self, task: bytes):
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: Any = context.Process(target=_live, args=(theirs,), daemon=True)
        with _environment(), _without_main():
            self._process.start()
        # Only the child may hold its end: thus its death closes the pipe.
        theirs.close()
        self._index: int | None = None
        self.heard = time.monotonic()
        self._unsent = [task]

    @property
    def busy(self) -> bool:
        """Whether it has a job in hand."""
        return self._index is not None

    def begin(self, index: int, job: Any) -> None:
        """Hand over a job."""
        self._index, self.heard = index, time.monotonic()
        messages = [*self._unsent, pickle.dumps(job)]
        self._unsent = []
        # In a thread: one that hangs at its start would not take a large task from the pipe.
        threading.Thread(target=self._send, args=(messages,), daemon=True).start()

    def _send(self, messages: list[bytes]) -> None:
        # A process that died is noticed by listening to it.
        with contextlib.suppress(OSError, ValueError, TypeError):
            for message in messages:
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


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep processes that begin meanwhile from running the caller's script: all is sent to them.

    They would otherwise import it as their own main module, and do again what stands at its top.
    """
    main = vars(sys.modules["__main__"])
    told = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(told))
    try:
        yield
    finally:
        main.update(told)
