"""`python -m training STAGE --preset laptop --out DIR`: how V and M come to be.

Any number of the preset can be told by its path, as `--memory.asymmetry 5 --vision.beta 0.2`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

PresetName = Literal["smoke", "laptop", "onward", "seed", "paper"]


@dataclass(frozen=True)
class Stage:
    """Options of every stage."""

    preset: PresetName = "laptop"
    env: str = "CarRacing-v3"  # Gymnasium's id of a task in wm_env/task.py, as LunarLander-v3
    out: Path | None = None  # runs/PRESET unless told, of another env runs/ENV-PRESET
    store: str | None = None  # of the shards: a folder or any URL of fsspec; OUT/data unless told
    damaged: Literal["refuse", "skip"] = "refuse"  # what to do about a damaged shard
    backend: Literal["gymnasium", "envpool"] | None = None  # EnvPool where it is installed
    workers: int | None = None  # processes that collect; one a core unless told
    distributed: bool = False  # fit as one of several processes, see training/devices.py

    def run(self, name: str, numbers: Sequence[str]) -> Any:
        """Run the stage of that name in `training.pipeline`, with other `numbers` of its preset."""
        from dataclasses import fields, replace

        # Before the imports below, some of which compute.
        if self.distributed:
            from training.devices import join_hosts

            join_hosts()
        else:
            from wm_env.cores import make_cores_devices

            make_cores_devices()
        from training import pipeline
        from training.begin import sized
        from training.plan import CollectConfig
        from wm_env.task import CAR_RACING, task_named

        task = task_named(self.env)
        chosen = _chosen(self.preset, numbers, task)
        if chosen.collect.env != task.id:
            raise ValueError(
                f"collect.env is {chosen.collect.env!r}; expected {task.id!r}. Give --env, from "
                "which much else follows."
            )
        told = {key: value for key, value in vars(self).items() if value is not None}
        names = {one.name for one in fields(CollectConfig)}
        collect = replace(chosen.collect, **{key: told[key] for key in names & set(told)})
        chosen = replace(
            chosen,
            store=self.store,
            damaged=self.damaged,
            collect=collect,
            evolve=replace(chosen.evolve, backend=collect.backend),
        )
        chosen = sized(chosen)
        folder = self.preset if task == CAR_RACING else f"{task.id}-{self.preset}"
        out = self.out or Path("runs") / folder
        if name == "all":
            return pipeline.run_all(chosen, out)
        return pipeline.run_stage(name, chosen, out)


@dataclass(frozen=True)
class Collect(Stage):
    """Drive real cars, or what `--env` is, and store what they saw, did and got."""

    # Where the preset's is not wanted:
    episodes: dict[str, int] | None = None  # by driver, as `heuristic 64 random 32`
    first_seed: int | None = None  # of the tracks
    cars: int | None = None  # that drive at once in a worker, and episodes in a shard
    max_steps: int | None = None  # frames of an episode at most
    world: str | None = None  # file or shipped name: in it drives on_policy, by
    controller: str | None = None  # file or shipped name, with
    noise: float | None = None  # on its actions: their standard deviation at most
    ray: str | None = None  # HOST:PORT or "auto" of a Ray cluster whose cores are the workers
    patience: float | None = None  # seconds without a sign of life: then a worker counts as hung


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
class Sweep:
    """Fit M with one change at a time on a run's latents, and compare how true the dreams are."""

    preset: PresetName = "onward"
    out: Path | None = None  # of the run, whose V and latents are used; runs/PRESET unless told
    changes: tuple[str, ...] | None = None  # of training/sweep.py; all of them unless told
    steps: int = 300  # of each fit
    begin_from: str | None = "carracing_motion"  # world whose M is fitted on; None fits anew
    driver: str = "carracing_motion"  # world of the same V in whose M the controller is at home
    controller: str = "carracing_motion_controller"  # file or shipped name


@dataclass(frozen=True)
class Data:
    """Show what a store holds: tables by driver and a contact sheet."""

    store: str = "runs/laptop/data"  # a folder or any URL of fsspec
    verify: bool = False  # read every byte and compare with the checksums
    damaged: Literal["refuse", "skip"] = "refuse"  # what to do about a damaged shard; skip verifies


@dataclass(frozen=True)
class Export:
    """Make a Minari dataset of a store."""

    dataset: tyro.conf.Positional[str]  # its id, as carracing/laptop-v0
    store: str = "runs/laptop/data"  # a folder or any URL of fsspec
    author: str | None = None
    damaged: Literal["refuse", "skip"] = "refuse"  # what to do about a damaged shard


@dataclass(frozen=True)
class Import:
    """Add a local Minari dataset of CarRacing to a store."""

    dataset: tyro.conf.Positional[str]  # its id
    store: str = "runs/minari/data"  # a folder or any URL of fsspec


@dataclass(frozen=True)
class Bench:
    """Time collection and the training of V and M."""

    json: Path | None = None  # write the rows here too
    quick: bool = False  # short runs, whose figures are rough


Command = (
    Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Vision, tyro.conf.subcommand("vision")]
    | Annotated[Latents, tyro.conf.subcommand("latents")]
    | Annotated[Memory, tyro.conf.subcommand("memory")]
    | Annotated[Evolve, tyro.conf.subcommand("evolve")]
    | Annotated[Loop, tyro.conf.subcommand("loop")]
    | Annotated[All, tyro.conf.subcommand("all")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only when its work was done."""
    options: Any = {"prog": "python -m training", "description": __doc__, "args": arguments}
    command, numbers = tyro.cli(Command, return_unknown_args=True, **options)  # pyright: ignore
    if numbers and not isinstance(command, Stage | Sweep):
        tyro.cli(Command, **options)  # tells what is unknown, and exits
    try:
        _run(command, numbers)
    except (ValueError, OSError, RuntimeError) as error:  # all of ours are among these
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "stopped; what was finished is kept, and a stage goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


def _chosen(preset: str, numbers: Sequence[str], task: Any = None) -> Any:
    """The preset of that name, for a task or CarRacing, with the numbers told by their paths."""
    from training.presets import Preset, preset_of

    default = preset_of(preset) if task is None else preset_of(preset, task)
    return tyro.cli(Preset, prog="python -m training", default=default, args=numbers)


def _run(command: Any, numbers: Sequence[str]) -> None:
    if isinstance(command, Data):
        from training.overview import run_data

        print(run_data(command.store, verify=command.verify, damaged=command.damaged))
    elif isinstance(command, Export):
        from training.minari_export import export_minari

        options = {"author": command.author, "damaged": command.damaged}
        print(export_minari(command.store, command.dataset, **options))
    elif isinstance(command, Import):
        from training.minari_import import import_minari

        print(*(shard.path for shard in import_minari(command.dataset, command.store)), sep="\n")
    elif isinstance(command, Sweep):
        from training import sweep

        out = command.out or Path("runs") / command.preset
        preset = _chosen(command.preset, numbers)
        config = sweep.SweepConfig(
            changes=command.changes or tuple(sweep.CHANGES),
            steps=command.steps,
            begin_from=command.begin_from,
            driver=command.driver,
            controller=command.controller,
        )
        sweep.run(config, preset.memory, preset.vision, out)
    elif isinstance(command, Bench):
        from training.bench import BenchConfig, run

        run(BenchConfig(json=command.json, quick=command.quick))
    else:
        command.run(type(command).__name__.lower(), numbers)


if __name__ == "__main__":
    sys.exit(main())
