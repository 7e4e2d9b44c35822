"""Episodes on Gymnasium's CarRacing-v3, one process a core: it is the judge, and slow.

A process that is free gets the next seed, so that a slow episode holds up no other. An episode has
a new environment and single-threaded programs: what a seed scores depends on nothing else.
"""

import functools
import pickle
import sys
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from wm_env.episodes import AnyPolicy, Episode, act
from wm_env.jobs import Done, JobLostError, Lost
from wm_env.real import make_real
from wm_env.workers import run_jobs
from wm_env.world_model import WorldModel

_PATIENCE = 600.0  # seconds: policies of any size are compiled meanwhile


class EvaluationError(RuntimeError):
    """Real episodes could not be driven; the message names the seed and what happened."""


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

    `options` are the arguments of `make_real`; `processes` and `ray` those of
    `wm_env.workers.run_jobs`. Closing the generator stops the processes.

    Raises:
        EvaluationError: the policy cannot be sent to other processes or fails there, or a seed's
            process dies again and again.
    """
    task = _pickled(policy, policy_params, world, options)
    jobs = run_jobs(_drive, task, seeds, processes=processes, ray=ray, patience=_PATIENCE)
    with closing(jobs) as events:
        try:
            for event in events:
                if isinstance(event, Done):
                    yield event.index, event.result
                elif isinstance(event, Lost):
                    told = f"seed {seeds[event.index]} is driven again: {event.reason}"
                    print(told, file=sys.stderr)
        except JobLostError as error:
            raise EvaluationError(
                f"the episode of seed {seeds[error.index]} could not be driven: {error} A mean "
                "without it would mislead, so none is given."
            ) from error


def _drive(task: bytes, seed: int) -> Generator[int, None, Episode]:
    try:
        policy, policy_params, world, options = _loaded(task)
    except Exception as error:
        raise EvaluationError(
            f"the policy cannot be loaded in another process ({error}). What it needs must be "
            "importable there, as it is here."
        ) from error
    # A new environment each time: Box2D keeps the order of earlier contacts through a reset.
    env = make_real(world, **options)
    observation, info = env.reset(seed=seed)
    key, ret, length, over, told = jax.random.key(seed), 0.0, 0, False, time.monotonic()
    while not over:
        try:
            action = act(policy, policy_params, observation, key, np.asarray(length))
            observation, reward, terminated, truncated, info = env.step(action)
        except Exception as error:
            raise EvaluationError(
                f"the episode of seed {seed} failed: {type(error).__name__}: {error}"
            ) from error
        ret, length, over = ret + float(reward), length + 1, terminated or truncated
        if time.monotonic() - told > 1.0:
            told = time.monotonic()
            yield length
    env.close()
    return Episode(seed, ret, length, info["lap_finished"], info["off_field"])


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
