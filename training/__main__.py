"""`python -m training STAGE --preset laptop --out DIR`: how V and M come to be."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class Stage:
    """Options of every stage."""

    preset: Literal["smoke", "laptop", "seed", "paper"] = "laptop"
    out: Path | None = None  # runs/PRESET unless told
    backend: Literal["gymnasium", "envpool"] | None = None  # EnvPool where it is installed
    workers: int | None = None  # processes that collect; one a core unless told

    def run(self, name: str) -> Any:
        """Run the stage of that name in `training.pipeline`."""
        from dataclasses import replace

        from training import pipeline
        from training.presets import PRESETS

        chosen = PRESETS[self.preset]
        changes = {"backend": self.backend, "workers": self.workers}
        changes = {key: value for key, value in changes.items() if value is not None}
        collect = replace(chosen.collect, **changes)
        chosen = replace(
            chosen, collect=collect, evolve=replace(chosen.evolve, backend=collect.backend)
        )
        return getattr(pipeline, f"run_{name}")(chosen, self.out or Path("runs") / self.preset)


@dataclass(frozen=True)
class Collect(Stage):
    """Drive real cars and store what they saw, did and got."""


@dataclass(frozen=True)
class Vision(Stage):
    """Fit V on the stored images."""


@dataclass(frozen=True)
class Latents(Stage):
    """Encode the stored images with V."""


@dataclass(frozen=True)
class Memory(Stage):
    """Fit M on the latents, and write the world."""


@dataclass(frozen=True)
class Evolve(Stage):
    """Evolve a controller in the dream, validated on the real track."""


@dataclass(frozen=True)
class Loop(Stage):
    """Rounds of driving, fitting on, and evolving on."""


@dataclass(frozen=True)
class All(Stage):
    """Every stage in order; what is done is kept."""


@dataclass(frozen=True)
class Data:
    """Show what a store holds: a table by driver and a contact sheet."""

    store: Path = Path("runs/laptop/data")
    verify: bool = field(default=False)  # read every byte and compare with the checksums


@dataclass(frozen=True)
class Bench:
    """Time collection and the training of V."""

    json: Path | None = None  # write the rows here too
    quick: bool = False  # short runs, whose figures are rough


Command = (
    Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Vision, tyro.conf.subcommand("vision")]
    | Annotated[Latents, tyro.conf.subcommand("latents")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Evolve, tyro.conf.subcommand("evolve")]
    | Annotated[Loop, tyro.conf.subcommand("loop")]
    | Annotated[All, tyro.conf.subcommand("all")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only when its work was done."""
    command = tyro.cli(Command, prog="python -m training", args=arguments)  # pyright: ignore
    try:
        if isinstance(command, Data):
            from training.inspect import run_data

            print(run_data(command.store, verify=command.verify))
        elif isinstance(command, Bench):
            from training.bench import BenchConfig, run

            run(BenchConfig(json=command.json, quick=command.quick))
        else:
            command.run(type(command).__name__.lower())
    except (ValueError, OSError, RuntimeError) as error:  # all of ours are among these
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "stopped; what was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
