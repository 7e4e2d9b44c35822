"""Dream steps/s against the batch: the curve, and its knee.

    uv run --extra envpool python benchmarks/scaling.py [--largest N] [--png FILE] [--json FILE]

`limit` is what the dream's matmuls would allow at the rate of a large one, as in `python -m wm_env
bench`. The knee is the smallest batch that has nine tenths of the best rate.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from wm_env import speed  # noqa: E402
from wm_env.bench import Row, report  # noqa: E402
from wm_env.dream import DreamParams  # noqa: E402
from wm_env.world_model import WorldModel  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Time batches 1, 4, 16 and so on."""

    largest: int = 262_144
    precision: str = "float32"
    steps: int = 200_000  # dreamt for each figure, or 4 of each lane where that is more
    png: Path | None = None  # draw the curve here
    json: Path | None = None  # write the rows here too


def rates(config: Config, world: WorldModel) -> dict[int, float]:
    """Steps/s by batch."""
    params = DreamParams(world_model=world.with_precision(config.precision))
    found, batch = {}, 1
    while batch <= config.largest:
        steps = max(4, min(1000, config.steps // batch))
        repeats = 3 if batch * steps <= config.steps else 1
        found[batch] = speed.dream_rate(params, batch, steps=steps, repeats=repeats)
        print(f"batch {batch}: {found[batch]:,.0f} steps/s", file=sys.stderr)
        batch *= 4
    return found


def draw(found: dict[int, float], limit: float, path: Path) -> None:
    """The curve beside its limit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.loglog(list(found), list(found.values()), "o-", label="dream")
    axes.axhline(limit, color="grey", linestyle="--", label="limit of its matmuls")
    axes.set(xlabel="batch", ylabel="steps/s")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(config: Config) -> None:
    """Time, print, draw."""
    flops, _ = speed.matmul_rate()
    world = speed.world_or_untrained()
    limit = flops / speed.dream_step_flops(world.mdn_rnn)
    found = rates(config, world)
    rows = [Row(f"dream, batch {batch}", rate, "steps/s", limit) for batch, rate in found.items()]
    report(rows, config.json)
    knee = min(batch for batch, rate in found.items() if rate >= 0.9 * max(found.values()))
    print(f"the knee is at batch {knee}")
    if config.png:
        draw(found, limit, config.png)


if __name__ == "__main__":
    main(tyro.cli(Config))
