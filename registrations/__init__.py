"""Environment ids and where their code lives, as strings: nothing of the project is imported here.

`import wm_env` calls `register_gymnasium` and `register_gymnax`; the code behind an id is imported
when somebody makes it.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import sys
from typing import Any, NamedTuple

__all__ = [
    "DREAMS",
    "DREAM_ID",
    "GYMNASIUM_ENTRY_POINT",
    "GYMNASIUM_VECTOR_ENTRY_POINT",
    "GYMNAX_ENTRY_POINT",
    "MAX_EPISODE_STEPS",
    "REWARD_THRESHOLD",
    "Dream",
    "register_gymnasium",
    "register_gymnax",
]

DREAM_ID = "DreamCarRacing-v0"
GYMNASIUM_ENTRY_POINT = "wm_env.gym_env:DreamCarRacingEnv"
GYMNASIUM_VECTOR_ENTRY_POINT = "wm_env.gym_vector:DreamCarRacingVectorEnv"
GYMNAX_ENTRY_POINT = "wm_env.dream:DreamCarRacing"

MAX_EPISODE_STEPS = 1000  # as CarRacing-v3
REWARD_THRESHOLD = 900.0  # as CarRacing-v3


class Dream(NamedTuple):
    """A dream by its id, with the numbers of the environment that is dreamt; `task` is the id."""

    id: str
    max_episode_steps: int
    reward_threshold: float
    task: str | None = None  # CarRacing-v3 unless told

    @property
    def arguments(self) -> dict[str, str]:
        """Those of the entry points."""
        return {} if self.task is None else {"task": self.task}


DREAMS = (
    Dream(DREAM_ID, MAX_EPISODE_STEPS, REWARD_THRESHOLD),
    Dream("DreamLunarLander-v0", 1000, 200.0, task="LunarLander-v3"),
)


def register_gymnasium() -> None:
    """Make `gym.make` and `gym.make_vec` know all DREAMS; again changes nothing."""
    import gymnasium

    for dream in DREAMS:
        if dream.id not in gymnasium.registry:
            gymnasium.register(
                dream.id,
                entry_point=GYMNASIUM_ENTRY_POINT,
                vector_entry_point=GYMNASIUM_VECTOR_ENTRY_POINT,
                max_episode_steps=dream.max_episode_steps,
                reward_threshold=dream.reward_threshold,
                kwargs=dream.arguments,
            )


def register_gymnax() -> None:
    """Make `gymnax.make` know all DREAMS; calling it again changes nothing.

    gymnax takes seconds to import (it pulls in seaborn) and starts the device at import, so it is
    not loaded here: when it is not there yet, the ids are added at the moment somebody imports it.
    """
    if "gymnax" in sys.modules:
        _add_to_gymnax()
    elif not any(isinstance(finder, _GymnaxImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _GymnaxImport())


def _add_to_gymnax() -> None:
    registration = importlib.import_module("gymnax.registration")
    for dream in DREAMS:
        if dream.id not in registration.registered_envs:
            registration.register(dream.id, functools.partial(_make_gymnax, **dream.arguments))


def _make_gymnax(**arguments: Any) -> Any:
    module, name = GYMNAX_ENTRY_POINT.split(":")
    return getattr(importlib.import_module(module), name)(**arguments)


class _GymnaxImport(importlib.abc.MetaPathFinder):
    """Waits for `import gymnax`, then steps aside and registers when that import is through."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "gymnax":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            # `wm_env.gymnax_parts` may have imported these before there was a package to tell.
            for part in ("environment", "spaces"):
                name = f"gymnax.environments.{part}"
                setattr(sys.modules["gymnax.environments"], part, importlib.import_module(name))
            _add_to_gymnax()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
