"""`python -m training bench`: how fast driving becomes stored frames, and these train V and M."""

import contextlib
import itertools
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from training import memory
from training.collect import collect
from training.dataset import ImageStream, Windows
from training.memory_loss import MemoryConfig
from training.plan import CollectConfig
from training.store import open_store, shard_path
from training.vision import VisionConfig, VisionState, make_train_step, new_state
from wm_env.bench import Row, report
from wm_env.motion import MOTION_SIZE
from wm_env.preprocess import IMAGE_SHAPE
from wm_env.progress import progress_bar
from wm_env.shard import Episode, Shard, write_shard
from wm_env.speed import (
    best_rate,
    decoder_flops,
    dream_step_flops,
    encoder_flops,
    matmul_rate,
)


@dataclass(frozen=True)
class BenchConfig:
    """Time collection (drivers, resizing, compression), the store, and the training of V and M."""

    json: Path | None = None  # write the rows here too
    quick: bool = False  # short runs, whose figures are rough


def run(config: BenchConfig, vision: VisionConfig | None = None) -> list[Row]:
    """Collect into a temporary folder, train a fresh V on that and an M, print a table of rows."""
    with tempfile.TemporaryDirectory() as folder:
        rows, shards = collection_rows(Path(folder) / "data", quick=config.quick)
        rows += [opening_row(Path(folder) / "synthetic")]
        rows += vision_rows(shards, vision or VisionConfig(), quick=config.quick)
    rows += [memory_row(MemoryConfig(), quick=config.quick)]
    report(rows, config.json)
    return rows


def collection_rows(store: Path, *, quick: bool = False) -> tuple[list[Row], list[Shard]]:
    """Frames/s, peak memory and size on disk of collecting a few shards; also returns the shards.

    Starting the workers is timed too, so that longer collections are somewhat faster.
    """
    config = CollectConfig()
    steps = 1000 if config.backend == "envpool" else 250
    each = 1 if quick else 4
    drivers = ("heuristic", "recovery")
    config = replace(
        config,
        episodes={name: each * config.workers * config.cars // 2 for name in drivers},
        max_steps=min(steps, 250) if quick else steps,
    )
    begin = time.perf_counter()
    with peak_memory(config.workers) as memory:
        shards = collect(store, config)
    seconds = time.perf_counter() - begin
    frames = sum(shard.frames for shard in shards)
    size = sum(shard.path.stat().st_size for shard in shards)
    workers = f"{config.workers} workers{'' if _HAS_PSS else ', at most'}"
    return [
        Row(f"collection, {config.backend}", frames / seconds, "stored frames/s"),
        Row(f"collection, peak memory with {workers}", memory(), "GB"),
        Row("store, size on disk", size / frames, "bytes/frame"),
    ], shards


_HAS_PSS = os.path.exists("/proc/self/smaps_rollup")


@contextlib.contextmanager
def peak_memory(workers: int, *, every: float = 5.0) -> Iterator[Callable[[], float]]:
    """Gives what, after the block, tells the peak memory of this process and its descendants in GB.

    Their proportional set size, sampled `every` so many seconds: a page that several processes
    share counts once. Without Linux's /proc an upper bound: the peak of this process and `workers`
    times that of its largest child, pages that they share included.
    """
    if not _HAS_PSS:
        yield lambda: _peak_at_most(workers)
        return
    peak, over = [_family_pss()], threading.Event()

    def sample() -> None:
        while not over.wait(every):
            peak[0] = max(peak[0], _family_pss())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        over.set()
        thread.join()


def _family_pss() -> float:
    """GB of this process and its descendants now."""
    parents, kilobytes = {}, 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    family, more = set(), {os.getpid()}
    while more:
        family |= more
        more = {pid for pid, parent in parents.items() if parent in family} - family
    for pid in family:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes * 1024e-9


def _peak_at_most(workers: int) -> float:
    deadline = time.monotonic() + 30.0
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)  # only children that have ended are counted
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1e-9 if sys.platform == "darwin" else 1024e-9  # Linux counts in kilobytes
    return (mine + workers * largest) * unit


