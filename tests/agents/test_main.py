"""`python -m agents`: commands, exit status, and what goes where."""

import json

import pytest

from agents.__main__ import COMMANDS, main
from agents.linear import LinearController, save_linear
from wm_env.weights import save_world


@pytest.fixture
def files(world, tmp_path):
    save_world(world, tmp_path / "world.safetensors")
    save_linear(LinearController.zeros(), tmp_path / "c.safetensors", {"generation": 3})
    return [
        *("--world", str(tmp_path / "world.safetensors")),
        *("--controller", str(tmp_path / "c.safetensors")),
    ]


def test_evaluate_writes_its_figures_and_how_to_get_them(files, tmp_path, capsys):
    out = tmp_path / "new" / "figures.json"
    options = ["--env", "dream", "--episodes", "3", "--first-seed", "5", "--steps", "4"]
    assert main(["evaluate", *files, *options, "--json", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["seeds"] == [5, 6, 7] and len(told["returns"]) == 3
    assert told["env"] == "dream" and told["training"] == {"generation": 3}
    assert {"backend", "lengths", "mean", "std", "options", "versions"} <= set(told)
    assert "seeds 5..7" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["--controller", "nowhere"], ["--episodes", "0"], ["--world", "nowhere"]]
)
def test_a_users_error_is_one_line_and_a_failure(files, options, capsys):
    given = [*files, *options] if options[0] == "--episodes" else [*files[:2], *options]
    assert main(["evaluate", *given]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ") and told.err.count("\n") == 1


def test_an_unknown_command_is_a_failure(capsys):
    assert main(["fly"]) == 2
    assert "no command 'fly'" in capsys.readouterr().err


def test_without_a_command_the_commands_are_told(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)


def test_a_command_tells_its_options(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", "--help"])
    assert leaving.value.code == 0
    assert "--first-seed" in capsys.readouterr().out


def test_an_unknown_option_is_a_failure():
    with pytest.raises(SystemExit) as leaving:
        main(["evaluate", "--wheels", "4"])
    assert leaving.value.code == 2


def test_driving_without_a_display_is_refused(capsys):
    assert main(["drive"]) == 1
    assert "no display" in capsys.readouterr().err
