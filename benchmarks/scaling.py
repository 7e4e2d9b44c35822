"""Dream steps/s against the batch: the curve, and its knee; and where there are several devices,
as which the cores of a CPU count here, the curve of lanes that are split over them.

    uv run --extra envpool python benchmarks/scaling.py [--largest N] [--png FILE] [--json FILE]

`limit` is what the dream's matmuls would allow at the rate of a large one, as in `python -m wm_env
bench`. The knee is the smallest batch that has nine tenths of the best rate.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from wm_env.cores import make_cores_devices  # noqa: E402

make_cores_devices()

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


def all_devices() -> int:
    """How many share the larger batches evenly."""
    return math.gcd(len(jax.devices()), 4**9)


def rates(config: Config, world: WorldModel) -> Iterator[tuple[int, int, float]]:
    """Batch, devices and steps/s; of each batch one after the other, as machines have moods."""
    params = DreamParams(world_model=world.with_precision(config.precision))
    batch = 1
    while batch <= config.largest:
        steps = max(4, min(1000, config.steps // batch))
        timing = {"steps": steps, "repeats": 3 if batch * steps <= config.steps else 1}
        for devices in sorted({1, all_devices()}):
            if batch % devices == 0:
                yield batch, devices, speed.dream_rate(params, batch, devices=devices, **timing)
        batch *= 4


def draw(curves: dict[int, dict[int, float]], limit: float, path: Path) -> None:
    """The curves, by devices, beside the limit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for devices, curve in curves.items():
        axes.loglog(list(curve), list(curve.values()), "o-", label=f"dream{_split(devices)}")
    axes.axhline(limit, color="grey", linestyle="--", label="limit of its matmuls")
    axes.set(xlabel="batch", ylabel="steps/s")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _split(devices: int) -> str:
    return f", split over {devices} devices" if devices > 1 else ""


def main(config: Config) -> None:
    """Time, print, draw."""
    flops, _ = speed.matmul_rate()
    world = speed.world_or_untrained()
    limit = flops / speed.dream_step_flops(world.mdn_rnn)
    rows: list[Row] = []
    curves: dict[int, dict[int, float]] = {}
    for batch, devices, rate in rates(config, world):
        rows.append(Row(f"dream, batch {batch}{_split(devices)}", rate, "steps/s", limit))
        print(f"{rows[-1].name}: {rate:,.0f} steps/s", file=sys.stderr)
        curves.setdefault(devices, {})[batch] = rate
    report(rows, config.json)
    for devices, curve in curves.items():
        knee = min(batch for batch, rate in curve.items() if rate >= 0.9 * max(curve.values()))
        print(f"the knee is at batch {knee}{_split(devices)}")
    if config.png:
        draw(curves, limit, config.png)


if __name__ == "__main__":
    main(tyro.cli(Config))
