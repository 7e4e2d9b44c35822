"""`python -m wm_env bench`: rows of results, each beside what the hardware would allow at most."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from wm_env import speed
from wm_env.dream import DreamParams
from wm_env.machine import device_name
from wm_env.progress import progress_bar
from wm_env.storage import write_atomically
from wm_env.world_model import WorldModel

DREAM_BATCHES = (1, 256, 1024, 4096)
_LARGE_BATCH = 65_536  # what keeps an accelerator busy

_SPLIT, _SPLIT_BATCHES = " split over the cores", (1024, 4096)

# What the other half of a clone times; a wheel does not have it.
_TRAINING = Path(__file__).parents[1] / "training" / "bench.py"


class BenchError(RuntimeError):
    """A part of the benchmark failed; the message says which."""


@dataclass(frozen=True)
class Row:
    """One result: `limit`, in the same unit, is the most that the hardware would allow."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """The share of the limit that was reached."""
        return self.value / self.limit if self.limit else None


def rows_to_json(rows: Sequence[Row]) -> str:
    """A list of {"name", "value", "unit", "limit" or null, "ratio" or null}."""
    return json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows], indent=2) + "\n"


def rows_from_json(text: str) -> list[Row]:
    """What `rows_to_json` wrote."""
    return [
        Row(item["name"], float(item["value"]), item["unit"], _float_or_none(item["limit"]))
        for item in json.loads(text)
    ]


def _float_or_none(value: float | None) -> float | None:
    return None if value is None else float(value)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON, whole or not at all."""
    write_atomically(path, rows_to_json(rows).encode())


def report(rows: Sequence[Row], path: Path | None) -> None:
    """A table on stdout with this machine as its title, and where there is a path a file."""
    table = Table(title=device_name(), title_justify="left")
    table.add_column("what", overflow="fold")
    for column in ("value", "unit", "limit", "ratio"):
        table.add_column(column, justify="left" if column == "unit" else "right", no_wrap=True)
    for row in rows:
        limit = "" if row.limit is None else _figures(row.limit)
        ratio = "" if row.ratio is None else f"{row.ratio:.1%}"
        table.add_row(row.name, _figures(row.value), row.unit, limit, ratio)
    Console().print(table)
    if path:
        write_rows(rows, path)


