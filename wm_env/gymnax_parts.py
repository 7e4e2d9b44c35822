"""gymnax's `environment` and `spaces`, without the environments that gymnax has of its own.

`import gymnax` imports these all, and with them seaborn, Matplotlib and SciPy, which takes several
times as long as everything that a dream needs. Who imports gymnax gets it whole, as ever, and with
the same classes as here.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

import flax.struct  # noqa: F401  the parts import it and JAX, and should not take long to
import gymnasium.spaces  # noqa: F401
import jax  # noqa: F401

_PACKAGES = "gymnax", "gymnax.environments"


def _load_parts() -> None:
    """Import the two modules with packages around them whose own code has not run."""
    hulls, path = {}, None
    for name in _PACKAGES:
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.submodule_search_locations is None:
            return  # installed in some other way: the imports below take all of it
        hulls[name] = importlib.util.module_from_spec(spec)
        path = spec.submodule_search_locations
    sys.modules.update(hulls)
    try:
        for part in ("environment", "spaces"):
            importlib.import_module(f"gymnax.environments.{part}")
    finally:
        for name in _PACKAGES:
            del sys.modules[name]


if TYPE_CHECKING:
    from gymnax.environments import environment, spaces
else:
    if "gymnax" not in sys.modules:
        _load_parts()
    # By their full names, which need no package around them where they are loaded.
    environment = importlib.import_module("gymnax.environments.environment")
    spaces = importlib.import_module("gymnax.environments.spaces")

__all__ = ["environment", "spaces"]
