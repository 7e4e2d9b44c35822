"""Episodes on Gymnasium's CarRacing-v3, one process a core: it is the judge, and slow.

A process drives a few cars by turns, V and M seeing for all of them at once; one that is free gets
the next few seeds. An episode has a new environment and single-threaded programs: what a seed
scores depends on nothing else.
"""

import functools
import pickle
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from wm_env.episodes import AnyPolicy, Episode, act, filled, keys_of
from wm_env.jobs import Done, JobLostError, Lost
from wm_env.perception import Perception
from wm_env.real import make_real
from wm_env.workers import connected_workers, run_jobs
from wm_env.world_model import WorldModel

# Cars of a process. V and M always see for as many, since the rounding of a batched program depends
# on its size. Between two frames a car drives V's and M's weights from the caches, so that they see
# for four in hardly more than twice the time of one. More would save little, and wait longer for
# the one that drives on when the others have arrived.
CARS = 4

_PATIENCE = 600.0  # seconds: policies of any size are compiled meanwhile


class EvaluationError(RuntimeError):
    """Real episodes could not be driven; the message names the seeds and what happened."""


def drive_gymnasium(
    policy: AnyPolicy,
    policy_params: Any,
    world: WorldModel | None,
    options: dict[str, Any],
    seeds: tuple[int, ...],
    *,
    processes: int | None = None,
    ray: str | None = None,
) -> Generator[tuple[int, Episode], None, None]:
    """Drive an episode for each seed; yields its place among the seeds and how it went.

    `options` are arguments of `make_real`, with `observation`, `continuous` and `task` among them;
    `processes` and `ray` those of `wm_env.workers.run_jobs`. Closing the generator stops the
    processes.

    Raises:
        EvaluationError: the policy cannot be sent to other processes or fails there, or the process
            of a few seeds dies again and again.
    """
    task = _pickled(policy, policy_params, world, options)
    with connected_workers(processes, ray) as workers:
        groups = _groups(len(seeds), workers)
        jobs = [tuple(seeds[index] for index in group) for group in groups]
        running = run_jobs(_drive, task, jobs, processes=processes, ray=ray, patience=_PATIENCE)
        with closing(running) as events:
            try:
                for event in events:
                    if isinstance(event, Done):
                        yield from zip(groups[event.index], event.result, strict=True)
                    elif isinstance(event, Lost):
                        told = f"{_named(jobs[event.index])}: driven again, {event.reason}"
                        print(told, file=sys.stderr)
            except JobLostError as error:
                raise EvaluationError(
                    f"{_named(jobs[error.index])} could not be driven: {error} A mean without it "
                    "would mislead, so none is given."
                ) from error


def _groups(count: int, workers: int) -> list[list[int]]:
    """Places of `count` episodes, CARS at most in a group and as many groups for each worker."""
    rounds = -(-count // (workers * CARS))
    return [part.tolist() for part in np.array_split(range(count), min(count, rounds * workers))]


def _named(seeds: Sequence[int]) -> str:
    plural = "s" if len(seeds) > 1 else ""
    return f"the episode{plural} of seed{plural} {', '.join(map(str, seeds))}"


def _drive(task: bytes, seeds: tuple[int, ...]) -> Generator[int, None, list[Episode]]:
    try:
        policy, policy_params, world, options = _loaded(task)
    except Exception as error:
        raise EvaluationError(
            f"the policy cannot be loaded in another process ({error}). What it needs must be "
            "importable there, as it is here."
        ) from error
    perception = Perception(
        options["task"], world, options["observation"], options["continuous"], (CARS,)
    )
    with ExitStack() as stack:
        drives = [stack.enter_context(closing(_Drive(world, options, seed))) for seed in seeds]
        images = np.stack(filled([drive.image for drive in drives], CARS))
        observations, keys = perception.begin(images), keys_of(filled(seeds, CARS))
        step, told = 0, time.monotonic()
        while on := [lane for lane, drive in enumerate(drives) if not drive.over]:
            running = np.isin(np.arange(CARS), on)
            try:
                chosen = act(policy, policy_params, observations, keys, np.asarray(step), running)
            except Exception as error:
                raise _failure([seeds[lane] for lane in on], error) from error
            for lane in on:
                images[lane] = drives[lane].step(chosen[lane])
            actions = np.zeros_like(chosen)  # for those that have arrived the answer may be NaN
            actions[on] = chosen[on]
            _, controls = perception.understood(actions)
            observations, step = perception.advance(controls, images), step + 1
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                yield step
        return [drive.episode() for drive in drives]


class _Drive:
    """An episode of one car, in an environment of its own: Box2D keeps the order of earlier
    contacts through a reset."""

    def __init__(self, world: WorldModel | None, options: dict[str, Any], seed: int):
        self.seed, self.over = seed, False
        self._car = make_real(world, **{**options, "observation": "pixels"})
        self._ret, self._length = 0.0, 0
        self.image, self._info = self._car.reset(seed=seed)

    def step(self, action: Any) -> np.ndarray:
        """Drive on; the next image."""
        try:
            image, reward, terminated, truncated, self._info = self._car.step(action)
        except Exception as error:
            raise _failure([self.seed], error) from error
        self._ret, self._length = self._ret + float(reward), self._length + 1
        self.over = terminated or truncated
        return image

    def episode(self) -> Episode:
        """How it went."""
        ends = self._info["lap_finished"], self._info["off_field"]
        return Episode(self.seed, self._ret, self._length, *ends)

    def close(self) -> None:
        """Put the car away."""
        self._car.close()


def _failure(seeds: Sequence[int], error: Exception) -> EvaluationError:
    return EvaluationError(f"{_named(seeds)} failed: {type(error).__name__}: {error}")


@functools.lru_cache(maxsize=1)
def _loaded(task: bytes) -> tuple[AnyPolicy, Any, WorldModel | None, dict[str, Any]]:
    policy, policy_params, world, options = pickle.loads(task)
    return policy, policy_params, jax.tree.map(jnp.asarray, world), options


def _pickled(policy: AnyPolicy, policy_params: Any, world: Any, options: dict[str, Any]) -> bytes:
    policy_params, world = jax.tree.map(_on_host, (policy_params, world))
    try:
        return cloudpickle.dumps((policy, policy_params, world, options))
    except Exception as error:
        raise EvaluationError(
            f"the policy {policy!r} cannot be sent to other processes ({error}). Let it hold what "
            "it needs to act and no more, as no environment; or evaluate with backend='envpool', "
            "which needs no other process."
        ) from error


def _on_host(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
