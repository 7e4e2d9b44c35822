"""Episodes on Gymnasium's CarRacing-v3, one process a core: it is the judge, and slow.

A process that is free gets the next seed, so that a slow episode holds up no other. An episode has
a new environment and single-threaded programs: what a seed scores depends on nothing else.
"""

import contextlib
import os
import pickle
import signal
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wm_env.episodes import Episode, act
from wm_env.real import make_real
from wm_env.rollouts import Policy
from wm_env.world_model import WorldModel

# Children must not fight over cores, nor over the memory of a GPU.
_CHILD_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # the size of XLA's thread pools
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_CHILD_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false"


class EvaluationError(RuntimeError):
    """Real episodes could not be driven; the message names the seed and what happened."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def drive_gymnasium(
    policy: Policy,
    policy_params: Any,
    world: WorldModel | None,
    options: dict[str, Any],
    seeds: tuple[int, ...],
    processes: int,
) -> Generator[tuple[int, Episode], None, None]:
    """Drive an episode for each seed; yields its place among the seeds and how it went.

    `options` are the arguments of `make_real`. Closing the generator stops the processes.

    Raises:
        EvaluationError: the policy cannot be sent to other processes, fails there, or a process
            dies.
    """
    job = _pickled(policy, policy_params, world, options)
    workers: list[_Worker] = []
    try:
        with _child_environment():
            for _ in range(max(1, min(processes, len(seeds)))):
                workers.append(_Worker.start())
        to_do = iter(enumerate(seeds))
        for worker in workers:
            worker.send_job(job)
        busy = {worker.connection: worker for worker in workers if worker.send_seed(to_do)}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]  # pyright: ignore[reportArgumentType]
                yield worker.index, worker.episode()
                if not worker.send_seed(to_do):
                    del busy[worker.connection]
    finally:
        for worker in workers:
            worker.stop()


@dataclass(frozen=True)
class _Failure:
    """Why a process could not drive an episode, and where in the code."""

    reason: str
    trace: str = ""


@dataclass
class _Worker:
    """A process, the pipe to it, and the seed that it has in hand."""

    process: Any
    connection: Connection
    index: int = -1
    seed: int | None = None

    @classmethod
    def start(cls) -> "_Worker":
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        # Only the child may hold its end: thus its death closes the pipe.
        theirs.close()
        return cls(process, ours)  # pyright: ignore[reportArgumentType]

    def send_job(self, job: bytes) -> None:
        """Tell what to drive."""
        with self._noticing_death():
            self.connection.send_bytes(job)

    def send_seed(self, to_do: Iterator[tuple[int, int]]) -> bool:
        """Hand over the next seed; whether there was one."""
        for self.index, self.seed in to_do:
            with self._noticing_death():
                self.connection.send(self.seed)
            return True
        return False

    def episode(self) -> Episode:
        """The episode that the process has finished."""
        with self._noticing_death():
            answer = self.connection.recv()
        if isinstance(answer, _Failure):
            error = EvaluationError(f"the episode of seed {self.seed} failed: {answer.reason}")
            if answer.trace:
                error.add_note(answer.trace)
            raise error
        return answer

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self.process.terminate()
        self.process.join(5)
        self.connection.close()

    @contextlib.contextmanager
    def _noticing_death(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self.process.join(5)
            at = "at its start" if self.seed is None else f"at seed {self.seed}"
            raise EvaluationError(
                f"an evaluating process died {at} (exit code {self.process.exitcode}); a mean "
                "without that episode would mislead, so none is given. Run it again, with fewer "
                "processes if memory ran out. A script that evaluates needs the guard "
                "`if __name__ == '__main__':`."
            ) from error


def _work(connection: Connection) -> None:
    """A process's life: a job, then seeds until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends us
    with contextlib.suppress(EOFError, OSError):
        job, failure = connection.recv_bytes(), None
        try:
            policy, policy_params, world, options = pickle.loads(job)
            world = jax.tree.map(jnp.asarray, world)
        except Exception as error:
            failure = _Failure(
                f"the policy cannot be loaded in another process ({error}). Define it at the top "
                "level of a module that can be imported; not in a notebook or an interactive "
                "session."
            )
        while True:
            seed = connection.recv()
            try:
                answer = failure or _drive(policy, policy_params, world, options, seed)
            except Exception as error:
                answer = _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
            connection.send(answer)


def _drive(
    policy: Policy, policy_params: Any, world: WorldModel | None, options: dict[str, Any], seed: int
) -> Episode:
    # A new environment each time: Box2D keeps the order of earlier contacts through a reset.
    env = make_real(world, **options)
    observation, info = env.reset(seed=seed)
    key, ret, length, over = jax.random.key(seed), 0.0, 0, False
    while not over:
        action = np.asarray(act(policy, policy_params, observation, key, np.asarray(length)))
        observation, reward, terminated, truncated, info = env.step(action)
        ret, length, over = ret + float(reward), length + 1, terminated or truncated
    env.close()
    return Episode(seed, ret, length, info["lap_finished"], info["off_field"])


def _pickled(policy: Policy, policy_params: Any, world: Any, options: dict[str, Any]) -> bytes:
    policy_params, world = jax.tree.map(_on_host, (policy_params, world))
    try:
        return pickle.dumps((policy, policy_params, world, options))
    except Exception as error:
        raise EvaluationError(
            f"the policy {policy!r} cannot be sent to other processes ({error}). Give a function "
            "at the top level of a module, and arrays as its parameters; or evaluate with "
            "backend='envpool', which needs no other process."
        ) from error


def _on_host(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


@contextlib.contextmanager
def _child_environment() -> Iterator[None]:
    """Set what XLA reads when it starts, for processes that begin meanwhile."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_CHILD_XLA_FLAGS}".strip()
    changes = {**_CHILD_ENVIRONMENT, "XLA_FLAGS": flags}
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
