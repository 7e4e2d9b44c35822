"""The worlds of a run: V, M and start states, with the provenance of all of it."""

import platform
import subprocess
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from training.fit import data_name
from training.latents import LatentShard, vae_fingerprint
from training.memory import member_paths
from training.presets import Preset
from training.starts import assemble_world
from wm_env.mdn_rnn import MDNRNN
from wm_env.shard import Shard
from wm_env.vae import VAE
from wm_env.weights import WeightsError, digest_of, load_world, save_world

_PACKAGES = ("jax", "equinox", "optax", "gymnasium", "gymnax", "evosax", "numpy", "zarr")


def write_worlds(
    preset: Preset,
    folder: Path,
    vae: VAE,
    members: list[MDNRNN],
    shards: list[Shard],
    latents: list[LatentShard],
) -> None:
    """Write `folder/world.safetensors` of V and the M that was fitted.

    A world for each member of an ensemble, as `training.memory.member_paths` names them. Those
    that are made of the same already are kept.
    """
    data = data_name([shard.manifest["checksums"]["images"] for shard in shards])
    worlds = member_paths(preset.memory, folder / "world.safetensors")
    for mdn_rnn, path in zip(members, worlds, strict=True):
        sources = {"V": vae_fingerprint(vae)[:16], "M": digest_of(mdn_rnn)[:16], "data": data}
        sources |= {"hard_starts": f"{preset.hard_starts:g}"} if preset.hard_starts else {}
        if not _is_made_of(sources, path):
            facts = {**provenance(preset, shards), "sources": sources}
            world = assemble_world(vae, mdn_rnn, latents, facts, hard=preset.hard_starts)
            save_world(world, path)


def provenance(preset: Preset, shards: list[Shard]) -> dict[str, Any]:
    """What a world was made of: data, seeds, configs, versions, commit."""
    rows = [row for shard in shards for row in shard.episodes]
    seeds = [row.seed for row in rows]
    return {
        "environment": preset.collect.task.id,
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


def _is_made_of(sources: dict[str, str], path: Path) -> bool:
    try:
        return load_world(path).metadata.get("sources") == sources
    except WeightsError:  # none, or a damaged one: it is written anew
        return False


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
