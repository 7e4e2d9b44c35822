"""The log of a fit, as lines and as TensorBoard's events."""

import json
import struct
import sys

import pytest

from training.metrics import MetricsLog


def _lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _log(out, steps, *, after=0):
    with MetricsLog(out, after=after) as log:
        for step in steps:
            log.write(step, {"loss": 1.0 / step})


def test_a_run_that_goes_on_drops_what_the_last_one_logged_after_its_checkpoint(tmp_path):
    _log(tmp_path, [2, 4, 6])
    _log(tmp_path, [6, 8], after=4)
    assert [line["step"] for line in _lines(tmp_path)] == [2, 4, 6, 8]
    assert _lines(tmp_path)[1] == {"step": 4, "loss": 0.25}


def test_a_fit_begun_anew_begins_its_log_anew(tmp_path):
    _log(tmp_path, [2, 4])
    _log(tmp_path, [3])
    assert [line["step"] for line in _lines(tmp_path)] == [3]


def test_a_line_that_a_kill_left_unfinished_is_dropped(tmp_path):
    _log(tmp_path, [2, 4])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    _log(tmp_path, [6], after=4)
    assert [line["step"] for line in _lines(tmp_path)] == [2, 4, 6]


def _events(path):
    """The events of a file of TensorBoard: records of length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def test_event_files_go_on_after_the_checkpoint(tmp_path):
    pytest.importorskip("tensorboardX")
    _log(tmp_path, [2, 4, 6])
    _log(tmp_path, [6, 8], after=4)
    first, second = sorted(tmp_path.glob("events.out.tfevents.*"), key=lambda path: path.suffix)
    found = [
        (event.step, value.tag, value.simple_value)
        for event in _events(second)
        for value in event.summary.value
    ]
    assert found == [(6, "loss", pytest.approx(1 / 6)), (8, "loss", 0.125)]
    starts = [event.step for event in _events(second) if event.HasField("session_log")]
    assert starts == [5], "from there on TensorBoard forgets the events of the first file"
    assert [event.step for event in _events(first) if event.summary.value] == [2, 4, 6]


def test_without_tensorboardx_there_are_lines_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    _log(tmp_path, [2])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
