"""`python -m wm_env`: what a person types and gets."""

import jax
import numpy as np
import pytest

from wm_env import __main__, machine, play, speed, weights, weights_file


@pytest.fixture
def instant(monkeypatch):
    """Rates without measuring."""
    monkeypatch.setattr(speed, "matmul_rate", lambda *_, **__: (8.6e11, 4096))
    monkeypatch.setattr(speed, "dream_rate", lambda *_, **__: 123456.0)


def test_info_tells_device_versions_and_speeds(instant, capsys):
    assert __main__.main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (jax.__version__, np.__version__, "860 GFLOP/s", "123,456 steps/s"):
        assert expected in out


def test_info_tells_the_provenance_of_shipped_weights(
    instant, world, tmp_path, monkeypatch, capsys
):
    weights.save_world(world, tmp_path / "carracing.safetensors", metadata={"tracks": "seed 77"})
    controller = {"weight": np.zeros((3, 288)), "bias": np.zeros(3)}
    path = tmp_path / "carracing_controller.safetensors"
    weights.save_controller(controller, path, {"generations": 41})
    monkeypatch.setattr(weights_file, "ASSETS", tmp_path)
    monkeypatch.setattr(machine, "ASSETS", tmp_path)
    assert __main__.main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in ("seed 77", "MB", "6 first frames, 10 mid-track", "867", "41"):
        assert expected in out


def test_info_works_with_no_world_shipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights_file, "ASSETS", tmp_path)
    monkeypatch.setattr(machine, "ASSETS", tmp_path)
    assert __main__.main(["info", "--matmul", "256", "--dreams", "2", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "no world is shipped" in out
    assert "untrained weights" in out


def test_play_without_a_display_is_one_clear_error(monkeypatch, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert __main__.main(["play"]) == 1
    error = capsys.readouterr().err
    assert "no display" in error and "agents demo" in error


def test_arrow_keys_stand_for_carracings_actions(world, tmp_path):
    import pygame

    weights.save_world(world, tmp_path / "world.safetensors")
    env = play.make(play.PlayConfig(world=str(tmp_path / "world.safetensors")))
    actions = play.keys_to_action()
    assert len(actions) == 2**4 - 1
    assert all(action in env.action_space for action in actions.values())
    left_and_gas = tuple(sorted((pygame.K_LEFT, pygame.K_UP)))
    np.testing.assert_array_equal(actions[left_and_gas], np.float32([-1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(actions[(pygame.K_DOWN,)], np.float32([0.0, 0.0, 0.8]))


def test_a_missing_world_is_one_clear_error(capsys):
    assert __main__.main(["bench", "--world", "nowhere.safetensors"]) == 1
    assert "nowhere.safetensors" in capsys.readouterr().err


def test_an_unknown_command_ends_with_a_status(capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(["fly"])
    assert end.value.code != 0
