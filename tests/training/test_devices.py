"""Eight devices, and two processes, fit what one device would."""

import json
import os
import socket
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.fits import fit_both, write_data
from training import memory, vision

pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_data(folder)
    return folder


def _start(folder, out, *, before="", **environment):
    script = (
        f"import sys; from pathlib import Path; {before}\n"
        "from tests.training.fits import fit_both\n"
        "fit_both(*map(Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, str(folder), str(out)]
    here = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}
    return subprocess.Popen(command, env=here | environment, stderr=subprocess.PIPE)


def _finish(*processes):
    errors = [process.communicate()[1].decode() for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error


def _metrics(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "per_second"} for line in lines]


@pytest.fixture(scope="module")
def one_device(folder):
    _finish(_start(folder, folder / "one"))
    return folder / "one"


def _assert_same_curves(out, other):
    for name, file in (("vision", "vae"), ("memory", "mdn_rnn")):
        ours, theirs = _metrics(out / name), _metrics(other / name)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [3, 6, 7]
        for mine, one in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(one, rel=1e-4)
        weights, wanted = (load_file(at / name / f"{file}.safetensors") for at in (out, other))
        for key, array in wanted.items():
            np.testing.assert_allclose(weights[key], array, atol=2e-4)


def test_eight_devices_have_the_loss_curve_of_one(folder, one_device):
    _finish(_start(folder, folder / "eight", JAX_NUM_CPU_DEVICES="8"))
    _assert_same_curves(folder / "eight", one_device)


@pytest.mark.slow
def test_two_processes_fit_on_the_shares_of_both_and_only_the_first_writes(folder, monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    join = "from training.devices import join_hosts; join_hosts()"
    _finish(
        *(
            _start(folder, folder / "two", before=join, JAX_PROCESS_ID=str(index), **told)
            for index in range(2)
        )
    )
    for module, name in ((vision, "ImageStream"), (memory, "WindowStream")):
        monkeypatch.setattr(module, name, partial(_Shares, getattr(module, name)))
    fit_both(folder, folder / "shares")
    _assert_same_curves(folder / "two", folder / "shares")


class _Shares:
    """The batches of two processes, put together."""

    def __init__(self, kind, shards, *, batch, held_out=False, **more):
        if held_out:  # which every process sees whole
            self._streams = [kind(shards, batch=batch, held_out=True, **more)]
        else:
            self._streams = [kind(shards[at::2], batch=batch // 2, **more) for at in range(2)]

    def batches(self, start=0):
        for parts in zip(*(stream.batches(start) for stream in self._streams), strict=True):
            yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
