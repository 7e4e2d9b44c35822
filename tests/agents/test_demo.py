"""`python -m agents demo` and `record`, very small."""

import imageio.v3 as iio
import numpy as np
import pytest

from agents import demo, record
from agents.demo import DemoConfig, Drives
from agents.linear import LinearController, save_linear
from agents.record import RecordConfig
from wm_env.weights import WeightsError


def test_the_demo_prints_a_table_and_writes_its_pictures(files, tmp_path, capsys):
    written = demo.run(DemoConfig(out=tmp_path, real_episodes=1, dreams=4, steps=30, **files))
    names = {"drive.mp4", "drive.gif", "filmstrip.png", "returns.png"}
    assert {path.name for path in written} == names
    assert {path.name for path in tmp_path.iterdir()} == names
    out = capsys.readouterr().out
    for expected in ("device:", "steps/s", "dream", "real CarRacing-v3", "mean", "laps"):
        assert expected in out


def test_the_return_plot_copes_with_equal_returns(tmp_path):
    dream = Drives("dream", np.full(8, 500.0), np.full(8, 1000), 0)
    real = Drives("real", np.array([500.0]), np.array([1000]), 0)
    demo.plot_returns(dream, real, tmp_path / "returns.png")
    assert iio.imread(tmp_path / "returns.png").ndim == 3


def test_numbers_below_one_are_refused(files):
    with pytest.raises(ValueError, match="real_episodes is 0"):
        demo.run(DemoConfig(real_episodes=0, **files))
    with pytest.raises(ValueError, match="episodes is 0"):
        record.run(RecordConfig(episodes=0, **files))


def test_a_controller_of_another_world_is_refused(files, tmp_path):
    small = LinearController.zeros(features=40)
    save_linear(small, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match="288"):
        demo.run(DemoConfig(**{**files, "controller": str(tmp_path / "small.safetensors")}))
