"""A run that begins from a world and its controller, as if its own stages had led to them.

`vision/`, `memory/`, `world.safetensors` and `evolve/` hold then what was taken over; what the run
does itself is to drive, and the rounds of the loop.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from agents.evolve import validate
from agents.linear import linear_policy, load_linear, save_linear
from training.contender import Contender
from training.presets import Preset
from wm_env.checkpoint import save_checkpoint
from wm_env.evaluation import evaluate
from wm_env.storage import StoreError, write_atomically
from wm_env.weights import WeightsError, digest_of, load_world, save_world, world_for
from wm_env.world_model import WorldModel


def sized(preset: Preset) -> Preset:
    """The preset with V and M of the sizes of the world that it begins from, if it does so.

    M's dropout stays as told. The driver `on_policy` is the controller in that world, unless told.

    Raises:
        ValueError: it names a world and no controller, or the other way round; or asks for several
            M's, of which that world has one.
        WeightsError: the world cannot be loaded, or is of another task.
    """
    begin = preset.begin
    if begin.world is None and begin.controller is None:
        return preset
    if begin.world is None or begin.controller is None:
        raise ValueError(
            f"begin.world is {begin.world} and begin.controller {begin.controller}; expected both, "
            "a world and who drives in it, or neither."
        )
    if preset.memory.members != 1:
        raise ValueError(
            f"memory.members is {preset.memory.members}, but a run that begins from {begin.world} "
            "has its one M; expected 1."
        )
    world, collect = world_for(preset.collect.task, begin.world), preset.collect
    sizes = replace(world.mdn_rnn.config, dropout=preset.memory.mdn_rnn.dropout)
    return replace(
        preset,
        collect=replace(
            collect,
            world=collect.world or begin.world,
            controller=collect.controller or begin.controller,
        ),
        vision=replace(preset.vision, vae=world.vae.config),
        memory=replace(preset.memory, mdn_rnn=sizes),
    )


def take_vision(preset: Preset, out: Path) -> None:
    """Put the world's V where the stage `vision` would."""
    vae = _world(preset, out).vae
    save_checkpoint(vae, 0, out / "vision" / "vae.safetensors")


def take_memory(preset: Preset, out: Path) -> None:
    """Put the world, and its M, where the stage `memory` would."""
    world = _world(preset, out)
    contender = Contender(out)
    save_checkpoint(world.mdn_rnn, 0, contender.memory / "mdn_rnn.safetensors")
    if not contender.world.exists():
        save_world(world, contender.world)


def take_controller(preset: Preset, out: Path) -> None:
    """Put the controller where the stage `evolve` would, with what it gets in dreams and for real.

    One that is there is kept.
    """
    contender, evolving = Contender(out), preset.evolve
    assert preset.begin.controller is not None
    world = _world(preset, out)
    features = world.latent_size + world.hidden_size
    controller, facts = load_linear(preset.begin.controller, features=features, task=world.task)
    if contender.controller.exists():
        if digest_of(load_linear(contender.controller)[0]) != digest_of(controller):
            raise _other(preset.begin.controller, contender.controller)
        return
    backend = evolving.backend or preset.collect.backend
    validation = validate(controller, world, replace(evolving, backend=backend), progress=True)
    dreamt = evaluate(
        linear_policy,
        controller,
        env="dream",
        seeds=range(64),
        world_model=world,
        max_episode_steps=evolving.search.steps,
        dream={"temperature": evolving.temperature, "persistence": evolving.persistence},
        progress=False,
    )
    line = {"generation": 0, "fixed_return": dreamt.mean, **validation, "at": time.time()}
    history = contender.controller.parent / "history.jsonl"
    write_atomically(history, (json.dumps(line) + "\n").encode())
    told = {"generation": 0, "validation": validation, "finished": True, "begun_from": facts}
    save_linear(controller, contender.controller, told)


def _world(preset: Preset, out: Path) -> WorldModel:
    """The world to begin from; what is in `out` must be that too."""
    assert preset.begin.world is not None
    world, there = world_for(preset.collect.task, preset.begin.world), Contender(out).world
    for fit in ("vision", "memory"):
        if (out / fit / "checkpoint.safetensors").exists():  # what is here was fitted here
            raise _other(preset.begin.world, out / fit)
    if there.exists():
        try:
            same = digest_of(load_world(there)) == digest_of(world)
        except WeightsError:
            same = False
        if not same:
            raise _other(preset.begin.world, there)
    return world


def _other(name: str, there: Path) -> StoreError:
    return StoreError(
        f"{there} is not {name}, from which this run is to begin; use another --out, or the "
        "begin.* that it began with."
    )
