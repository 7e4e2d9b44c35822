"""Hours of work: pauses do not count, and what a kill lost does not either."""

import json
import os

import pytest

from training.contender import Contender
from training.timeline import Span, Timeline, draw_score, hours_worked, validations

HOUR = 3600.0


def _write(out, spans):
    lines = [json.dumps(span._asdict()) + "\n" for span in spans]
    (out / "times.jsonl").write_text("".join(lines))


def test_a_stage_leaves_when_it_began_and_ended_even_where_it_fails(tmp_path):
    with Timeline(tmp_path).stage("vision"):
        assert Timeline(tmp_path).spans[0].ended is None
    with pytest.raises(RuntimeError), Timeline(tmp_path).stage("memory"):
        raise RuntimeError
    first, second = Timeline(tmp_path).spans
    assert (first.stage, second.stage) == ("vision", "memory")
    assert first.ended is not None and second.ended is not None
    assert first.began <= first.ended <= second.began <= second.ended


def test_nothing_was_worked_before_anything_began(tmp_path):
    assert hours_worked(Timeline(tmp_path).spans, 5.0) == 0.0
    _write(tmp_path, [Span("collect", 10 * HOUR, 11 * HOUR)])
    assert hours_worked(Timeline(tmp_path).spans, 5 * HOUR) == 0.0


def test_pauses_between_stages_are_not_work(tmp_path):
    _write(tmp_path, [Span("collect", 0.0, HOUR), Span("evolve", 10 * HOUR, 12 * HOUR)])
    moments = [0.5 * HOUR, 5 * HOUR, 11 * HOUR, 20 * HOUR]
    assert [hours_worked(Timeline(tmp_path).spans, moment) for moment in moments] == [
        0.5,
        1.0,
        2.0,
        3.0,
    ]


def test_of_a_killed_stage_counts_what_led_to_the_last_that_it_wrote(tmp_path):
    _write(tmp_path, [Span("memory", HOUR, None)])
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "checkpoint").touch()
    for path in (tmp_path / "memory", tmp_path / "memory" / "checkpoint"):
        os.utime(path, (3 * HOUR, 3 * HOUR))
    with Timeline(tmp_path).stage("memory"):
        pass
    assert Timeline(tmp_path).spans[0] == ("memory", HOUR, 3 * HOUR)


def test_a_stage_that_goes_on_counts_so_far(tmp_path):
    _write(tmp_path, [Span("evolve", 0.0, HOUR), Span("loop", 20 * HOUR, None)])
    moments = [0.5 * HOUR, 21 * HOUR]
    assert [hours_worked(Timeline(tmp_path).spans, moment) for moment in moments] == [0.5, 2.0]


def test_two_processes_do_not_lose_each_others_work(tmp_path):
    with Timeline(tmp_path).stage("evolve"), Timeline(tmp_path).stage("loop"):
        pass
    assert {span.stage for span in Timeline(tmp_path).spans} == {"evolve", "loop"}


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with Timeline(tmp_path / "mistyped").stage("evolve"):
        pass
    assert not (tmp_path / "mistyped").exists()


def test_the_figure_shows_every_validation_by_the_hours_worked(tmp_path):
    contenders = [Contender(tmp_path), Contender(tmp_path / "round-01")]
    for one, at in zip(contenders, (1 * HOUR, 3 * HOUR), strict=True):
        lines = [
            {"generation": 1, "fixed_return": 5.0},
            {"generation": 2, "fixed_return": 6.0, "real_mean": at / 60, "real_std": 7.0, "at": at},
        ]
        history = one.folder / "evolve" / "history.jsonl"
        history.parent.mkdir(parents=True)
        history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write(tmp_path, [Span("evolve", 0.0, HOUR), Span("loop", 2 * HOUR, 4 * HOUR)])
    assert validations(tmp_path, contenders) == [[(1.0, 60.0, 7.0)], [(2.0, 180.0, 7.0)]]
    draw_score(tmp_path, contenders, tmp_path / "score.png")
    assert (tmp_path / "score.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_validations_has_an_empty_figure(tmp_path):
    draw_score(tmp_path, [], tmp_path / "score.png")
    assert (tmp_path / "score.png").exists()
