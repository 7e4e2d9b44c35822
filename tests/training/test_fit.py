"""The fitting loop: it goes on exactly where it was, stops when it should, and says why."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.fits import MEMORY, VISION, write_data
from training import fit as fit_module
from training import memory, vision
from training.dataset import ImageStream, WindowStream
from training.fit import FitConfig, fit
from training.watch import FitError
from wm_env.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers


class Interrupted(Exception):
    """What happens to a fit."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Fits of one config share their compiled step, which takes seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (vision, memory):
            patch.setattr(module, "make_train_step", functools.cache(module.make_train_step))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def fits(data):
    """Fits of a folder, by the model's name."""
    return {
        "V": lambda out, **more: vision.fit_vision(data[0], replace(VISION, **more), out),
        "M": lambda out, **more: memory.fit_memory(data[1], replace(MEMORY, **more), out),
        "two M": lambda out: memory.fit_memory(data[1], replace(MEMORY, members=2), out),
    }


@pytest.fixture(scope="module")
def unbroken(fits, tmp_path_factory):
    """Folders of fits that nothing interrupted, by the model's name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in fits}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name, run in fits.items():
            run(folders[name])
    return folders


both = pytest.mark.parametrize("name", ["V", "M"])


def _metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "per_second"} for line in lines]


def _assert_same(out, other):
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (out, other))
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, strict=True)
    assert _metrics(out) == _metrics(other)


@pytest.fixture
def interrupt_at(monkeypatch):
    """`interrupt_at(n)`: the streams raise instead of giving their batch n, counted from 1."""

    def at(count):
        for stream in (ImageStream, WindowStream):
            batches = _BATCHES[stream]

            def broken(self, start=0, batches=batches):
                yield from itertools.islice(batches(self, start), count - 1 - start)
                if self._batch == VISION.batch:  # not that of the held-out windows
                    raise Interrupted

            monkeypatch.setattr(stream, "batches", broken)

    return at


_BATCHES = {stream: stream.batches for stream in (ImageStream, WindowStream)}


@pytest.mark.parametrize("name", ["V", "M", "two M"])
def test_an_interrupted_fit_ends_as_an_unbroken_one(
    name, fits, unbroken, tmp_path, interrupt_at, monkeypatch
):
    run = fits[name]
    for count in (2, 6):  # before there is a checkpoint, and between two
        interrupt_at(count)
        with pytest.raises(Interrupted):
            run(tmp_path)
    interrupt_at(100)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(fit_module, "save_checkpoint", _raise)  # metrics are logged by then
        run(tmp_path)
    assert [line["step"] for line in _metrics(tmp_path)] == [3, 6]
    run(tmp_path)
    _assert_same(tmp_path, unbroken[name])


def _raise(*_):
    raise Interrupted


@both
def test_a_finished_fit_is_not_taken_up_again(name, fits, unbroken):
    before = (unbroken[name] / "checkpoint.safetensors").stat().st_mtime_ns
    fits[name](unbroken[name])
    assert (unbroken[name] / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_a_killed_fit_loses_less_than_an_interval(fits, unbroken, data, tmp_path):
    script = (
        "import itertools, os, signal, sys; from pathlib import Path\n"
        "from tests.training.fits import MEMORY; from training import memory\n"
        "from training.latents import open_latents\n"
        "batches = memory.WindowStream.batches\n"
        "def deadly(self, start=0):\n"
        "    if self._batch != MEMORY.batch: return (yield from batches(self, start))\n"
        "    yield from itertools.islice(batches(self, start), 5)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "memory.WindowStream.batches = deadly\n"
        "memory.fit_memory(open_latents(Path(sys.argv[1])), MEMORY, Path(sys.argv[2]))\n"
    )
    latents = data[1][0].path.parent
    command = [sys.executable, "-c", script, str(latents), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "."}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in _metrics(tmp_path)] == [3]
    fits["M"](tmp_path)
    _assert_same(tmp_path, unbroken["M"])


@both
def test_a_fit_does_not_go_on_with_other_data_or_another_config(name, fits, unbroken, tmp_path):
    others = write_data(tmp_path, first_seed=100)
    other = {
        "V": lambda: vision.fit_vision(others[0], VISION, unbroken["V"]),
        "M": lambda: memory.fit_memory(others[1], MEMORY, unbroken["M"]),
    }
    with pytest.raises(CheckpointError, match="data was '2 shards, sha256 .*' and is '2 shards, "):
        other[name]()
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        fits[name](unbroken[name], seed=1)


def test_a_fit_does_not_go_on_from_what_began_with_other_weights(data, unbroken, tmp_path):
    members = [memory.load_memory(MEMORY, unbroken["M"]), memory.load_memory(MEMORY, unbroken["M"])]
    members[1] = [jax.tree.map(lambda leaf: 2.0 * leaf, members[1][0])]
    memory.fit_memory(data[1], MEMORY, tmp_path, begin_from=members[0])
    memory.fit_memory(data[1], MEMORY, tmp_path, begin_from=members[0])
    with pytest.raises(CheckpointError, match="begun_from was '.*' and is '"):
        memory.fit_memory(data[1], MEMORY, tmp_path, begin_from=members[1])


# The loop alone, on a model that counts its updates.


class Count(NamedTuple):
    """A state of the loop."""

    model: Any
    optimizer: Any = ()


def _count(out, losses, held_out=None, *, pictures=None, **more):
    """Fit a number whose updates add 1; `losses` of each step, `held_out` by the number.

    Returns the number, and how many updates this run made.
    """
    updates = []

    def train_step(state, batch, key):
        updates.append(float(state.model))
        loss = jnp.float32(losses[int(state.model)])
        return Count(state.model + 1.0), {"loss": loss}

    model = fit(
        "N",
        Count(jnp.float32(0.0)),
        train_step,
        lambda step: (np.full(2, at, np.int32) for at in itertools.count(step)),
        lambda model: {"loss": (held_out or losses)[int(model) - 1]},
        config=FitConfig(**{"batch": 2, "steps": len(losses), "every": 1, **more}),
        data="none",
        out=out,
        pictures=pictures,
    )
    return float(model), len(updates)


HELD_OUT = [5.0, 3.0, 4.0, 2.0, 2.0, 6.0, 1.0, 0.0]


def test_a_fit_without_patience_ends_with_its_last_weights(tmp_path):
    assert _count(tmp_path, [1.0] * 8, HELD_OUT[::-1]) == (8.0, 8)


def test_a_fit_stops_when_its_patience_is_over_with_the_best_weights(tmp_path):
    assert _count(tmp_path, [1.0] * 8, HELD_OUT, patience=2) == (4.0, 6)
    assert _count(tmp_path, [1.0] * 8, HELD_OUT, patience=2) == (4.0, 0)


def test_early_stopping_survives_an_interruption(tmp_path, monkeypatch):
    save = fit_module.save_checkpoint
    for at in (3, 5):

        def dies(tree, step, *more, at=at):
            save(tree, step, *more) if step < at else _raise()

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(fit_module, "save_checkpoint", dies)
            _count(tmp_path, [1.0] * 8, HELD_OUT, patience=2)
    assert _count(tmp_path, [1.0] * 8, HELD_OUT, patience=2) == (4.0, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4])
def test_a_lost_loss_stops_the_fit_within_a_step_and_names_batch_and_checkpoint(tmp_path, bad):
    losses = [8.0, 7.0, 6.0, bad, 5.0, 4.0, 3.0, 2.0, 1.0]
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(FitError, match="the loss of step 4 is") as caught:
        _count(tmp_path, losses, [1.0] * 9, every=2)
    assert f"checkpoint: {checkpoint}, of step 2" in str(caught.value)
    kept = tmp_path / "batch-4-0.safetensors"
    assert str(kept) in str(caught.value)
    np.testing.assert_array_equal(load_file(kept)["batch"], [3, 3])
    assert [line["step"] for line in _metrics(tmp_path)] == [2]


def test_a_lost_loss_is_noticed_a_step_late_not_an_interval(tmp_path):
    updates = []
    losses = [8.0, float("nan"), *[7.0] * 98]
    batches = (updates.append(at) or np.zeros(2) for at in range(100))
    with pytest.raises(FitError, match="step 2 .* checkpoint: none yet"):
        fit(
            "N",
            Count(jnp.float32(0.0)),
            lambda state, *_: (Count(state.model + 1), {"loss": losses[int(state.model)]}),
            lambda step: batches,
            lambda model: {"loss": 1.0},
            config=FitConfig(batch=2, steps=100, every=50),
            data="none",
            out=tmp_path,
        )
    assert updates == [0, 1, 2]


def test_weights_with_a_lost_held_out_loss_never_become_a_checkpoint(tmp_path):
    with pytest.raises(FitError, match="the held-out loss of step 4 is nan"):
        _count(tmp_path, [1.0] * 6, [1.0, 1.0, 1.0, float("nan"), 1.0, 1.0], every=2)
    assert load_file(tmp_path / "checkpoint.safetensors")["00000"] == 2.0


def test_a_negative_loss_that_rises_by_some_nats_is_no_explosion(tmp_path):
    assert _count(tmp_path, [-40.0, -60.0, -20.0, 5.0])[0] == 4.0


def test_pictures_are_drawn_now_and_then_and_at_the_end(tmp_path):
    drawn = []
    options = {"pictures": lambda model: drawn.append(float(model)), "every": 2}
    _count(tmp_path / "some", [1.0] * 11, **options, pictures_every=3)
    assert drawn == [4.0, 6.0, 10.0, 11.0]  # at the first held-out losses from 3, 6 and 9 on
    _count(tmp_path / "some", [1.0] * 11, **options, pictures_every=7)
    assert drawn[4:] == []
    _count(tmp_path / "last", [1.0] * 11, **options, pictures_every=0)
    assert drawn[4:] == [11.0]


def test_pictures_are_of_the_weights_that_the_fit_would_end_with(tmp_path):
    drawn = []
    draw = lambda model: drawn.append(float(model))  # noqa: E731
    _count(tmp_path, [1.0] * 8, HELD_OUT, patience=2, pictures_every=0, pictures=draw)
    assert drawn == [4.0]


def test_pictures_that_fail_end_no_fit(tmp_path, capsys):
    def fail(model):
        raise OSError("No space left")

    assert _count(tmp_path, [1.0] * 3, pictures=fail) == (3.0, 3)
    told = " ".join(capsys.readouterr().err.split())
    assert "warning: the fit goes on without pictures of step 3: OSError: No space left" in told


def test_pictures_that_are_interrupted_lose_an_interval_and_change_no_weight(tmp_path):
    drawn = []

    def interrupted(model):
        drawn.append(float(model))
        if len(drawn) == 1:
            raise KeyboardInterrupt

    options = {"every": 2, "pictures_every": 4, "pictures": interrupted}
    with pytest.raises(KeyboardInterrupt):
        _count(tmp_path, [1.0] * 8, **options)
    assert load_file(tmp_path / "checkpoint.safetensors")["00000"] == 2.0
    assert _count(tmp_path, [1.0] * 8, **options) == (8.0, 6)
    assert drawn == [4.0, 4.0, 8.0]