def _figures(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class BenchConfig:
    """Time matmuls, dreams and the real CarRacing; in a clone collection and VAE training too."""

    json: Path | None = None  # write the rows here too
    quick: bool = False  # short runs, whose figures are rough
    world: str | None = None  # file or shipped name; speed depends on its sizes only
    training: bool = True  # run `python -m training bench` too, where there is one


def run(config: BenchConfig) -> list[Row]:
    """Time everything, print a table, write JSON; returns the rows."""
    rows = dream_rows(speed.world_or_untrained(config.world), quick=config.quick)
    if config.training and _TRAINING.is_file():
        rows += training_rows(quick=config.quick)
    elif config.training:
        print("collection and VAE training are timed in a clone only", file=sys.stderr)
    report(rows, config.json)
    return rows


class Job(NamedTuple):
    """A rate to measure: its limit is a number, the name of an earlier row, or none."""

    name: str
    measure: Callable[[], float | None]
    limit: float | str | None = None


class Timing(NamedTuple):
    """How long everything is timed."""

    share: float  # of the usual numbers of steps
    repeats: int

    def of(self, count: int) -> dict[str, int]:
        """Steps and repeats, where `count` steps are usual."""
        return {"steps": max(4, int(self.share * count)), "repeats": self.repeats}


def dream_rows(world: WorldModel, *, quick: bool = False) -> list[Row]:
    """Matmul, dream and real rates; a dream's limit is its matmuls at the rate of a large one."""
    largest, timing = (1024, Timing(0.1, 1)) if quick else (4096, Timing(1.0, 3))
    flops, size = speed.matmul_rate(largest, repeats=timing.repeats)
    coarse, _ = speed.matmul_rate(largest, dtype=jnp.bfloat16, repeats=timing.repeats)
    rows = [
        Row(f"float32 matmul, {size} x {size}", flops / 1e9, "GFLOP/s"),
        Row(f"bfloat16 matmul, {size} x {size}", coarse / 1e9, "GFLOP/s"),
    ]
    step_flops = speed.dream_step_flops(world.mdn_rnn)
    image_flops = speed.decoder_flops(world.vae, packed=True)
    limit, painted = flops / step_flops, flops / (step_flops + image_flops)
    jobs = [
        *_gymnax_jobs(world, timing, limit, coarse / step_flops, painted),
        *_gym_jobs(world, timing, limit, painted),
        *_real_jobs(world, timing),
    ]
    memory = speed.copy_rate(repeats=timing.repeats)
    rows.append(Row("memory, read and written", memory / 1e9, "GB/s"))
    rates: dict[str, float] = {}
    with progress_bar("benchmark", total=len(jobs), unit="rates") as bar:
        for name, measure, bound in jobs:
            bar.advance(0, note=name)
            rate = measure()
            if rate is not None:  # EnvPool is not installed, or there is one core
                rates[name] = rate
                most = rates[bound] if isinstance(bound, str) else bound
                rows.append(Row(name, rate, "steps/s", most))
            bar.advance(1)
    return [*rows, *_traffic(world, rates), *_ratios(rates)]


def _batches() -> tuple[int, ...]:
    """Lanes of the dream that are timed on this device."""
    large = () if jax.default_backend() == "cpu" else (_LARGE_BATCH,)
    return (*DREAM_BATCHES, *large)


def _dream(batch: int, kind: str = "") -> str:
    return f"dream{kind}, gymnax env.step, batch {batch}"


def _steps(batch: int) -> int:
    return max(32, 100_000 // (batch + 24))


def _gymnax_jobs(
    world: WorldModel, timing: Timing, limit: float, coarse_limit: float, painted: float
) -> list[Job]:
    params = DreamParams(world_model=world)
    halved = DreamParams(world_model=world.with_precision("bfloat16"))

    def job(
        what: str, batch: int, count: int, most: float, params: DreamParams = params, **options: Any
    ) -> Job:
        return Job(
            _dream(batch, what),
            lambda: speed.dream_rate(params, batch, **timing.of(count), **options),
            most,
        )

    return [
        *(job("", batch, _steps(batch), limit) for batch in _batches()),
        *(
            Job(
                _dream(batch, _SPLIT),
                lambda batch=batch: speed.split_dream_rate(
                    world, batch, **timing.of(_steps(batch))
                ),
                limit,
            )
            for batch in _SPLIT_BATCHES
        ),
        job(" in bfloat16", 1024, 100, coarse_limit, halved),
        job(" in pixels", 256, 40, painted, observation="pixels"),
    ]


def _gym_jobs(world: WorldModel, timing: Timing, limit: float, painted: float) -> list[Job]:
    return [
        *(
            Job(
                f"dream, gym.make_vec, {lanes} lanes",
                lambda lanes=lanes: speed.gym_vector_rate(
                    world, lanes, **timing.of(40_000 // lanes)
                ),
                limit,
            )
            for lanes in (256, 1024)
        ),
        Job("dream, gym.make", lambda: speed.gym_rate(world, **timing.of(1000)), limit),
        Job(
            "dream in pixels, gym.make",
            lambda: speed.gym_rate(world, **timing.of(500), observation="pixels"),
            painted,
        ),
    ]


def _real_jobs(world: WorldModel, timing: Timing) -> list[Job]:
    return [
        Job(
            "real CarRacing-v3, Gymnasium, one core",
            lambda: speed.real_rate(**timing.of(200)),
        ),
        Job(
            "real CarRacing-v3, Gymnasium, all cores",
            lambda: speed.real_rate_of_all_cores(**timing.of(400)),
        ),
        Job(
            "evaluation on Gymnasium, all cores",
            lambda: speed.evaluation_rate(world, **timing.of(200)),
            "real CarRacing-v3, Gymnasium, all cores",
        ),
        Job(
            "real CarRacing-v3, EnvPool, all cores",
            lambda: speed.envpool_rate(**timing.of(100)),
        ),
    ]


def _traffic(world: WorldModel, rates: dict[str, float]) -> list[Row]:
    """What the largest batch moves; without a limit, as caches hold some of it."""
    batch = _batches()[-1]
    moved = speed.dream_step_bytes(DreamParams(world_model=world), batch)
    if moved is None:
        return []
    name = f"{_dream(batch)}: what XLA counts as moved"
    return [Row(name, moved * rates[_dream(batch)] / 1e9, "GB/s")]


def _ratios(rates: dict[str, float]) -> list[Row]:
    """What one rate is of another in the same run."""
    dream, coarse, split = (_dream(1024, kind) for kind in ("", " in bfloat16", _SPLIT))
    real = "real CarRacing-v3, Gymnasium, all cores"
    compared = (
        ("dream in bfloat16 over float32, batch 1024", coarse, dream),
        ("gym.make_vec over gymnax, 1024 lanes", "dream, gym.make_vec, 1024 lanes", dream),
        ("dream, batch 1024, over Gymnasium's real car, all cores each", dream, real),
        ("the same, the dream split over the cores", split, real),
    )
    return [
        Row(name, rates[above] / rates[below], "x")
        for name, above, below in compared
        if above in rates
    ]


def training_rows(*, quick: bool = False) -> list[Row]:
    """The rows of `python -m training bench`, run as a program: it imports us, not we it.

    Raises:
        BenchError: when that program fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "training", "bench", "--json", str(path)]
        command += ["--quick"] if quick else []
        done = subprocess.run(command, cwd=_TRAINING.parents[1], stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            raise BenchError(
                f"`python -m training bench` ended with status {done.returncode}; its message is "
                "above. Run it by itself, or leave it out with --no-training."
            )
        return rows_from_json(path.read_text())
