"""Collection: real cars, driven headless by scripted or trained drivers, into a store of shards.

A worker process a core takes shard after shard. A shard is one episode on each of `cars` cars, so
what it holds depends on its number and the plan alone: any worker, any machine and any later run
would write the same driving.
"""

import os
import platform
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np

from agents.drivers import Driver, make_driver
from training.store import clean_unfinished, shard_path
from wm_env.car_racing import default_backend
from wm_env.preprocess import preprocess
from wm_env.progress import progress_bar
from wm_env.reward import recover_track_tiles
from wm_env.shard import Episode, Shard, StoreError, read_shard, write_shard


@dataclass(frozen=True)
class CollectConfig:
    """What to collect: episodes by driver (rounded up to whole shards), from `first_seed` on.

    Tracks are seeded from `first_seed`, far from the seeds on which controllers are chosen (0..99)
    and judged (1000..1099). A driver named `policy` is a controller in a world, both given by file,
    with action noise.
    """

    episodes: dict[str, int] = field(
        default_factory=lambda: {
            "track": 256,
            "recovery": 160,
            "aggressive": 96,
            "explore": 192,
            "blind": 256,
            "failures": 32,
            "brownian": 96,
        }
    )
    first_seed: int = 100_000
    cars: int = 16
    max_steps: int = 1000
    backend: Literal["gymnasium", "envpool"] = field(default_factory=default_backend)
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    world: str | None = None
    controller: str | None = None
    noise: float = 0.3

    def plan(self) -> list[str]:
        """The driver of each shard, spread evenly, so that an unfinished store is a mixture too."""
        spread = [
            ((index + 0.5) / shards, name)
            for name, episodes in self.episodes.items()
            for shards in [-(-episodes // self.cars)]
            for index in range(shards)
        ]
        return [name for _, name in sorted(spread)]


def make_lanes(backend: str, seeds: Sequence[int]) -> Any:
    """Vectorised CarRacing-v3, one car for each seed.

    Both back-ends reset on the step after an episode's end.

    Raises:
        ValueError: for an unknown back-end, or EnvPool where it is not installed.
    """
    if backend == "gymnasium":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gym.vector.SyncVectorEnv([lambda: gym.make("CarRacing-v3")] * len(seeds))
    if backend != "envpool":
        raise ValueError(f"unknown backend {backend!r}; expected 'gymnasium' or 'envpool'")
    try:
        import envpool
    except ImportError:
        raise ValueError(
            "backend 'envpool' needs EnvPool, which is not installed: "
            "`uv sync --extra envpool`, or use --backend gymnasium"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return envpool.make_gymnasium(
            "CarRacing-v3", num_envs=len(seeds), num_threads=1, env_seed=list(seeds), seed=seeds[0]
        )


def collect_episodes(
    env: Any, driver: Driver, name: str, seeds: Sequence[int], config: CollectConfig
) -> list[Episode]:
    """Drive one episode with each car of `env`, at most `max_steps` long, and return them all."""
    lanes = len(seeds)
    frames, _ = env.reset(seed=list(seeds)) if config.backend == "gymnasium" else env.reset()
    images = np.empty((lanes, config.max_steps + 1, 64, 64, 3), np.uint8)
    actions = np.empty((config.max_steps, lanes, 3), np.float32)
    rewards = np.empty((config.max_steps, lanes), np.float32)
    ends = np.zeros((2, lanes), bool)
    lengths = np.zeros(lanes, np.int64)
    images[:, 0] = preprocess(frames)
    for step in range(config.max_steps):
        actions[step] = driver.act(frames)
        frames, rewards[step], terminated, truncated, _ = env.step(actions[step])
        running = lengths == step
        images[running, step + 1] = preprocess(frames[running])
        truncated = truncated | (step + 1 == config.max_steps)
        over = terminated | truncated
        ends[:, running & over] = np.stack([terminated, truncated])[:, running & over]
        lengths += running & ~over
        if not (lengths == step + 1).any():
            break
    lengths += ends.any(axis=0)
    return [
        _cut_episode(
            images[lane], actions[:, lane], rewards[:, lane], ends[:, lane], length, name, seed
        )
        for lane, (length, seed) in enumerate(zip(lengths.tolist(), seeds, strict=True))
    ]


def _cut_episode(
    images: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    ends: np.ndarray,
    length: int,
    driver: str,
    seed: int,
) -> Episode:
    last = np.arange(length) == length - 1
    return Episode(
        images=images[: length + 1],
        actions=actions[:length],
        rewards=rewards[:length],
        terminated=last & ends[0],
        truncated=last & ends[1] & ~ends[0],
        track_tiles=recover_track_tiles(rewards[:length]),
        driver=driver,
        seed=seed,
    )


def collect_shard(store: Path, index: int, name: str, config: CollectConfig) -> Shard:
    """Collect shard number `index` of the plan and write it."""
    path = shard_path(store, index)
    seeds = [config.first_seed + index * config.cars + lane for lane in range(config.cars)]
    # No variable holds the episodes: importing EnvPool keeps an ImportError of its own for good,
    # and that keeps the variables of all callers.
    write_shard(path, _drive(name, seeds, config), provenance(config))
    return read_shard(path)


def _drive(name: str, seeds: Sequence[int], config: CollectConfig) -> list[Episode]:
    env = make_lanes(config.backend, seeds)
    try:
        return collect_episodes(env, _driver(name, seeds[0], config), name, seeds, config)
    finally:
        env.close()


def _driver(name: str, seed: int, config: CollectConfig) -> Driver:
    if name != "policy":
        return make_driver(name, config.cars, seed)
    from agents.policy_driver import PolicyDriver

    return PolicyDriver(
        config.cars, seed, world=config.world, controller=config.controller, noise=config.noise
    )


def provenance(config: CollectConfig) -> dict[str, Any]:
    """Simulator and versions, to be stored with the data."""
    packages = ("gymnasium", "numpy", "zarr") + (
        ("envpool",) if config.backend == "envpool" else ()
    )
    return {
        "environment": "CarRacing-v3",
        "backend": config.backend,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def collect(
    store: Path, config: CollectConfig, *, on_shard: Callable[[Shard], None] | None = None
) -> list[Shard]:
    """Fill a store up to the plan; shards that are there are kept and never rewritten.

    Returns:
        The shards of the plan, in order.

    Raises:
        StoreError: when workers die or an existing shard is damaged or is not of this plan.
    """
    if config.workers < 1:
        raise ValueError(f"workers is {config.workers}; expected 1 or more processes.")
    store = Path(store)
    store.mkdir(parents=True, exist_ok=True)
    clean_unfinished(store)
    plan = config.plan()
    done: dict[int, Shard] = {}
    for index, name in enumerate(plan):
        if shard_path(store, index).exists():
            done[index] = _same_plan(read_shard(shard_path(store, index)), name, config)
    missing = [index for index in range(len(plan)) if index not in done]
    with progress_bar(
        "collecting", total=len(plan) * config.cars, done=len(done) * config.cars, unit="episodes"
    ) as bar:
        pool = ProcessPoolExecutor(
            max(1, min(config.workers, len(missing))),
            mp_context=get_context("spawn"),
            initializer=_end_with_parent,
        )
        try:
            waiting: dict[Future[Shard], int] = {
                pool.submit(collect_shard, store, index, plan[index], config): index
                for index in missing
            }
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    index = waiting.pop(future)
                    shard = done[index] = future.result()
                    returns = [row.ret for row in shard.episodes]
                    bar.advance(
                        config.cars,
                        frames=shard.frames,
                        note=f"{plan[index]} {np.mean(returns):.0f}",
                    )
                    if on_shard:
                        on_shard(shard)
        except BrokenProcessPool as error:
            raise StoreError(
                f"a collecting worker died after {len(done)} of {len(plan)} shards ({error}); "
                "finished shards are safe. Run the same command again; with fewer --workers if "
                "memory ran out."
            ) from error
        except BaseException:
            # Ctrl-C or an error: do not wait minutes for shards in hand, which would be collected
            # again anyway.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
                process.join()
            clean_unfinished(store)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [done[index] for index in range(len(plan))]


def _end_with_parent() -> None:
    """In a worker: end at once when the collecting process dies, even by kill -9."""

    def watch() -> None:
        connection.wait([cast(Any, parent_process()).sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _same_plan(shard: Shard, name: str, config: CollectConfig) -> Shard:
    row = shard.episodes[0]
    index = int(shard.path.stem.split("-")[1])
    expected = (name, config.first_seed + index * config.cars)
    if (row.driver, row.seed) != expected:
        raise StoreError(
            f"shard {shard.path} was driven by {row.driver!r} from seed {row.seed}, but this plan "
            f"asks for {expected[0]!r} from seed {expected[1]}; use another --out, or the command "
            "that began this store."
        )
    return shard
