"""The whole path at smoke size: real frames in, world and controller out, nothing done twice."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import jax
import numpy as np
import pytest

from agents.cma_es import CMAESConfig
from agents.linear import LinearController, load_linear, save_linear
from training import contender, round_report
from training import run as training_run
from training.__main__ import main
from training.contender import Contender, best_of, evaluate_contender
from training.pipeline import STAGES, run_stage
from training.presets import PRESETS, LoopConfig, Preset
from training.summary import marks
from training.vision import VisionConfig
from wm_env.evaluation import Evaluation
from wm_env.fidelity import dreams, drives, moments
from wm_env.fidelity.policy_suite import policy_suite
from wm_env.seeds import HELD_OUT
from wm_env.vae import VAEConfig
from wm_env.weights import load_world, save_world


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Preset(loop=LoopConfig(cars=1)), "loop.cars is 1; expected 2 or more"),
        (Preset(loop=LoopConfig(search=CMAESConfig(sigma=0.0))), r"sigma is 0\.0"),
        (Preset(loop=LoopConfig(generations=0)), "generations is 0"),
        (Preset(loop=LoopConfig(search=CMAESConfig(missing=30.0))), "missing is 30.0, but"),
        (Preset(vision=VisionConfig(vae=VAEConfig(latent_size=8))), "of size 8 and M is of 32"),
        (
            Preset(vision=VisionConfig(emphasis=0.0)),
            r"vision.emphasis is 0\.0; expected more than 0",
        ),
        (Preset(hard_starts=2.0), "hard_starts is 2.0; expected a share"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_driven(tmp_path, wrong, told):
    for stage in ("collect", "loop"):
        with pytest.raises(ValueError, match=told):
            run_stage(stage, wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Run(NamedTuple):
    """One run of `python -m training all`: its exit status, what it said, and its files."""

    status: int
    out: str
    err: str
    files: dict[str, dict[str, float]]


def _run_all(folder):
    out, err = io.StringIO(), io.StringIO()
    arguments = ["all", "--preset", "smoke", "--out", str(folder)]
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    files = {stage: marks(stage, folder / "data", folder) for stage in STAGES}
    return Run(status, out.getvalue(), err.getvalue(), files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def _small_suite(*arguments):
    return dict(list(policy_suite(*arguments).items())[:3])


def _pressed(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(folder):
    """Three runs in one folder; when the first would fit M, somebody presses Ctrl-C."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        pytest.MonkeyPatch.context() as patch,
    ):
        # Fidelity of three policies, and no lanes beside theirs.
        patch.setattr(round_report, "policy_suite", _small_suite)
        for module, name, size in (
            (drives, "LANES", 3),
            (dreams, "LANES", 3),
            (moments, "GROUP", 2),
        ):
            patch.setattr(module, name, size)
        with patch.context() as pressing:
            pressing.setattr(training_run, "fit_memory", _pressed)
            first = _run_all(folder)
        return first, _run_all(folder), _run_all(folder)


@pytest.mark.slow
def test_ctrl_c_ends_with_status_130_and_says_that_the_next_run_goes_on(runs):
    assert runs[0].status == 130
    assert "what was finished is kept, and a stage goes on from there" in runs[0].err
    assert [stage for stage, files in runs[0].files.items() if files] == list(STAGES)[:3]


@pytest.mark.slow
def test_every_stage_runs_and_goes_on_from_what_is_finished(runs, folder):
    assert runs[1].status == 0
    before, after = runs[0].files, runs[1].files
    assert [stage for stage in STAGES if after[stage] == before[stage]] == list(STAGES)[:3]
    rounds = folder / "round-01"
    for world, more in ((folder, {}), (rounds, {"on_policy": 8})):
        data = load_world(world / "world.safetensors").metadata["data"]
        assert data["episodes"] == {"heuristic": 8, "brownian": 8, **more}
    pictures = ("memory/dreams.png", "memory/tiles.png", "evolve/evolution.png")
    first = (folder / "vision/traversals.png", folder / "score_over_time.png")
    for path in (*first, *(rounds / name for name in pictures)):
        assert path.stat().st_size > 1000


