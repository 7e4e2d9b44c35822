"""Sim2Real2Sim: drive the real car, learn from that, evolve on in the better dream; again."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array

from training.contender import Contender, RoundCollect, best_of, without_gain
from training.dataset import held_out_images
from training.devices import is_first, wait_for_all
from training.memory import load_memory
from training.presets import Preset
from training.round_report import write_report
from training.run import Run
from training.vision import fit_vision, load_vision
from wm_env.shard import Shard
from wm_env.storage import write_atomically
from wm_env.vae import VAE


def run_loop(preset: Preset, out: Path) -> None:
    """Rounds, each of which goes on from the controller, M and V that drove best so far.

    It ends after `rounds` of them, or `patience` of them in a row without a gain. Those that are
    there count, and stay as they are.

    Raises:
        StoreError: there is no world, or no finished controller, to begin from.
    """
    Contender(out).check()
    run = Run(preset, out)
    for index in itertools.count(1):
        there = run.contenders()
        before, contender = there[:index], Contender(run.round(index))
        best = best_of(before)
        if contender not in there:
            if index > preset.loop.rounds or without_gain(before) >= preset.loop.patience:
                return
            _run_round(run, index, best)
        if is_first():
            write_report(preset, contender, best, run.open(contender.folder / "data"))
        wait_for_all("the round is reported")


def _run_round(run: Run, index: int, best: Contender) -> None:
    preset, loop, folder = run.preset, run.preset.loop, run.round(index)
    driving = {
        "episodes": loop.episodes,
        "cars": loop.cars,
        "first_seed": preset.collect.first_seed + 100_000 * index,
        "world": str(best.world),
        "controller": str(best.controller),
        "noises": loop.noise,
        "weight_noise": loop.weight_noise,
    }
    run.collect(folder / "data", RoundCollect(**(vars(preset.collect) | driving)))
    vision = _see(run, index, best)
    latents, shards = run.encode(vision, index), run.shards(index)
    fitting = replace(preset.memory, steps=loop.memory_steps, seed=preset.memory.seed + index)
    if not Contender(folder).world.exists():
        members = load_memory(preset.memory, best.memory)
        run.fit_world(folder, vision, shards, latents, fitting, members)
    run.evolve(
        replace(
            preset.evolve,
            world=str(Contender(folder).world),
            worlds=preset.evolve.worlds if vision == run.out / "vision" else (),  # one V for all
            controller=str(best.controller),
            search=loop.search,
            out=folder / "evolve",
            generations=loop.generations,
            seed=preset.evolve.seed + index,
        )
    )


def _see(run: Run, index: int, best: Contender) -> Path:
    """The folder of the V for a round: the best contender's, or one that is fitted on from it."""
    folder, old = run.round(index), run.shards(index - 1)
    told, new = Contender(folder).reconstruction, run.open(folder / "data")
    vae = load_vision(run.preset.vision, best.vision)
    if is_first() and not told.exists():
        errors = {"old": reconstruction_error(vae, old), "new": reconstruction_error(vae, new)}
        worse = errors["new"] > errors["old"] * (1.0 + run.preset.loop.vision_tolerance)
        vision = folder / "vision" if worse else best.vision
        _write(told, {"vision": str(vision.relative_to(run.out)), "before": errors})
    wait_for_all("V is judged")
    vision = Contender(folder).vision
    if vision == best.vision:
        return vision
    facts = json.loads(told.read_text())
    if "after" in facts:
        return vision
    seed, steps = run.preset.vision.seed + index, run.preset.loop.vision_steps
    config = replace(run.preset.vision, steps=steps, seed=seed)
    vae = fit_vision([*old, *new], config, vision, begin_from=vae)
    if is_first():
        after = {"old": reconstruction_error(vae, old), "new": reconstruction_error(vae, new)}
        _write(told, {**facts, "after": after})
    wait_for_all("V is fitted on")
    return vision


def reconstruction_error(vae: VAE, shards: list[Shard], *, images: int = 256) -> float:
    """Squared error of an image, of intensities in [0, 1] summed over it; a mean over held-out."""
    return float(_squared_error(vae, jnp.asarray(held_out_images(shards, images)[0])))


@jax.jit
def _squared_error(vae: VAE, images: Array) -> Array:
    def error(image: Array) -> Array:
        return jnp.sum(jnp.square(vae.decode(vae.latent(image)) - image.astype(jnp.float32) / 255))

    return jax.lax.map(error, images, batch_size=16).mean()


def _write(path: Path, facts: dict) -> None:
    write_atomically(path, (json.dumps(facts, indent=1) + "\n").encode())
