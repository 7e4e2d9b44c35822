"""`python -m training`: every command is there, and says what is wrong in one line."""

import json
from dataclasses import replace

import pytest

from training import bench, pipeline
from training.__main__ import main
from training.presets import SMOKE
from wm_env.bench import Row, write_rows

COMMANDS = "collect data vision latents memory evolve loop all sweep bench".split()


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in shown] == []


@pytest.mark.parametrize("arguments", [[], ["fly"], ["collect", "--preset", "huge"]])
def test_unknown_arguments_end_with_status_2(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


@pytest.mark.parametrize("stage", ["vision", "latents", "memory", "evolve", "loop"])
def test_a_stage_without_its_data_names_the_folder(tmp_path, capsys, stage):
    assert main([stage, "--preset", "smoke", "--out", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "none") in error


def test_a_folder_that_cannot_be_made_is_an_error(capsys):
    assert main(["collect", "--preset", "smoke", "--out", "/dev/null/here"]) == 1
    assert "/dev/null" in capsys.readouterr().err


def test_bench_is_passed_its_options(tmp_path, monkeypatch):
    def timed(config):
        assert config.quick
        write_rows([Row("a rate", 2.0, "frames/s", 4.0)], config.json)

    monkeypatch.setattr(bench, "run", timed)
    assert main(["bench", "--quick", "--json", str(tmp_path / "rows.json")]) == 0
    assert json.loads((tmp_path / "rows.json").read_text())[0]["ratio"] == 0.5


def test_any_number_of_a_preset_can_be_told_by_its_path(tmp_path, monkeypatch):
    told = {}

    def run_memory(preset, out):
        told.update(preset=preset)

    monkeypatch.setitem(pipeline.STAGES, "memory", run_memory)
    arguments = ["--memory.asymmetry", "5", "--memory.mdn-rnn.tiles", "squared"]
    assert main(["memory", "--preset", "smoke", "--out", str(tmp_path), *arguments]) == 0
    expected = replace(
        SMOKE.memory, asymmetry=5.0, mdn_rnn=replace(SMOKE.memory.mdn_rnn, tiles="squared")
    )
    assert told["preset"].memory == expected
    assert told["preset"].vision == SMOKE.vision


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("--memory.asymetry 5", "--memory.asymmetry"), ("--memory.mdn-rnn.tiles none", "poisson")],
)
def test_a_number_that_the_preset_does_not_have_is_refused(tmp_path, capsys, wrong, told):
    with pytest.raises(SystemExit) as end:
        main(["memory", "--preset", "smoke", "--out", str(tmp_path), *wrong.split()])
    assert end.value.code == 2
    assert told in capsys.readouterr().err
