"""The whole path at smoke size: real frames in, world and controller out, nothing done twice."""

from dataclasses import replace

import pytest

from agents.linear import load_linear
from training import pipeline
from training.presets import SMOKE
from wm_env.weights import load_world


@pytest.mark.slow
@pytest.mark.usefixtures("lenient_dtypes")  # optax and evosax promote
def test_every_stage_runs_and_a_second_run_keeps_what_is_done(tmp_path):
    preset = replace(SMOKE, collect=replace(SMOKE.collect, backend="gymnasium"))
    controller = pipeline.run_all(preset, tmp_path)
    assert controller == tmp_path / "round-01" / "evolve" / "controller.safetensors"

    world = load_world(tmp_path / "round-01" / "world.safetensors")
    assert world.metadata["data"]["episodes"] == {"heuristic": 8, "brownian": 8, "on_policy": 8}
    assert load_linear(controller)[1]["validation"]["real_episodes"] == 2
    for picture in ("vision/reconstructions.png", "evolve/evolution.png"):
        assert (tmp_path / picture).stat().st_size > 1000

    kept = [
        "data/shard-*",
        "vision/checkpoint.safetensors",
        "latents/*",
        "memory/checkpoint.safetensors",
    ]
    before = {path: path.stat().st_mtime_ns for name in kept for path in tmp_path.glob(name)}
    pipeline.run_memory(preset, tmp_path)
    pipeline.run_vision(preset, tmp_path)
    pipeline.run_collect(preset, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
