"""`python -m agents record`: what it writes, counts, prints and refuses."""

import json

import numpy as np
import pytest

from agents import record as record_module
from agents.__main__ import main
from agents.record import EpisodeFiles, RecordConfig, record_episode, run, summary

STEPS = 20
ENDS = (".mp4", ".png", ".npz", "-moments.png")


def episode(seed, ret, **more):
    facts = {"expected_return": 250.0, "tiles": 70, "expected_tiles": 71.25, "length": 300}
    facts |= {"end": "time limit", "surprises": 2, "delusions": 3, "files": ()}
    return EpisodeFiles(seed=seed, ret=ret, **{**facts, **more})


def test_each_seed_gets_its_files_and_a_line_in_the_list(files, tmp_path, capsys):
    written = run(RecordConfig(out=tmp_path, episodes=2, first_seed=5, steps=STEPS, **files))
    expected = {f"seed-000{seed}{end}" for seed in (5, 6) for end in ENDS} | {"episodes.json"}
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()} == expected
    told = json.loads((tmp_path / "episodes.json").read_text())
    assert [one["seed"] for one in told["episodes"]] == [5, 6]
    for one in told["episodes"]:
        with np.load(tmp_path / f"seed-000{one['seed']}.npz") as series:
            assert one["ret"] == pytest.approx(series["reward"].sum())
            assert one["expected_return"] == pytest.approx(series["predicted_reward"].sum())
            assert one["tiles"] == series["real_tiles"].sum()
            assert one["surprises"] == len(series["surprising"])
            assert one["delusions"] == len(series["deluded"])
    for kind in ("surprises", "delusions"):
        assert told[kind] == sum(one[kind] for one in told["episodes"])
    assert "2 recorded: return" in capsys.readouterr().out


def test_the_table_begins_with_the_worst_episode_and_ends_with_totals():
    head, *rows, last = summary([episode(1, 300.0), episode(23, 12.5, surprises=4)]).split("\n")
    assert head.split()[:3] == ["seed", "return", "expected"]
    assert [row.split()[0] for row in rows] == ["23", "1"]
    assert rows[0].split() == "23 12.5 250.0 70 71.2 300 time limit 4 3".split()
    assert last == "2 recorded: return 156.2 on average; 6 surprises, 6 delusions"


def test_ctrl_c_leaves_whole_files_and_the_list_of_what_is_done(
    files, tmp_path, monkeypatch, capsys
):
    write_mp4 = record_module.write_mp4

    def stopped(film, path, **options):
        if film.recording.seed == 1:
            raise KeyboardInterrupt
        write_mp4(film, path, **options)

    monkeypatch.setattr(record_module, "write_mp4", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(RecordConfig(out=tmp_path, episodes=3, steps=STEPS, **files))
    told = json.loads((tmp_path / "episodes.json").read_text())
    assert [one["seed"] for one in told["episodes"]] == [0]
    assert not list(tmp_path.glob(".*"))
    assert "1 recorded: return" in capsys.readouterr().out


def test_any_policy_of_features_can_be_recorded(world, tmp_path):
    def hard_left(params, observation, key):
        return np.float32([-1.0, 0.3, 0.0])

    told = record_episode(
        hard_left, None, world, seed=2, out=tmp_path, steps=STEPS, expect="next", gif=True
    )
    with np.load(tmp_path / "seed-0002.npz") as series:
        np.testing.assert_allclose(series["action"], np.tile([-1.0, 0.3, 0.0], (STEPS, 1)))
    assert told.files[-1] == tmp_path / "seed-0002.gif" and told.files[-1].exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episodes", "0"], "episodes is 0; expected 1 or more"),
        (["--steps", "0"], "steps is 0; expected 1 or more"),
        (["--alone", "0"], "alone is 0; expected 1 or more"),
        (["--first-seed", "-1"], "first_seed is -1 with 1 episodes; expected seeds from 0"),
        (["--world", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_a_line_and_a_failure(options, message, tmp_path, capsys):
    assert main(["record", "--out", str(tmp_path / "new"), *options]) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_driven(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["record", "--out", str(tmp_path / "out")]) == 1
    assert "a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"
