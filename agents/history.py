"""How a training went, step by step: as lines of JSON, and as a figure."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from wm_env.storage import write_atomically

# Its number, returns in the dream; where validated real_mean and more, as `at`, in seconds since
# 1970.
Line = dict[str, float]


class History:
    """The first `done` steps that the file tells of; there need be none.

    Each line tells its number by the name of the class's `unit`.

    Raises:
        ValueError: it tells of fewer.
    """

    unit = "step"

    def __init__(self, path: Path, done: int = 0):
        self._path = path
        lines = path.read_text().splitlines() if done and path.exists() else []
        # A run that died between two writes told of one more than its checkpoint has.
        self.lines: list[Line] = [json.loads(line) for line in lines][:done]
        if len(self) < done:
            raise ValueError(
                f"{path} tells of {len(self)} {self.unit}s; expected the {done} of the checkpoint "
                "beside it. Put it back, or remove the folder to begin anew."
            )

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def validated(self) -> list[Line]:
        """The lines of those that drove for real."""
        return [line for line in self.lines if "real_mean" in line]

    @property
    def best(self) -> Line:
        """The line of the one that drove best for real; of equal ones the first."""
        return max(self.validated, key=lambda line: line["real_mean"])

    def add(self, **figures: float) -> None:
        """Tell of one more, and keep it."""
        self.lines.append({self.unit: len(self) + 1, **figures})
        self._write()

    def amend(self, **figures: float) -> None:
        """Tell more of the last one, and keep it."""
        self.lines[-1] |= figures
        self._write()

    def is_stalled(self, patience: int | None) -> bool:
        """Whether none of the last `patience` validations was better than all before them."""
        if patience is None or not self.validated:
            return False
        return len(self.validated) - 1 - self.validated.index(self.best) >= patience

    def _write(self) -> None:
        write_atomically(self._path, "".join(f"{json.dumps(one)}\n" for one in self.lines).encode())


class EvolutionHistory(History):
    """That of an evolution, generation by generation."""

    unit = "generation"

    def note(self) -> str:
        """The latest figures, for a progress bar."""
        note = f"dream {self.lines[-1]['fixed_return']:.0f}"
        if self.validated:
            real, best = self.validated[-1]["real_mean"], self.best["real_mean"]
            note += f"  real {real:.0f} (best {best:.0f})"
        return note

    def draw(self, path: Path) -> None:
        """Dream and real return over generations as a PNG; below, step size and horizon."""
        fig, (returns, search) = plt.subplots(
            2, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        _plot(returns, self.lines, "fixed_return", label="dream, the mean controller")
        _plot(returns, self.lines, "mean_return", alpha=0.4, label="dream, its population")
        returns.errorbar(
            [line["generation"] for line in self.validated],
            [line["real_mean"] for line in self.validated],
            [line["real_std"] for line in self.validated],
            fmt="o",
            capsize=3,
            label="real (mean and standard deviation over tracks)",
        )
        returns.set(ylabel="return", title="Evolved in the dream, validated on the real track")
        returns.legend(loc="lower right")
        _plot(search, self.lines, "sigma", color="C3")
        search.set(xlabel="generation")
        search.set_ylabel("step size", color="C3")
        if len({line.get("horizon") for line in self.lines}) > 1:
            horizon = search.twinx()
            _plot(horizon, self.lines, "horizon", color="C4", drawstyle="steps-mid")
            horizon.set_ylabel("horizon (frames)", color="C4")
            horizon.set_ylim(bottom=0)
        for axes in (returns, search):
            axes.grid(alpha=0.3)
        fig.savefig(path, dpi=120)
        plt.close(fig)


class AscentHistory(History):
    """That of an ascent, update by update."""

    unit = "update"

    def note(self) -> str:
        """The latest figures, for a progress bar."""
        note = f"window {self.lines[-1]['window_return']:.1f}"
        if self.validated:
            now, best = self.validated[-1], self.best["real_mean"]
            note += (
                f"  dream {now['dream_mean']:.0f}  real {now['real_mean']:.0f} (best {best:.0f})"
            )
        return note

    def draw(self, path: Path) -> None:
        """Returns of episodes, dreamt and real, over those of the windows climbed on; a PNG."""
        fig, (whole, window) = plt.subplots(2, sharex=True, figsize=(8, 6))
        for env, label in (("real", "real"), ("dream", "dreamt")):
            whole.errorbar(
                [row["update"] for row in self.validated],
                [row[f"{env}_mean"] for row in self.validated],
                [row[f"{env}_std"] for row in self.validated],
                fmt="o-",
                capsize=3,
                label=f"{label} (mean and standard deviation over episodes)",
            )
        whole.set(ylabel="return of an episode", title="Trained by the dream's gradient")
        updates = [row["update"] for row in self.lines]
        window.plot(updates, [row["window_return"] for row in self.lines], label="dreamt window")
        window.set(xlabel="update", ylabel="return of a window")
        slope = window.twinx()
        norms = [row["gradient_norm"] for row in self.lines]
        slope.semilogy(updates, norms, color="tab:gray", alpha=0.6, label="length of the gradient")
        slope.set(ylabel="gradient")
        lines = [*window.lines, *slope.lines]
        window.legend(lines, [str(line.get_label()) for line in lines], loc="lower right")
        whole.legend(loc="lower right")
        whole.grid(alpha=0.3)
        fig.tight_layout()
        fig.savefig(path, dpi=120)
        plt.close(fig)


def _plot(axes: Any, lines: list[Line], name: str, **style: Any) -> None:
    known = [line for line in lines if name in line]
    axes.plot([line["generation"] for line in known], [line[name] for line in known], **style)
