"""Cores as devices: how many there are then, and who is not asked."""

import os
import subprocess
import sys

import pytest

from wm_env.cores import make_cores_devices, usable_cores


def devices(*, before="make_cores_devices()", **environment):
    """How many devices JAX has in a new process after some code, and how many of them fit."""
    script = f"""
import jax
from wm_env.cores import make_cores_devices
{before}
from training.devices import Devices
print(len(jax.devices()), Devices(12)._split.mesh.size)
"""
    here = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    here |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": ".", **environment}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_each_core_is_a_device_and_fits_take_one_of_them():
    assert devices() == (usable_cores(), 1)


@pytest.mark.parametrize(
    "told, expected",
    [
        ({"JAX_NUM_CPU_DEVICES": "3"}, (3, 1)),
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
    assert devices(before=evolve)[0] == usable_cores()


def test_it_is_too_late_once_jax_has_computed_and_nothing_happens():
    import jax

    count = len(jax.devices())
    make_cores_devices()
    assert len(jax.devices()) == count
