"""The log of a fit: `metrics.jsonl`, and TensorBoard's event files where tensorboardX is installed.

`uv sync --extra tensorboard` installs it; `tensorboard --logdir runs` shows what it wrote.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.devices import is_first
from wm_env.storage import write_atomically


class MetricsLog:
    """Appends to the log in a folder, in a `with` block; of several processes the first alone does.

    What a run that died had logged after step `after`, from which this one goes on, is dropped.
    """

    def __init__(self, out: Path, *, after: int):
        self._path, self._after, self._events = out / "metrics.jsonl", after, None
        if not is_first():
            return
        out.mkdir(parents=True, exist_ok=True)
        text = self._path.read_text() if self._path.exists() else ""
        kept = "".join(line for line in text.splitlines(True) if _is_until(after, line))
        if kept != text:
            write_atomically(self._path, kept.encode())

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._events:
            self._events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` as those of `step`."""
        if not is_first():
            return
        line = {"step": step, **{name: round(value, 5) for name, value in values.items()}}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self._events = self._events or _event_writer(self._path.parent, self._after)
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()


def _is_until(step: int, line: str) -> bool:
    try:
        return json.loads(line)["step"] <= step and line.endswith("\n")
    except ValueError:  # the line that a kill left unfinished
        return False


def _event_writer(out: Path, after: int) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    # A file each run: the suffix tells runs of one second apart, purge_step hides what a run that
    # died had written later.
    return SummaryWriter(str(out), purge_step=after + 1, filename_suffix=f".{after}")
