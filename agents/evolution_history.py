"""How an evolution went, generation by generation: as lines of JSON, and as a figure."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from wm_env.weights import write_atomically

Line = dict[str, float]  # generation, returns in the dream, real_mean and more where validated


class EvolutionHistory:
    """The first `done` generations that the file tells of; there need be none.

    Raises:
        ValueError: it tells of fewer.
    """

    def __init__(self, path: Path, done: int = 0):
        self._path = path
        lines = path.read_text().splitlines() if done and path.exists() else []
        # A run that died between two writes told of a generation more than its checkpoint has.
        self.lines: list[Line] = [json.loads(line) for line in lines][:done]
        if len(self) < done:
            raise ValueError(
                f"{path} tells of {len(self)} generations; expected the {done} of the checkpoint "
                "beside it. Put it back, or remove the folder to begin anew."
            )

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def validated(self) -> list[Line]:
        """The generations that drove for real."""
        return [line for line in self.lines if "real_mean" in line]

    @property
    def best(self) -> Line:
        """The generation that drove best for real; of equal ones the first."""
        return max(self.validated, key=lambda line: line["real_mean"])

    def add(self, **figures: float) -> None:
        """Tell of one generation more, and keep it."""
        self.lines.append({"generation": len(self) + 1, **figures})
        self._write()

    def amend(self, **figures: float) -> None:
        """Tell more of the last generation, and keep it."""
        self.lines[-1] |= figures
        self._write()

    def is_stalled(self, patience: int | None) -> bool:
        """Whether none of the last `patience` validations was better than all before them."""
        if patience is None or not self.validated:
            return False
        return len(self.validated) - 1 - self.validated.index(self.best) >= patience

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

    def _write(self) -> None:
        write_atomically(self._path, "".join(f"{json.dumps(one)}\n" for one in self.lines).encode())


def _plot(axes: Any, lines: list[Line], name: str, **style: Any) -> None:
    known = [line for line in lines if name in line]
    axes.plot([line["generation"] for line in known], [line[name] for line in known], **style)
