"""The real environment of a task, one or many: Gymnasium's, the judge, or EnvPool's, for speed.

Whatever the task, an observation is a frame, which `Task.preprocess` makes V's image of.
"""

import importlib.util
import os
import platform
import warnings
from importlib.metadata import version
from typing import Any, Literal

import gymnasium
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import AddRenderObservation

from wm_env.task import CAR_RACING, Task

BACKENDS = ("gymnasium", "envpool")


def default_backend(task: Task = CAR_RACING) -> Literal["gymnasium", "envpool"]:
    """EnvPool where it is installed (about seven times faster) and has the task, else Gymnasium."""
    there = "envpool" in task.backends and importlib.util.find_spec("envpool")
    return "envpool" if there else "gymnasium"


def provenance(backend: str, task: Task = CAR_RACING) -> dict[str, Any]:
    """What drove: environment, backend and versions, to be stored with the data."""
    packages = ("gymnasium", "numpy", "zarr") + (("envpool",) if backend == "envpool" else ())
    return {
        "environment": task.id,
        "backend": backend,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def make_simulator(task: Task, **kwargs: Any) -> gymnasium.Env:
    """One environment of Gymnasium, quietly; `kwargs` are those of `gymnasium.make`.

    Raises:
        ValueError: a render_mode in which the task shows no frames.
    """
    _silence_pygame()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pygame's and Box2D's own imports
        env = gymnasium.make(task.id, **_options(task, kwargs))
    return AddRenderObservation(env) if task.rendered else env


def make_simulator_vector(
    task: Task,
    num_envs: int,
    *,
    backend: str = "gymnasium",
    vectorization_mode: str = "sync",
    threads: int | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Many environments as one VectorEnv; a lane that ends begins anew at the next step.

    Args:
        task: what they are of.
        num_envs: how many.
        backend: "gymnasium" or "envpool".
        vectorization_mode: Gymnasium's "sync" or "async" (a process for each).
        threads: of EnvPool; one a core unless told.
        kwargs: of the environment and of the maker, as max_episode_steps; EnvPool knows
            max_episode_steps and lap_complete_percent.

    Raises:
        ValueError: an unknown backend, one that is not installed or has no such environment, or an
            option it does not know.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; expected 1 or more.")
    check_backend(backend, task)
    if backend == "envpool":
        from wm_env.car_racing import EnvPoolCarRacing  # which makes use of this module

        return EnvPoolCarRacing(num_envs, threads=threads, **kwargs)
    _silence_pygame()
    if task.rendered:
        kwargs["wrappers"] = (AddRenderObservation, *(kwargs.get("wrappers") or ()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make_vec(task.id, num_envs, vectorization_mode, **_options(task, kwargs))


def check_backend(backend: str, task: Task = CAR_RACING) -> None:
    """Look whether there is such a simulator.

    Raises:
        ValueError: it is unknown, or has no such environment.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if backend not in task.backends:
        raise ValueError(
            f"backend is {backend!r}, which has no frames of {task.id}; expected one of "
            f"{', '.join(task.backends)}."
        )


def _options(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    mode = kwargs.get("render_mode", "rgb_array")
    if task.rendered and mode != "rgb_array":
        raise ValueError(
            f"render_mode is {mode!r}; expected 'rgb_array' for {task.id}, whose frames are what "
            "it renders."
        )
    rendered = {"render_mode": "rgb_array"} if task.rendered else {}
    return {"disable_env_checker": True, **rendered, **dict(task.options), **kwargs}


def _silence_pygame() -> None:
    # Its greeting would end up among results on stdout.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
