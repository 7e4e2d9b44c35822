"""Seeds of vector environments."""

from collections.abc import Sequence


def lane_seeds(seed: int | Sequence[int], num_envs: int) -> list[int]:
    """One seed a lane: `seed`, `seed + 1`, …, or those that are given.

    Raises:
        ValueError: the number of seeds is not that of the lanes, or one is negative.
    """
    if isinstance(seed, Sequence):
        seeds = [int(lane) for lane in seed]
    else:
        seeds = [int(seed) + lane for lane in range(num_envs)]
    if len(seeds) != num_envs or min(seeds) < 0:
        raise ValueError(
            f"got {len(seeds)} seeds for {num_envs} lanes, the least of them "
            f"{min(seeds, default=None)}; give one number, or one for each lane, none negative."
        )
    return seeds