@pytest.mark.slow
def test_a_round_leaves_a_report_with_figures_and_the_film_of_its_worst_track(runs, folder):
    report = json.loads((folder / "round-01" / "report.json").read_text())
    assert report["data"]["on_policy, actions + 0.5 noise"]["episodes"] == 8
    returns = dict(zip(report["gymnasium"]["seeds"], report["gymnasium"]["returns"], strict=True))
    assert returns[report["worst"]["seed"]] == min(returns.values())
    assert report["worst"]["ret"] == pytest.approx(min(returns.values()), abs=0.01)
    assert set(report["fidelity"]["after"]) == set(report["fidelity"]["before"])
    text = (folder / "round-01" / "report.md").read_text()
    for path in report["worst"]["files"]:
        assert (folder / "round-01" / path).stat().st_size > 1000
    assert f"]({report['worst']['files'][0]})" in text


@pytest.mark.slow
def test_the_table_has_a_row_a_stage_and_names_the_command_that_judges(runs, folder):
    words = [line.split() for line in runs[1].out.splitlines()]
    assert [line[0] for line in words if line and line[0] in STAGES] == list(STAGES)
    best = best_of([Contender(folder), Contender(folder / "round-01")])
    assert f"--world {best.world} --controller {best.controller}" in runs[1].out
    assert runs[1].out.count(" kept ") == 3


@pytest.mark.slow
def test_another_run_keeps_everything_and_says_so(runs):
    assert runs[2].status == 0
    assert runs[2].files == runs[1].files
    assert runs[2].out.count(" kept ") == len(STAGES)


@pytest.fixture
def run(tmp_path, world):
    """A run and two rounds, whose controllers were validated at 10, 30 and 20."""
    contenders = [Contender(tmp_path / name) for name in ("", "round-01", "round-02")]
    for one, mean in zip(contenders, (10.0, 30.0, 20.0), strict=True):
        save_linear(LinearController.zeros(), one.controller, {"validation": {"real_mean": mean}})
        save_world(world, one.world)
    return contenders


def test_the_best_contender_is_the_one_that_real_tracks_preferred_not_the_last(run):
    assert best_of(run) is run[1]


def test_an_evaluation_is_driven_again_only_for_other_weights_or_seeds(run, tmp_path, monkeypatch):
    driven = []

    def evaluate(policy, params, *, seeds, **_):
        driven.append((float(params.bias[0]), list(seeds)))
        n = len(seeds)
        no = (False,) * n
        return Evaluation("real", "gymnasium", tuple(seeds), (0.0,) * n, (9,) * n, no, no)

    monkeypatch.setattr(contender, "evaluate", evaluate)

    def look(seeds):
        path = tmp_path / "evaluation.json"
        figures = evaluate_contender(run[0], seeds=seeds, max_steps=9, path=path)
        assert figures["seeds"] == json.loads(path.read_text())["seeds"] == list(seeds)

    for seeds in (range(16, 18), range(16, 18), range(16, 19)):
        look(seeds)
    ones = LinearController(weight=np.zeros((3, 288), np.float32), bias=np.ones(3, np.float32))
    save_linear(ones, run[0].controller, load_linear(run[0].controller)[1])
    look(range(16, 19))
    assert driven == [(0.0, [16, 17]), (0.0, [16, 17, 18]), (1.0, [16, 17, 18])]


def test_the_tracks_that_judge_are_not_driven(run, tmp_path):
    with pytest.raises(ValueError, match=r"seeds 1000\.\.1001; expected some of 0\.\.99"):
        evaluate_contender(run[0], seeds=range(1000, 1002), max_steps=9, path=tmp_path / "e.json")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_evaluates_on_other_choosing_tracks_than_it_validates_on(name):
    preset = PRESETS[name]
    first = preset.evolve.validation_first_seed + preset.evolve.validation_episodes
    assert first + preset.evaluation.episodes - 1 in HELD_OUT["choosing"]
