"""The stages from nothing to a controller, each in a folder of one output, skipped when done.

data/       shards of real driving            (collect)
vision/     V, metrics, pictures              (vision)
latents/    the data seen by V                (latents)
memory/     M, metrics                        (memory)
world.safetensors                             (memory)
evolve/     controllers, history, figure      (evolve)
round-NN/   what a round of the loop added    (loop)
"""

import platform
import subprocess
from collections import Counter
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from agents import evolve
from training.collect import collect
from training.devices import is_first
from training.latents import LatentShard, encode_store, open_latents
from training.memory import fit_memory, load_memory
from training.pictures import memory_pictures
from training.plan import CollectConfig
from training.presets import Preset
from training.starts import assemble_world
from training.store import open_store
from training.vision import fit_vision, load_vision
from wm_env.shard import Shard
from wm_env.storage import StoreError, to_path
from wm_env.weights import save_world

_PACKAGES = ("jax", "equinox", "optax", "gymnasium", "gymnax", "evosax", "numpy", "zarr")


def run_collect(preset: Preset, out: Path) -> list[Shard]:
    """Fill `data/`."""
    return collect(_store(preset, out), preset.collect, damaged=preset.damaged)


def run_vision(preset: Preset, out: Path) -> None:
    """Fit V on `data/`."""
    # Not what rounds of the loop added: a second run must find the data of the first.
    shards = open_store(_store(preset, out), damaged=preset.damaged)
    fit_vision(shards, preset.vision, out / "vision")


def run_latents(preset: Preset, out: Path) -> list[LatentShard]:
    """Encode `data/` and what the rounds of the loop added."""
    vae = load_vision(preset.vision, out / "vision")
    return [
        latents
        for store, folder in _stores(preset, out)
        for latents in encode_store(
            open_store(store, damaged=preset.damaged), vae, folder / "latents"
        )
    ]


def run_memory(preset: Preset, out: Path) -> Path:
    """Fit M on `latents/` and write the world."""
    latents = open_latents(out / "latents")
    mdn_rnn = fit_memory(latents, preset.memory, out / "memory")
    if is_first():
        vae = load_vision(preset.vision, out / "vision")
        shards = open_store(_store(preset, out), damaged=preset.damaged)
        memory_pictures(vae, mdn_rnn, shards, latents, out / "memory")
    return write_world(preset, out, latents, memory=out / "memory", path=out / "world.safetensors")


def run_evolve(preset: Preset, out: Path) -> Path:
    """Evolve a controller in the dream of `world.safetensors`."""
    return evolve.run(
        replace(preset.evolve, world=str(out / "world.safetensors"), out=out / "evolve")
    )


def run_loop(preset: Preset, out: Path) -> Path:
    """Rounds that go on from the controller and M.

    Drive with the latest controller and noise, fit M on with all data, evolve on from the
    controller.
    """
    controller, memory = out / "evolve" / "controller.safetensors", out / "memory"
    world = out / "world.safetensors"
    for needed, stage in ((world, "memory"), (controller, "evolve")):
        if not needed.is_file():
            raise StoreError(f"{needed} does not exist; `python -m training {stage}` writes it.")
    for index in range(1, preset.loop.rounds + 1):
        folder = out / f"round-{index:02d}"
        driving = CollectConfig(
            episodes={"on_policy": preset.loop.episodes},
            first_seed=preset.collect.first_seed + 100_000 * index,
            cars=preset.collect.cars,
            max_steps=preset.collect.max_steps,
            backend=preset.collect.backend,
            workers=preset.collect.workers,
            world=str(world),
            controller=str(controller),
            noise=preset.loop.noise,
        )
        collect(folder / "data", driving)
        latents = run_latents(preset, out)
        begin_from = load_memory(preset.memory, memory)
        config = replace(
            preset.memory, steps=preset.loop.memory_steps, seed=preset.memory.seed + index
        )
        memory, world = folder / "memory", folder / "world.safetensors"
        fit_memory(latents, config, memory, begin_from=begin_from)
        write_world(preset, out, latents, memory=memory, path=world)
        search = replace(
            preset.evolve,
            world=str(world),
            controller=str(controller),
            out=folder / "evolve",
            generations=preset.loop.generations,
            seed=preset.evolve.seed + index,
        )
        controller = evolve.run(search)
    return controller


def run_all(preset: Preset, out: Path) -> Path:
    """Every stage in order; what is done is kept."""
    run_collect(preset, out)
    run_vision(preset, out)
    run_latents(preset, out)
    run_memory(preset, out)
    run_evolve(preset, out)
    return run_loop(preset, out)


def write_world(
    preset: Preset, out: Path, latents: list[LatentShard], *, memory: Path, path: Path
) -> Path:
    """Put V, M and start states together, with the provenance of all of it."""
    vae, mdn_rnn = load_vision(preset.vision, out / "vision"), load_memory(preset.memory, memory)
    save_world(
        assemble_world(vae, mdn_rnn, latents, provenance(preset, _all_shards(preset, out))), path
    )
    return path


def provenance(preset: Preset, shards: list[Shard]) -> dict[str, Any]:
    """What a world was made of: data, seeds, configs, versions, commit."""
    rows = [row for shard in shards for row in shard.episodes]
    seeds = [row.seed for row in rows]
    return {
        "environment": "CarRacing-v3",
        "data": {
            "episodes": dict(Counter(row.driver for row in rows)),
            "frames": sum(shard.frames for shard in shards),
            "seeds": [min(seeds), max(seeds)],
            "backend": ", ".join(
                sorted({shard.manifest["provenance"]["backend"] for shard in shards})
            ),
        },
        "vision": asdict(preset.vision),
        "memory": asdict(preset.memory),
        "packages": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "commit": _commit(),
    }


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _store(preset: Preset, out: Path) -> Path:
    return to_path(preset.store or out / "data")


def _stores(preset: Preset, out: Path) -> list[tuple[Path, Path]]:
    """Every store of a run, and the folder of what is made from it."""
    rounds = [store for store in sorted(out.glob("round-*/data")) if any(store.glob("shard-*.zip"))]
    return [(_store(preset, out), out), *((store, store.parent) for store in rounds)]


def _all_shards(preset: Preset, out: Path) -> list[Shard]:
    return [
        shard
        for store, _ in _stores(preset, out)
        for shard in open_store(store, damaged=preset.damaged)
    ]
