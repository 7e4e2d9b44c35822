"""Rates, their rows, and the programs that print them."""

import json
import textwrap

import pytest

from wm_env import bench, speed
from wm_env.bench import BenchConfig, BenchError, Row
from wm_env.dream import DreamParams


def test_rows_are_written_with_limit_and_ratio(tmp_path):
    rows = [Row("dream", 50.0, "steps/s", 200.0), Row("real", 230.0, "steps/s")]
    bench.write_rows(rows, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == [
        {"name": "dream", "value": 50.0, "unit": "steps/s", "limit": 200.0, "ratio": 0.25},
        {"name": "real", "value": 230.0, "unit": "steps/s", "limit": None, "ratio": None},
    ]


def test_rows_come_back_from_json():
    rows = [Row("dream", 50.0, "steps/s", 200.0), Row("real", 230.0, "steps/s")]
    assert bench.rows_from_json(bench.rows_to_json(rows)) == rows


def test_a_dream_step_costs_two_matmuls(world):
    assert speed.dream_step_flops(world.mdn_rnn) == 2 * (
        (32 + 3 + 256) * 4 * 256 + 256 * (3 * 5 * 32 + 2)
    )


def test_the_first_call_is_not_timed():
    durations = iter([0.2, 0.0, 0.0])
    rate = speed.best_rate(lambda: speed.time.sleep(next(durations)), 1.0, repeats=2)
    assert rate > 1.0 / 0.1


def test_the_largest_matmul_bounds_its_size():
    rate, size = speed.matmul_rate(300, repeats=1)
    assert rate > 0 and size == 256


def test_a_dream_moves_at_least_its_state_and_gates(world):
    state, gates = 2 * (3 * 256 + 3 * 32), 2 * 4 * 256  # h, c, mask, z, noise
    moved = speed.dream_step_bytes(DreamParams(world_model=world), 64)
    assert moved and 4 * (state + gates) < moved < 2**18


def test_memory_is_read_and_written():
    assert 1e8 < speed.copy_rate(size=2**20, repeats=1) < 1e14


def test_every_dream_interface_has_a_rate(world):
    params = DreamParams(world_model=world)
    assert speed.dream_rate(params, 2, steps=3, repeats=1) > 0
    assert speed.gym_vector_rate(world, 2, steps=2, repeats=1) > 0
    assert speed.gym_rate(world, steps=2, repeats=1) > 0
    assert speed.dream_rate(params, 2, steps=3, repeats=1, observation="pixels") > 0
    assert speed.gym_rate(world, steps=2, repeats=1, observation="pixels") > 0


def test_the_real_car_has_a_rate():
    assert speed.real_rate(steps=2, repeats=1) > 0


@pytest.mark.slow
def test_all_cores_have_rates(world):
    assert speed.real_rate_of_all_cores(steps=2, repeats=1) > 0
    assert speed.evaluation_rate(world, steps=12, repeats=1) > 0
    if speed.usable_cores() > 1:
        assert (speed.split_dream_rate(world, 4, steps=3, repeats=1) or 0.0) > 0


@pytest.fixture
def instant(monkeypatch):
    """Rates without measuring."""
    monkeypatch.setattr(speed, "matmul_rate", lambda *_, **__: (1e9, 64))
    monkeypatch.setattr(speed, "copy_rate", lambda **_: 4e9)
    monkeypatch.setattr(speed, "dream_step_bytes", lambda *_: 2e7)
    for name in (
        "dream_rate",
        "split_dream_rate",
        "gym_vector_rate",
        "gym_rate",
        "real_rate",
        "real_rate_of_all_cores",
        "evaluation_rate",
    ):
        monkeypatch.setattr(speed, name, lambda *_, **__: 100.0)
    monkeypatch.setattr(speed, "envpool_rate", lambda *_, **__: None)


def test_the_benchmark_leaves_out_what_is_not_installed(world, instant):
    names = [row.name for row in bench.dream_rows(world, quick=True)]
    assert "dream, gymnax env.step, batch 4096" in names
    assert not any("EnvPool" in name for name in names)


def test_the_limit_of_dreams_is_the_matmul_rate(world, instant):
    rows = {row.name: row for row in bench.dream_rows(world, quick=True)}
    limit = 1e9 / speed.dream_step_flops(world.mdn_rnn)
    assert rows["dream, gym.make"].limit == limit
    assert rows["dream, gym.make"].ratio == 100.0 / limit
    painted = 1e9 / (
        speed.dream_step_flops(world.mdn_rnn) + speed.decoder_flops(world.vae, packed=True)
    )
    assert rows["dream in pixels, gym.make"].limit == painted
    assert rows["evaluation on Gymnasium, all cores"].limit == 100.0
    moved = rows["dream, gymnax env.step, batch 4096: what XLA counts as moved"]
    assert (moved.value, moved.unit, moved.limit) == (2.0, "GB/s", None)
    assert rows["dream, batch 1024, over Gymnasium's real car, all cores each"].value == 1.0
    assert rows["the same, the dream split over the cores"].value == 1.0


def test_one_core_has_nothing_to_split(world, monkeypatch):
    monkeypatch.setattr(speed, "usable_cores", lambda: 1)
    assert speed.split_dream_rate(world, 4, steps=3, repeats=1) is None


def test_a_device_with_much_memory_has_a_large_batch_too(world, instant, monkeypatch):
    monkeypatch.setattr(bench.jax, "default_backend", lambda: "gpu")
    names = [row.name for row in bench.dream_rows(world, quick=True)]
    assert "dream, gymnax env.step, batch 65536: what XLA counts as moved" in names
    monkeypatch.setattr(speed, "dream_step_bytes", lambda *_: None)
    assert not any("XLA" in row.name for row in bench.dream_rows(world, quick=True))


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Makes a folder with a `training` package whose program does what it is told."""

    def make(program):
        (tmp_path / "training").mkdir()
        (tmp_path / "training" / "__init__.py").touch()  # else the real package goes before it
        (tmp_path / "training" / "__main__.py").write_text(textwrap.dedent(program))
        (tmp_path / "training" / "bench.py").touch()
        monkeypatch.setattr(bench, "_TRAINING", tmp_path / "training" / "bench.py")

    return make


def test_in_a_clone_the_rows_of_training_are_added(clone, world, instant, tmp_path, capsys):
    clone(
        """
        import json, sys
        assert sys.argv[1:3] == ["bench", "--json"] and sys.argv[4:] == ["--quick"]
        row = {"name": "collection", "value": 1500, "unit": "frames/s", "limit": None}
        open(sys.argv[3], "w").write(json.dumps([row]))
        """
    )
    out = tmp_path / "rows.json"
    rows = bench.run(BenchConfig(json=out, quick=True))
    assert rows[-1] == Row("collection", 1500.0, "frames/s")
    assert json.loads(out.read_text())[-1]["name"] == "collection"
    assert "collection" in capsys.readouterr().out


def test_a_failing_training_benchmark_is_an_error(clone):
    clone("raise SystemExit(3)")
    with pytest.raises(BenchError, match="ended with status 3.*--no-training"):
        bench.training_rows(quick=True)


def test_without_a_clone_the_benchmark_says_what_is_left_out(
    monkeypatch, instant, tmp_path, capsys
):
    monkeypatch.setattr(bench, "_TRAINING", tmp_path / "nothing.py")
    rows = bench.run(BenchConfig(quick=True))
    captured = capsys.readouterr()
    assert "in a clone only" in captured.err
    assert all(row.unit in ("steps/s", "GFLOP/s", "GB/s", "x") for row in rows)
