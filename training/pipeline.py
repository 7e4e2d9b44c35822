"""The stages from nothing to a controller, each in a folder of one output, skipped when done.

data/       shards of real driving            (collect)
vision/     V, metrics, pictures              (vision)
latents/    the data seen by V                (latents)
memory/     M, metrics, pictures              (memory)
world.safetensors                             (memory)
evolve/     controllers, history, figure      (evolve)
round-NN/   what a round of the loop added    (loop)
evaluation.json                               (evaluation)

Of several processes the first alone writes, and the others share its fits.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents import evolve
from training.collect import collect
from training.contender import Contender, best_of, evaluate_contender
from training.devices import is_first, wait_for_all
from training.latents import LatentShard, check_encoded_by, encode_store, open_latents
from training.memory import MemoryConfig, fit_memory, load_memory
from training.pictures import memory_pictures
from training.plan import CollectConfig
from training.presets import Preset
from training.provenance import write_worlds
from training.store import open_store
from training.summary import marks, print_summary
from training.vision import fit_vision, load_vision
from wm_env.mdn_rnn import MDNRNN
from wm_env.shard import Shard
from wm_env.storage import StorePath, to_path


def run_collect(preset: Preset, out: Path) -> None:
    """Fill `data/`."""
    _collect(preset, _store(preset, out), preset.collect)


def run_vision(preset: Preset, out: Path) -> None:
    """Fit V on `data/`."""
    # Not what rounds of the loop added: a second run must find the data of the first.
    fit_vision(_shards(preset, out), preset.vision, out / "vision")


def run_latents(preset: Preset, out: Path) -> None:
    """Encode `data/` and what the rounds of the loop added."""
    _encode(preset, out, rounds=preset.loop.rounds)


def run_memory(preset: Preset, out: Path) -> None:
    """Fit M on `latents/` and write the world."""
    latents = open_latents(out / "latents")
    _fit_world(preset, out, out, _shards(preset, out), latents, preset.memory)


def run_evolve(preset: Preset, out: Path) -> None:
    """Evolve a controller in the dream of `world.safetensors`."""
    _evolve(replace(preset.evolve, world=str(Contender(out).world), out=out / "evolve"))


def run_loop(preset: Preset, out: Path) -> None:
    """Rounds, each of which goes on from the controller and the M that drove best so far.

    Drive with them and with noise, fit M on with all data, evolve on from the controller.
    """
    Contender(out).check()
    for index in range(1, preset.loop.rounds + 1):
        best, folder = best_of(_contenders(out, index - 1)), _round(out, index)
        driving = replace(
            preset.collect,
            episodes={"on_policy": preset.loop.episodes},
            first_seed=preset.collect.first_seed + 100_000 * index,
            world=str(best.world),
            controller=str(best.controller),
            noise=preset.loop.noise,
        )
        _collect(preset, folder / "data", driving)
        latents, shards = _encode(preset, out, rounds=index), _shards(preset, out, rounds=index)
        fitting = replace(
            preset.memory, steps=preset.loop.memory_steps, seed=preset.memory.seed + index
        )
        begin_from = load_memory(preset.memory, best.memory)
        _fit_world(preset, out, folder, shards, latents, fitting, begin_from)
        _evolve(
            replace(
                preset.evolve,
                world=str(Contender(folder).world),
                controller=str(best.controller),
                out=folder / "evolve",
                generations=preset.loop.generations,
                seed=preset.evolve.seed + index,
            )
        )


def run_evaluation(preset: Preset, out: Path) -> None:
    """Drive the best controller on real tracks that chose none, and write `evaluation.json`."""
    first = preset.evolve.validation_first_seed + preset.evolve.validation_episodes
    seeds = range(first, first + preset.evaluation.episodes)
    if is_first():
        best = best_of(_contenders(out, preset.loop.rounds))
        steps = preset.evaluation.max_steps
        evaluate_contender(best, seeds=seeds, max_steps=steps, path=out / "evaluation.json")
    wait_for_all("the evaluation is written")


def run_all(preset: Preset, out: Path) -> None:
    """Every stage in order; what is done is kept. At the end a table says what there is."""
    stages = {
        "collect": run_collect,
        "vision": run_vision,
        "latents": run_latents,
        "memory": run_memory,
        "evolve": run_evolve,
        "loop": run_loop,
        "evaluation": run_evaluation,
    }
    store, spent = _store(preset, out), {}
    for stage, run in stages.items():
        before, since = marks(stage, store, out), time.monotonic()
        run(preset, out)
        kept = marks(stage, store, out) == before
        spent[stage] = "kept" if kept else f"{time.monotonic() - since:.1f}"
    if is_first():
        contenders = _contenders(out, preset.loop.rounds)
        print_summary(preset, out, _shards(preset, out), contenders, spent)


def _collect(preset: Preset, store: StorePath, config: CollectConfig) -> None:
    if is_first():
        collect(store, config, damaged=preset.damaged)
    wait_for_all("the driving is stored")


def _encode(preset: Preset, out: Path, *, rounds: int) -> list[LatentShard]:
    stores = _stores(preset, out, rounds)
    if is_first():
        vae = load_vision(preset.vision, out / "vision")
        for store, folder in stores:
            encode_store(open_store(store, damaged=preset.damaged), vae, folder / "latents")
    wait_for_all("the latents are written")
    return [latents for _, folder in stores for latents in open_latents(folder / "latents")]


def _fit_world(
    preset: Preset,
    out: Path,
    folder: Path,
    shards: list[Shard],
    latents: list[LatentShard],
    config: MemoryConfig,
    begin_from: Sequence[MDNRNN] = (),
) -> None:
    """Fit M in `folder/memory`, and write the world of it."""
    vae = load_vision(preset.vision, out / "vision")
    check_encoded_by(latents, vae)
    sizes = vae.config.latent_size, config.mdn_rnn.latent_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"V's latents are of size {sizes[0]} and M is of {sizes[1]}; expected the same. Set "
            "vision.vae.latent-size and memory.mdn-rnn.latent-size alike."
        )

    def draw(mdn_rnn: MDNRNN) -> None:
        memory_pictures(vae, mdn_rnn, shards, latents, folder / "memory")

    options = {"begin_from": begin_from, "pictures": draw}
    members = fit_memory(latents, config, folder / "memory", **options)
    if is_first():
        write_worlds(replace(preset, memory=config), folder, vae, members, shards, latents)
    wait_for_all("the world is written")


def _evolve(config: evolve.EvolveConfig) -> None:
    if is_first():
        evolve.run(config)
    wait_for_all("the controller is written")


def _round(out: Path, index: int) -> Path:
    return out / f"round-{index:02d}"


def _contenders(out: Path, rounds: int) -> list[Contender]:
    """Of the run itself, and of its first `rounds` rounds."""
    return [Contender(out), *(Contender(_round(out, at)) for at in range(1, rounds + 1))]


def _store(preset: Preset, out: Path) -> StorePath:
    return to_path(preset.store or out / "data")


def _stores(preset: Preset, out: Path, rounds: int) -> list[tuple[StorePath, Path]]:
    """The stores of the run and of its first rounds, each with the folder of what it leads to."""
    folders = [_round(out, index) for index in range(1, rounds + 1)]
    driven = [folder for folder in folders if any((folder / "data").glob("shard-*.zip"))]
    return [(_store(preset, out), out), *((folder / "data", folder) for folder in driven)]


def _shards(preset: Preset, out: Path, *, rounds: int = 0) -> list[Shard]:
    return [
        shard
        for store, _ in _stores(preset, out, rounds)
        for shard in open_store(store, damaged=preset.damaged)
    ]
