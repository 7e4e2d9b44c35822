"""DreamCarRacing: a learned, differentiable CarRacing behind Gymnasium and gymnax.

`import wm_env` registers `DreamCarRacing-v0` with both; heavy modules are imported when used.
"""

import importlib
from typing import Any

import registrations

__version__ = "0.1.0"

# Where each public name lives. The modules behind them import JAX, so they wait for the first use.
_HOMES = {
    "DreamCarRacing": "wm_env.dream",
    "DreamParams": "wm_env.dream",
    "DreamState": "wm_env.dream",
    "DreamCarRacingEnv": "wm_env.gym_env",
    "DreamCarRacingVectorEnv": "wm_env.gym_vector",
    "MDNRNN": "wm_env.mdn_rnn",
    "MDNRNNConfig": "wm_env.mdn_rnn",
    "VAE": "wm_env.vae",
    "VAEConfig": "wm_env.vae",
    "StartStates": "wm_env.world_model",
    "WorldModel": "wm_env.world_model",
    "WeightsError": "wm_env.weights",
    "load_controller": "wm_env.weights",
    "load_world": "wm_env.weights",
    "save_controller": "wm_env.weights",
    "save_world": "wm_env.weights",
    "Rollout": "wm_env.rollouts",
    "rollout": "wm_env.rollouts",
    "Task": "wm_env.task",
    "make_real": "wm_env.real",
    "make_real_vector": "wm_env.real",
    "evaluate": "wm_env.evaluation",
}

__all__ = ["__version__", *sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'wm_env' has no attribute {name!r}; it offers {__all__}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registrations.register_gymnasium()
registrations.register_gymnax()
