"""Runs that begin from a world and its controller: what they take over, and what they refuse."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from agents import evolve
from agents.linear import LinearController, load_linear, save_linear
from training import begin, pipeline
from training.__main__ import main
from training.begin import sized
from training.contender import Contender
from training.memory import load_memory
from training.presets import ONWARD, BeginConfig, Preset
from training.run import Run
from training.summary import marks
from training.vision import load_vision
from wm_env.storage import StoreError
from wm_env.weights import load_world, save_world

STAGES = ("vision", "memory", "evolve")


@pytest.fixture
def begun(tmp_path, world, monkeypatch):
    """`begun.play()`: the stages of a run that takes over a random world and controller."""
    drives = []

    def evaluate(policy, controller, *, env, **options):
        drives.append((env, options))
        mean, count = (800.0, 32) if env == "real" else (700.0, 64)
        return SimpleNamespace(mean=mean, std=5.0, returns=(mean,) * count)

    for module in (begin, evolve):
        monkeypatch.setattr(module, "evaluate", evaluate)
    save_world(world, tmp_path / "given.safetensors")
    weight = jax.random.normal(jax.random.key(0), (3, 288))
    controller = LinearController(weight, jax.numpy.zeros(3))
    save_linear(controller, tmp_path / "driver.safetensors", {"from": "a test"})
    given = BeginConfig(str(tmp_path / "given.safetensors"), str(tmp_path / "driver.safetensors"))
    preset, out = sized(replace(ONWARD, begin=given)), tmp_path / "run"

    def play(preset=preset):
        for stage in STAGES:
            getattr(pipeline, f"run_{stage}")(preset, out)

    return SimpleNamespace(play=play, preset=preset, out=out, drives=drives, folder=tmp_path)


def test_stages_leave_what_was_taken_over_where_rounds_look_for_it(begun, world):
    begun.play()
    (contender,) = Run(begun.preset, begun.out).contenders()
    contender.check()
    assert contender.scores() == {
        "generation": 0,
        "dream": 700.0,
        "real_mean": 800.0,
        "real_std": 5.0,
        "real_episodes": 32,
    }
    vae, (mdn_rnn,) = (
        load_vision(begun.preset.vision, contender.vision),
        load_memory(begun.preset.memory, contender.memory),
    )
    there = load_world(begun.folder / "given.safetensors")
    for got, expected in ((vae, there.vae), (mdn_rnn, there.mdn_rnn)):
        for one, other in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert load_linear(contender.controller)[1]["begun_from"] == {"from": "a test"}
    real, dream = (options for _, options in begun.drives)
    assert real["seeds"] == range(32)
    assert dream["dream"] == {"temperature": 0.8, "persistence": 0.5}


def test_what_was_taken_over_is_not_driven_again(begun):
    begun.play()
    before = {stage: marks(stage, begun.out / "data", begun.out) for stage in STAGES}
    begun.play()
    assert len(begun.drives) == 2
    assert {stage: marks(stage, begun.out / "data", begun.out) for stage in STAGES} == before


def test_another_world_or_controller_than_the_runs_is_refused(begun, random_world):
    begun.play()
    other = begun.folder / "other.safetensors"
    save_world(random_world(seed=5), other)
    with pytest.raises(StoreError, match=r"world.safetensors is not .*other.*another --out"):
        begun.play(replace(begun.preset, begin=replace(begun.preset.begin, world=str(other))))
    save_linear(LinearController.zeros(288), other)
    with pytest.raises(StoreError, match=r"controller.safetensors is not .*other"):
        begun.play(replace(begun.preset, begin=replace(begun.preset.begin, controller=str(other))))


@pytest.mark.parametrize("fit", ["vision", "memory"])
def test_what_the_run_has_fitted_itself_is_not_replaced(begun, fit):
    (begun.out / fit).mkdir(parents=True)
    (begun.out / fit / "checkpoint.safetensors").write_bytes(b"of a fit")
    with pytest.raises(StoreError, match=f"{fit} is not .*given.*another --out"):
        begun.play()


def test_sizes_are_those_of_the_world():
    preset = sized(replace(Preset(), begin=ONWARD.begin))
    assert preset.memory.mdn_rnn == replace(
        load_world("carracing_motion").mdn_rnn.config, dropout=0.0
    )
    assert preset.memory.mdn_rnn.motion and not Preset().memory.mdn_rnn.motion
    assert sized(ONWARD).memory == ONWARD.memory  # whose sizes are written down too
    assert sized(ONWARD).collect.world == ONWARD.begin.world
    assert sized(ONWARD).collect.controller == ONWARD.begin.controller
    assert sized(Preset()) == Preset()


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (["--begin.controller", "None"], "begin.controller None; expected both"),
        (["--memory.members", "2"], "memory.members is 2.*expected 1"),
        (["--begin.world", "nowhere"], "nowhere"),
        (["--evolve.validation-first-seed", "1000"], "1000"),
    ],
)
def test_what_cannot_begin_is_told_before_anything_is_written(tmp_path, capsys, numbers, told):
    out = tmp_path / "run"
    assert main(["vision", "--preset", "onward", "--out", str(out), *numbers]) == 1
    assert re.search(told, capsys.readouterr().err)
    assert not out.exists()


def test_a_history_of_nothing_is_one_line(begun):
    begun.play()
    (line,) = (Contender(begun.out).controller.parent / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["fixed_return"] == 700.0
