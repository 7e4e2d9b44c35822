"""Made-up episodes, small and all different, for tests of shards, the store and its streams."""

import numpy as np

from wm_env.shard import Episode


def made_up_episode(
    seed: int, *, steps: int = 30, driver: str = "heuristic", end: str = "time", plain: bool = False
) -> Episode:
    """An episode whose images carry their own number: pixel (0, 0) is (seed, step, 0).

    The rest is noise, or of one colour where `plain`, which makes small files.
    """
    random = np.random.default_rng(seed)
    shape = (steps + 1, 1, 1, 3) if plain else (steps + 1, 64, 64, 3)
    noise = random.integers(0, 256, shape, dtype=np.uint8)
    images = np.broadcast_to(noise, (steps + 1, 64, 64, 3)).copy()
    images[:, 0, 0, 0], images[:, 0, 0, 1], images[:, 0, 0, 2] = seed, np.arange(steps + 1), 0
    rewards = np.full(steps, -0.1, np.float32)
    rewards[::3] += 1000.0 / 280
    last = np.arange(steps) == steps - 1
    if end == "off_field":
        rewards[-1] = -100.0
    return Episode(
        images=images,
        actions=random.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=rewards,
        terminated=last & (end != "time"),
        truncated=last & (end == "time"),
        track_tiles=280,
        driver=driver,
        seed=seed,
    )
