"""`python -m wm_env info`: devices, versions, speeds, and what is shipped."""

import json
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from wm_env import speed
from wm_env.cores import usable_cores
from wm_env.dream import DreamParams
from wm_env.progress import progress_bar
from wm_env.weights import load_controller, load_world
from wm_env.weights_file import ASSETS, shipped_names

_PACKAGES = ("jax", "jaxlib", "equinox", "gymnasium", "gymnax", "numpy", "envpool")


@dataclass(frozen=True)
class InfoConfig:
    """Show devices, versions, speeds, and what the shipped weights were made of."""

    matmul: int = 4096  # size of the timed matmul; a smaller one where this would take seconds
    dreams: int = 256
    steps: int = 250  # of each timed dream


def run(config: InfoConfig) -> dict[str, Any]:
    """Print what is here; returns it too."""
    facts = {"python": platform.python_version(), **_devices(), **_versions(), **_speeds(config)}
    _print("this machine", facts)
    shipped = {name: _provenance(name) for name in shipped_names()}
    for name, about in shipped.items():
        _print(f"shipped: {name}", about)
    if not shipped:
        Console().print(f"no world is shipped: there are no weights in {ASSETS}")
    return facts | {"shipped": shipped}


def device_name() -> str:
    """What JAX runs on: "cpu: AMD EPYC 7B13, 2 cores" or "gpu: 1 x NVIDIA H100"."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return f"cpu: {_processor()}, {usable_cores()} cores"
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    return f"{devices[0].platform}: {len(devices)} x {kinds}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _devices() -> dict[str, str]:
    processor = f"{_processor()}, {usable_cores()} cores"
    return {"JAX runs on": device_name(), "processor": processor}


def _versions() -> dict[str, str]:
    versions = {"wm_env": metadata.version("wm_env")} if _installed("wm_env") else {}
    return versions | {
        name: metadata.version(name) if _installed(name) else "not installed" for name in _PACKAGES
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _speeds(config: InfoConfig) -> dict[str, str]:
    world = speed.world_or_untrained()
    with progress_bar("timing", total=2, unit="rates") as bar:
        flops, size = speed.matmul_rate(config.matmul)
        bar.advance(1)
        rate = speed.dream_rate(DreamParams(world_model=world), config.dreams, steps=config.steps)
        bar.advance(1)
    limit = flops / speed.dream_step_flops(world.mdn_rnn)
    kind = "" if "carracing" in shipped_names() else ", untrained weights"
    return {
        "float32 matmul": f"{flops / 1e9:,.0f} GFLOP/s ({size} x {size})",
        "dream": f"{rate:,.0f} steps/s (batch {config.dreams}{kind}), "
        f"{rate / limit:.0%} of what such matmuls allow",
    }


def _provenance(name: str) -> dict[str, Any]:
    """Size, parameters and metadata of shipped weights."""
    size = {"file": f"{(ASSETS / f'{name}.safetensors').stat().st_size / 1e6:.2f} MB"}
    if name.endswith("controller"):
        arrays, about = load_controller(name)
        return size | {"parameters": f"{sum(array.size for array in arrays.values()):,}", **about}
    world = load_world(name)
    starts = world.starts
    return size | {
        "parameters": f"V {_count(world.vae):,}, M {_count(world.mdn_rnn):,}",
        "start states": f"{len(starts.first_z)} first frames, {len(starts.z)} mid-track",
        **world.metadata,
    }


def _count(part: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(part))


def _print(title: str, facts: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)
