"""`python -m training bench`: how fast driving becomes stored frames, and stored frames train V."""

import multiprocessing
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from training.collect import CollectConfig, collect
from training.dataset import ImageStream
from training.vision import VisionConfig, VisionState, make_train_step, new_state
from wm_env.bench import Row, print_rows, write_rows
from wm_env.judge import usable_cores
from wm_env.machine import device_name
from wm_env.progress import progress_bar
from wm_env.shard import Shard
from wm_env.speed import matmul_rate
from wm_env.vae import VAE


@dataclass(frozen=True)
class BenchConfig:
    """Time collection (drivers, resizing and compression included) and the training of V."""

    json: Path | None = None  # write the rows here too
    quick: bool = False  # short runs, whose figures are rough


def run(config: BenchConfig, vision: VisionConfig | None = None) -> list[Row]:
    """Collect into a temporary folder, train a fresh V on that, print a table; returns the rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows, shards = collection_rows(Path(folder), quick=config.quick)
        rows += vision_rows(shards, vision or VisionConfig(), quick=config.quick)
    print_rows(rows, device_name())
    if config.json:
        write_rows(rows, config.json)
    return rows


def collection_rows(store: Path, *, quick: bool = False) -> tuple[list[Row], list[Shard]]:
    """Stored frames/s and peak memory of collecting a few shards; also returns the shards.

    Starting the workers is timed too, so that longer collections are somewhat faster. The memory
    adds up the processes' peaks, pages that they share included, and is thus an upper bound.
    """
    config = CollectConfig(workers=usable_cores())
    steps = 1000 if config.backend == "envpool" else 250
    each = 1 if quick else 2
    config = replace(
        config,
        episodes={name: each * usable_cores() * config.cars // 2 for name in ("track", "recovery")},
        max_steps=min(steps, 250) if quick else steps,
    )
    begin = time.perf_counter()
    shards = collect(store, config)
    seconds = time.perf_counter() - begin
    frames = sum(shard.frames for shard in shards)
    workers = min(config.workers, len(shards))
    return [
        Row(f"collection, {config.backend}", frames / seconds, "stored frames/s"),
        Row(f"collection, peak memory with {workers} workers", peak_memory(workers), "GB"),
    ], shards


def peak_memory(workers: int) -> float:
    """GB at most: the peak of this process and `workers` times that of its largest child."""
    deadline = time.monotonic() + 30.0
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)  # only children that have ended are counted
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1e-9 if sys.platform == "darwin" else 1024e-9  # Linux counts in kilobytes
    return (mine + workers * largest) * unit


def vision_rows(shards: list[Shard], config: VisionConfig, *, quick: bool = False) -> list[Row]:
    """Images/s of training V on a store, streaming from it included."""
    steps = 3 if quick else 24
    train_step, state = make_train_step(config), new_state(config)
    flops = 3.0 * forward_flops(state.vae)  # gradients of inputs and of weights cost one each
    batches = ImageStream(shards, batch=config.batch, seed=config.seed).batches()
    key = jax.random.key(0)

    def advance(state: VisionState) -> VisionState:
        return train_step(state, next(batches), key)[0]

    with progress_bar("training V", total=steps + 1) as bar:
        state = jax.block_until_ready(advance(state))
        bar.advance(1)
        begin = time.perf_counter()
        for _ in range(steps):
            state = jax.block_until_ready(advance(state))
            bar.advance(1)
        rate = steps * config.batch / (time.perf_counter() - begin)
    dtype, name = (jnp.bfloat16, "bfloat16") if config.bfloat16 else (jnp.float32, "float32")
    most, _ = matmul_rate(1024 if quick else 4096, dtype=dtype)
    return [Row(f"VAE training, {name}, batch {config.batch}", rate, "images/s", most / flops)]


def forward_flops(vae: VAE) -> float:
    """Floating-point operations of V's matmuls for one image, to the latent and back."""
    total, side = 2.0 * (vae.to_posterior.weight.size + vae.from_latent.weight.size), 64
    for layer in vae.encoder:
        side = (side - layer.kernel.shape[0]) // 2 + 1
        total += 2.0 * side * side * layer.kernel.size
    side = 1
    for layer in vae.decoder:
        total += 2.0 * side * side * layer.kernel.size
        side = 2 * side + layer.kernel.shape[0] - 2
    return total
