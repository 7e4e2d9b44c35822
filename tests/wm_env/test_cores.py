"""Cores as devices: how many there are then, and who is not asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wm_env

ROOT = Path(wm_env.__file__).parents[1]


def devices(*, before="make_cores_devices()", **environment):
    """How many devices JAX has in a new process after some code, and how many of them fit."""
    script = f"""
import jax
from wm_env import cores
from wm_env.cores import make_cores_devices
cores.usable_cores = lambda: 4
{before}
from training.devices import Devices
print(len(jax.devices()), Devices(12)._split.mesh.size)
"""
    told = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    here = {key: value for key, value in os.environ.items() if key not in told}
    here |= {"JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_each_core_is_a_device_and_fits_take_one_of_them():
    assert devices() == (4, 1)


@pytest.mark.parametrize(
    "told, expected",
    [
        ({"JAX_NUM_CPU_DEVICES": "3"}, (3, 3)),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, (3, 3)),
    ],
    ids=["jax", "xla"],
)
def test_who_says_how_many_devices_a_cpu_is_has_so_many(told, expected):
    assert devices(**told) == expected


@pytest.mark.parametrize(
    "program, wrong", [("agents", "--world=nowhere"), ("training", "--env=nowhere")]
)
def test_who_evolves_does_it_on_all_cores(program, wrong):
    evolve = f"from {program}.__main__ import main; main(['evolve', {wrong!r}])"
    assert devices(before=evolve)[0] == 4


def test_it_is_too_late_once_jax_has_computed_and_nothing_happens():
    assert devices(before="jax.devices(); make_cores_devices()") == (1, 1)
