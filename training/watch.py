"""What stops a fit whose loss is lost: NaN, infinite, or far above where it began."""

import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from wm_env.storage import write_atomically

_TIMES = 10.0  # worse than before the first update by so much: a fit does not come back from there


class FitError(RuntimeError):
    """A fit that cannot go on: the message names the step, its batch and the last good state."""


class Watch:
    """Looks at the metrics of every step, one step late: the device never waits for the host.

    `saved` is the step of the last checkpoint, 0 before there is one; `first_loss` that of the
    fit's first step, NaN before it.
    """

    def __init__(
        self, name: str, checkpoint: Path, *, saved: int, first_loss: float, examples: int
    ):
        self._name, self._checkpoint, self._examples = name, checkpoint, examples
        self.first_loss = first_loss
        self._seen: list[dict[str, float]] = []
        self._late: tuple[int, Any, dict[str, jax.Array]] | None = None
        self.begin_interval(saved)

    def add(self, step: int, batch: Any, metrics: dict[str, jax.Array]) -> None:
        """Look at the step before this one.

        Raises:
            FitError: its loss is lost.
        """
        self._look()
        self._late = step, batch, metrics

    def begin_interval(self, saved: int) -> None:
        """Start the clock anew, after the checkpoint of step `saved`."""
        self._saved, self._since = saved, time.monotonic()

    def means(self) -> dict[str, float]:
        """The mean of each metric since the last call, and the examples "per_second".

        Raises:
            FitError: the loss of the last step is lost.
        """
        self._look()
        seen, self._seen = self._seen, []
        rate = len(seen) * self._examples / (time.monotonic() - self._since)
        means = {name: float(np.mean([one[name] for one in seen])) for name in seen[0]}
        return {"per_second": round(rate, 1), **means}

    def check(self, step: int, batch: Any, loss: float, what: str = "loss") -> None:
        """Stop a fit whose `loss` after the update of `step` is lost; keeps its batch in a file.

        Raises:
            FitError: it is not finite, or has exploded.
        """
        limit = self.first_loss + _TIMES * (abs(self.first_loss) + 1.0)
        if math.isfinite(loss) and not loss > limit:
            return
        kept = self._checkpoint.with_name(f"batch-{step}-{jax.process_index()}.safetensors")
        leaves = jax.tree_util.tree_leaves_with_path({"batch": batch})
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        arrays = [np.ascontiguousarray(leaf) for _, leaf in leaves]
        write_atomically(kept, save(dict(zip(names, arrays, strict=True))))
        good = f"{self._checkpoint}, of step {self._saved}" if self._saved else "none yet"
        raise FitError(
            f"{self._name}: the {what} of step {step} is {loss:.6g}, and was {self.first_loss:.6g} "
            f"at first. Its batch is in {kept}; the last good checkpoint: {good}. Look at the "
            "batch; if nothing is wrong with it, lower the learning rate."
        )

    def _look(self) -> None:
        if self._late is None:
            return
        (step, batch, metrics), self._late = self._late, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if math.isnan(self.first_loss):
            self.first_loss = values["loss"]
        self.check(step, batch, values["loss"])
        self._seen.append(values)
