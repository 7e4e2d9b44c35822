"""What an installed wheel must do, away from the repository: every door to the dream opens.

Run with the Python of an environment that holds the wheel, in any other folder:
`python -I smoke.py`.
"""

import os
import platform
import sysconfig
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium
import gymnax
import jax
import numpy as np

import wm_env


def check_installation() -> None:
    """The packages come from site-packages, and training and agents were left at home."""
    site = Path(sysconfig.get_path("purelib")).resolve()
    home = Path(wm_env.__file__).resolve().parent
    assert home.is_relative_to(site), f"wm_env was imported from {home}, not from {site}"
    assert metadata.version("wm_env") == wm_env.__version__
    for name in ("agents", "training", "tests"):
        assert find_spec(name) is None, f"the wheel must not bring a package {name!r}"


def check_single() -> None:
    env = gymnasium.make("wm_env:DreamCarRacing-v0")
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        action = np.array([0.0, 0.5, 0.0], np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
    assert env.observation_space.contains(observation)
    assert np.isfinite(reward) and not terminated and not truncated
    env.close()


def check_vector() -> None:
    envs = gymnasium.make_vec("DreamCarRacing-v0", num_envs=4)
    envs.reset(seed=0)
    actions = np.tile(np.array([0.0, 0.5, 0.0], np.float32), (4, 1))
    for _ in range(5):
        observations, rewards, _, _, _ = envs.step(actions)
    assert observations.shape == (4, 288) and np.isfinite(rewards).all()
    assert not np.array_equal(observations[0], observations[1]), "four dreams, but all the same"
    envs.close()


def check_gymnax() -> None:
    env, params = gymnax.make("DreamCarRacing-v0")
    keys = jax.random.split(jax.random.key(0), 3)
    observations, states = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    actions = np.tile(np.array([0.0, 0.5, 0.0], np.float32), (3, 1))
    observations, states, rewards, _, _, _ = step(keys, states, actions, params)
    assert observations.shape == (3, 288) and np.isfinite(rewards).all()


def check_real() -> None:
    env = wm_env.make_real()
    dream = gymnasium.make("DreamCarRacing-v0")
    assert env.observation_space == dream.observation_space
    assert env.action_space == dream.action_space
    env.reset(seed=0)
    observation, *_ = env.step(np.array([0.0, 0.5, 0.0], np.float32))
    assert env.observation_space.contains(observation)
    env.close()


def check_controller() -> None:
    weights, _ = wm_env.load_controller()
    assert sum(array.size for array in weights.values()) >= 867


def main() -> None:
    names = ("jax", "equinox", "flax", "gymnasium", "gymnax", "evosax", "numpy", "zarr")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(f"Python {platform.python_version()}, {versions}", flush=True)
    checks = (
        check_installation,
        check_single,
        check_vector,
        check_gymnax,
        check_real,
        check_controller,
    )
    for check in checks:
        check()
        print(f"  {check.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
