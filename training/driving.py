"""Driving for the store: one episode on each car of a shard's plan, as V will see it."""

import functools
import time
from collections.abc import Generator
from contextlib import closing

import numpy as np

from agents.drivers import make_driver
from training.plan import CollectConfig, ShardPlan
from wm_env.preprocess import IMAGE_SHAPE
from wm_env.reward import recover_track_tiles
from wm_env.shard import Episode
from wm_env.simulator import make_simulator_vector

_SIGN_SECONDS = 1.0  # between signs of life


def drive(
    plan: ShardPlan, config: CollectConfig
) -> Generator[tuple[float, int], None, list[Episode]]:
    """Drive one episode for each seed, at most `max_steps` long, and return them all.

    Their images lie in memory that the process's next shard will use again.
    """
    lanes, told = len(plan.seeds), time.monotonic()
    task, options = config.task, plan.driver_options(config)
    driver = make_driver(plan.driver, lanes, plan.seeds[0], task=task, **options)
    with closing(
        make_simulator_vector(
            task, lanes, backend=config.backend, max_episode_steps=config.max_steps, threads=1
        )
    ) as env:
        frames, _ = env.reset(seed=list(plan.seeds))  # pyright: ignore[reportArgumentType]
        images = _image_memory(lanes, config.max_steps + 1)
        actions = np.empty((config.max_steps, lanes, task.action_size), np.float32)
        rewards = np.empty((config.max_steps, lanes), np.float32)
        ends = np.zeros((2, lanes), bool)  # terminated, truncated
        lengths = np.zeros(lanes, np.int64)
        images[:, 0] = task.preprocess(frames)
        for step in range(config.max_steps):
            actions[step] = driver.act(frames)
            frames, rewards[step], terminated, truncated, _ = env.step(actions[step])
            running = ~ends.any(axis=0)
            images[running, step + 1] = task.preprocess(frames[running])
            lengths += running
            ends[:, running] = np.stack([terminated, truncated & ~terminated])[:, running]
            if ends.any(axis=0).all():
                break
            if time.monotonic() - told > _SIGN_SECONDS:
                told = time.monotonic()
                yield (step + 1) / config.max_steps, int(lengths.sum())
    return [
        Episode.driven(
            images[lane, : length + 1],
            actions[:length, lane],
            rewards[:length, lane],
            terminated=bool(ends[0, lane]),
            track_tiles=recover_track_tiles(rewards[:length, lane]) if task.pays_tiles else 0,
            driver=plan.driver,
            seed=seed,
            task=task,
        )
        for lane, (length, seed) in enumerate(zip(lengths.tolist(), plan.seeds, strict=True))
    ]


@functools.lru_cache(maxsize=1)
def _image_memory(lanes: int, frames: int) -> np.ndarray:
    """Memory that a process uses for one shard after another: fresh pages are slow to get."""
    return np.empty((lanes, frames, *IMAGE_SHAPE), np.uint8)
