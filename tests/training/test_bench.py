"""Rates of collecting, of the store and of training V and M; and the memory that they take."""

import dataclasses
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tests.training.episodes import made_up_episode
from tests.training.fits import MEMORY
from training import bench
from training.bench import opening_row, peak_memory, reading_rate
from training.dataset import ImageStream
from training.store import open_store
from wm_env.shard import write_shard
from wm_env.speed import decoder_flops, encoder_flops
from wm_env.vae import VAE

_CHILD = "kept = bytearray(b'1' * 200_000_000); print(len(kept), flush=True); input()"


def _child(program):
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.skipif(not bench._HAS_PSS, reason="needs Linux's /proc/PID/smaps_rollup")
@pytest.mark.parametrize("generations", [1, 2])
def test_the_peak_counts_descendants_that_have_ended(generations):
    program = _CHILD
    if generations == 2:
        program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_CHILD!r}])"
    with peak_memory(1, every=0.01) as memory:
        before, deadline = memory(), time.monotonic() + 60
        with _child(program) as child:
            assert child.stdout.readline() == b"200000000\n"
            while memory() < before + 0.19 and time.monotonic() < deadline:
                time.sleep(0.01)
            child.communicate(b"\n")
    assert before + 0.19 < memory() < before + 0.7


def test_without_proc_the_peak_is_bounded_by_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(bench, "_HAS_PSS", False)
    with peak_memory(0) as alone, peak_memory(2) as with_two:
        subprocess.run([sys.executable, "-c", "kept = bytearray(b'1' * 50_000_000)"], check=True)
    assert with_two() > alone() + 2 * 0.05


def test_opening_is_timed_on_a_store_of_that_many_episodes(tmp_path):
    row = opening_row(tmp_path, shards=3, cars=2, steps=70)
    assert row.name == "store, opening 6 episodes" and row.unit == "s" and row.value > 0
    assert [shard.frames for shard in open_store(tmp_path)] == [142, 142, 142]


def test_reading_is_counted_in_images_until_told_to_stop(tmp_path, monkeypatch):
    write_shard(tmp_path / "shard-00000.zip", [made_up_episode(1), made_up_episode(2)], {})
    stream = ImageStream(open_store(tmp_path), batch=10, seed=0)
    for clock, batches, until, expected in ((4.0, 6, False, 15.0), (2.0, 6, True, 5.0)):
        times = iter([0.0, clock])
        monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=times.__next__))
        assert reading_rate(stream, batches, until=lambda until=until: until) == expected


def test_the_operations_of_v_are_those_that_xla_counts_less_padding():
    vae = VAE(key=jax.random.key(0))
    there_and_back = jax.jit(lambda image: vae.decode(vae.latent(image)))
    analysis = there_and_back.lower(jnp.zeros((64, 64, 3))).cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    assert 0.7 * counted < encoder_flops(vae) + decoder_flops(vae) < counted


@pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers
def test_an_ensembles_training_is_bounded_by_the_operations_of_all_members(monkeypatch):
    monkeypatch.setattr(bench, "matmul_rate", lambda _: (1e9, 0))
    alone = bench.memory_row(MEMORY, quick=True)
    both = bench.memory_row(dataclasses.replace(MEMORY, members=2), quick=True)
    weights = (4 + 3 + 8) * 4 * 8 + 8 * (3 * 5 * 4 + 2)
    assert alone.limit == pytest.approx(1e9 / (3 * 2 * weights))
    assert both.limit == pytest.approx(1e9 / (2 * 3 * 2 * weights))
    assert alone.value > 0
