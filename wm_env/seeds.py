"""Seeds: of vector environments, and those that must stay out of the data."""

from collections.abc import Iterable, Sequence

HELD_OUT = {"choosing": range(100), "judging": range(1000, 1100)}  # controllers


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


def check_choosing(seeds: Sequence[int]) -> None:
    """Let controllers be chosen on the tracks for that alone.

    Raises:
        ValueError: one of the seeds is of another track.
    """
    choosing = HELD_OUT["choosing"]
    if not set(seeds) <= set(choosing):
        raise ValueError(
            f"validation or evaluation would drive seeds {seeds[0]}..{seeds[-1]}; expected some of "
            f"{choosing[0]}..{choosing[-1]}, which are for choosing. Take fewer episodes or an "
            "earlier first seed; others are judged by `python -m agents evaluate`."
        )


def refuse_held_out(seeds: Iterable[int]) -> None:
    """Let only tracks into the data that no controller is chosen or judged on.

    Raises:
        ValueError: the seed of such a track.
    """
    for seed in seeds:
        for purpose, held_out in HELD_OUT.items():
            if seed in held_out:
                raise ValueError(
                    f"seed {seed} is among {held_out[0]}..{held_out[-1]}, which are kept for "
                    f"{purpose} controllers and must not get into the data; take another seed."
                )


def is_held_out(seed: int) -> bool:
    """Whether controllers are chosen or judged on the track of that seed."""
    return any(seed in held_out for held_out in HELD_OUT.values())