def opening_row(store: Path, *, shards: int = 625, cars: int = 16, steps: int = 1000) -> Row:
    """Seconds to open a store of black episodes, as many and as long as of a full collection.

    Resuming a collection costs this too.
    """
    done = np.arange(steps) == steps - 1
    black = Episode(
        images=np.broadcast_to(np.uint8(0), (steps + 1, *IMAGE_SHAPE)),
        actions=np.zeros((steps, 3), np.float32),
        rewards=np.zeros(steps, np.float32),
        terminated=np.zeros(steps, bool),
        truncated=done,
        track_tiles=280,
        driver="black",
        seed=0,
    )
    first = write_shard(shard_path(store, 0), [black] * cars, {}).path
    for index in range(1, shards):
        shutil.copyfile(first, shard_path(store, index))
    begin = time.perf_counter()
    episodes = sum(len(shard.episodes) for shard in open_store(store))
    return Row(f"store, opening {episodes:,} episodes", time.perf_counter() - begin, "s")


def vision_rows(shards: list[Shard], config: VisionConfig, *, quick: bool = False) -> list[Row]:
    """Images/s of training V on a store, and of reading it in random order, alone and meanwhile."""
    steps, reads = (3, 20) if quick else (24, 400)
    train_step, state = make_train_step(config), new_state(config)
    # Gradients of inputs and of weights cost one each.
    flops = 3.0 * (encoder_flops(state.vae) + decoder_flops(state.vae))
    stream = ImageStream(shards, batch=config.batch, seed=config.seed)
    batches, key = stream.batches(), jax.random.key(0)

    def train(state: VisionState, count: int) -> VisionState:
        for images in itertools.islice(batches, count):
            state = jax.block_until_ready(train_step(state, images, key)[0])
            bar.advance(1)
        return state

    with progress_bar("training V", total=2 * steps + 1) as bar:
        alone = reading_rate(stream, reads)
        state = train(state, 1)  # compiles
        begin = time.perf_counter()
        state = train(state, steps)
        rate = steps * config.batch / (time.perf_counter() - begin)
        training = threading.Thread(target=train, args=(state, steps))
        training.start()
        meanwhile = reading_rate(stream, reads, until=lambda: not training.is_alive())
        training.join()
    dtype, name = (jnp.bfloat16, "bfloat16") if config.bfloat16 else (jnp.float32, "float32")
    most, _ = matmul_rate(1024 if quick else 4096, dtype=dtype)
    return [
        Row("store, random reads", alone, "images/s"),
        Row("store, random reads while V trains", meanwhile, "images/s"),
        Row(f"VAE training, {name}, batch {config.batch}", rate, "images/s", most / flops),
    ]


def memory_row(config: MemoryConfig, *, quick: bool = False) -> Row:
    """Steps/s of training M, those of burn-in included, on made-up windows of the usual size."""
    whole = (config.length + config.burn_in) if config.length else 1000
    batch, length = (8, 16) if quick else (config.batch, whole)
    random = np.random.default_rng(0)

    def made_up(*shape: int) -> np.ndarray:
        return random.uniform(size=(batch, *shape)).astype(np.float32)

    size = config.mdn_rnn.latent_size
    windows = Windows(
        z=made_up(length + 1, size),
        log_sigma=made_up(length + 1, size),
        actions=made_up(length, 3),
        tiles=made_up(length),
        off_field=made_up(length),
        weight=np.ones((batch, length), np.float32),
        track_tiles=np.full(batch, 280.0, np.float32),
        motion=made_up(length + 1, MOTION_SIZE),
    )
    train_step, key, state = (
        memory.make_train_step(config),
        jax.random.key(0),
        [memory.new_state(config)],
    )
    flops = 3.0 * dream_step_flops(state[0].mdn_rnns)  # of all members

    def step() -> None:
        state[0], metrics = train_step(state[0], windows, key)
        jax.block_until_ready(metrics)

    with progress_bar("training M", total=1) as bar:
        rate = best_rate(step, batch * length)
        bar.advance(1)
    most, _ = matmul_rate(1024 if quick else 4096)
    return Row(f"M training, float32, {batch} windows of {length}", rate, "steps/s", most / flops)


def reading_rate(
    stream: ImageStream, batches: int, *, until: Callable[[], bool] = lambda: False
) -> float:
    """Images/s of a stream from its beginning, over so many batches or `until` is true."""
    images, begin = 0, time.perf_counter()
    for batch in itertools.islice(stream.batches(), batches):
        images += len(batch)
        if until():
            break
    return images / (time.perf_counter() - begin)
