"""Files appear whole or not at all, whenever the process may die."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wm_env
from wm_env import storage


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = (
        "import os, signal, sys\n"
        "from wm_env import storage\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_atomically(sys.argv[1], b'new' * 100_000)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=Path(wm_env.__file__).parents[1]
    )
    assert killed.returncode < 0
    assert path.read_bytes() == b"old"
