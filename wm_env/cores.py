"""The cores of this machine, and what JAX makes of them."""

import contextlib
import os

_SIMULATED = "xla_force_host_platform_device_count"  # in XLA_FLAGS, as tests have it

_are_devices = False


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_cores_devices() -> None:
    """Make each core a device of JAX's, unless JAX was told how many a CPU is.

    JAX_NUM_CPU_DEVICES tells it: 1 leaves all as it is, and where a container may use fewer cores
    than it sees, that is their number. To be called before all else, for gymnax computes when it is
    imported; later it does nothing. What is split over devices waits for no other core then, where
    otherwise each operation ends with the slowest: on two, dreams are a tenth to a quarter faster
    (docs/performance.md). Programs of one device use all cores as before.
    """
    import jax  # not for those who only count cores, as collecting workers

    global _are_devices
    told = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if told < 1 and _SIMULATED not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has computed already
            jax.config.update("jax_num_cpu_devices", usable_cores())
            _are_devices = True


def cores_are_devices() -> bool:
    """Whether JAX runs on a CPU and `make_cores_devices` has made its cores devices."""
    import jax

    return _are_devices and jax.default_backend() == "cpu"
