"""Jobs for the tests of workers, at the top level of a module, as jobs must be."""

import os
import signal
import time
from pathlib import Path


def square(offset, number):
    yield "begun"
    return number**2 + offset


def fail(_, number):
    yield "begun"
    raise ValueError(f"{number} is no good")


def die(_, number):
    yield "begun"
    os._exit(3)


def once(folder, job):
    """Does `job` to itself at the first attempt, and is done at the second."""
    yield "begun"
    mark = Path(folder) / job
    if job != "nothing" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), getattr(signal, job))
    return os.getpid()


def wait(folder, job):
    """Notes that it was begun, then takes until the file `go` appears."""
    with (Path(folder) / f"begun-{job}").open("a") as file:
        file.write("x")
    while not (Path(folder) / "go").exists():
        time.sleep(0.05)
        yield None
    return job
