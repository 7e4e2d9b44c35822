"""The report of a round of the loop: `report.md` for people, `report.json` for programs.

Real tracks in it are those that choose controllers; none that judges is driven.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.linear import linear_policy, load_linear
from agents.record import record_episode
from training.contender import Contender, evaluate_contender
from training.presets import Preset
from wm_env.fidelity.policy_suite import load_variant, policy_suite
from wm_env.fidelity.report import FidelityConfig, measure
from wm_env.shard import Shard
from wm_env.storage import write_atomically
from wm_env.weights import load_world

_Table = dict[str, dict[str, float]]

_FIDELITY = {
    "spearman": "rank correlation of dreamt and real returns over the policies; 1 is best",
    "spearman_better_half": "the same, over the half that really drives better",
    "pearson": "linear correlation of the same returns; 1 is best",
    "bias": "dreamt minus real return, mean over the policies; above 0 the dream promises too much",
    "z_error_10": "error of the latent 10 frames into an open-loop dream",
    "z_error_50": "the same, 50 frames into it",
    "tiles_calibration_error": "how far foreseen rates of tiles are from real ones",
    "excess_20_before_failures": "tiles in 100 frames that replays from 20 frames before a failure "
    "are paid beyond those really hit; 0 is best",
    "excess_ordinary": "the same, from ordinary moments",
}


def write_report(
    preset: Preset, contender: Contender, best: Contender, driven: Sequence[Shard]
) -> None:
    """Write the report of a finished round beside its files; one that is there is kept.

    Args:
        preset: that of the run.
        contender: what the round brought forth.
        best: the contender that the round went on from, the best of those before.
        driven: what the round drove for data.

    Raises:
        EvaluationError: an episode could not be driven.
    """
    told = contender.folder / "report.json"
    if told.exists():
        return
    real = _drive(preset, contender)
    # What M did not foresee is told in tiles, as the fidelity is.
    worst = _worst(preset, contender, real) if preset.collect.task.pays_tiles else None
    facts = {
        "round": contender.folder.name,
        "went_on_from": _name(best, contender),
        "data": data_by_driver(driven),
        "vision": _vision(contender),
        "fidelity": _fidelity(preset, contender, best),
        "controllers": {"this round": contender.scores(), "best before": best.scores()},
        "gain": contender.validated() > best.validated(),
        "gymnasium": {name: real[name] for name in ("mean", "std", "seeds", "returns")},
        "worst": worst,
    }
    write_atomically(contender.folder / "report.md", as_text(facts).encode())
    write_atomically(told, (json.dumps(facts, indent=1) + "\n").encode())


def data_by_driver(shards: Sequence[Shard]) -> _Table:
    """`episodes`, `frames` and `mean_return` of each driver; spoilt controllers for themselves."""
    rows: dict[str, list[tuple[int, float]]] = {}
    for shard in shards:
        plan = shard.manifest["provenance"].get("plan", {})
        noises = {"actions": plan.get("noise"), "weights": plan.get("weight_noise")}
        spoilt = "".join(f", {on} + {noise:g} noise" for on, noise in noises.items() if noise)
        for row in shard.episodes:
            rows.setdefault(row.driver + spoilt, []).append((row.length, row.ret))
    return {
        driver: {
            "episodes": len(one),
            "frames": sum(length for length, _ in one),
            "mean_return": sum(ret for _, ret in one) / len(one),
        }
        for driver, one in sorted(rows.items())
    }


def as_text(facts: dict[str, Any]) -> str:
    """The report in Markdown."""
    vision, worst, real = facts["vision"], facts["worst"], facts["gymnasium"]
    seeds = f"{real['seeds'][0]}..{real['seeds'][-1]}"
    verdict = "a gain" if facts["gain"] else "no gain: the next round goes on from the best before"
    parts = [
        f"# {facts['round']}",
        f"It went on from {facts['went_on_from']}, whose controller drove for data, with noise. "
        "Then M was fitted on with that, and the controller evolved on in the new dream.",
        "## Data added",
        _table("driver", facts["data"]),
        "## V: what is seen",
        "Squared error of a reconstructed image, summed over its pixels in [0, 1], on episodes "
        f"that no fit has seen. V was {vision['what']}.",
        _table("V", vision["errors"]),
        "## M: how true the dream is",
        _fidelity_text(facts["fidelity"]),
        "## The controller",
        f"By the real mean of the validation that chose it: {verdict}. `dream` is the mean return "
        "in the dream that it was evolved in.",
        _table("", facts["controllers"]),
        f"On Gymnasium, tracks {seeds}: {real['mean']:.1f} ± {real['std']:.1f}.",
        *(_worst_text(worst) if worst else []),
    ]
    return "\n\n".join(parts) + "\n"


def _worst_text(worst: dict[str, Any]) -> list[str]:
    film = Path(worst["files"][0])
    return [
        "## Its worst real episode",
        f"Track {worst['seed']}: return {worst['ret']:.1f} in {worst['length']} frames "
        f"({worst['end']}), where M, a step ahead, expected {worst['expected_return']:.1f}; "
        f"{worst['tiles']} tiles, {worst['expected_tiles']:.1f} expected. It was surprised "
        f"{worst['surprises']} times, and deluded {worst['delusions']} times: the dream promised "
        "tiles that were not there.",
        f"[{film.name}]({film}) shows the road, what V keeps of it, and the dream beside it.",
        *(f"![{path}]({path})" for path in worst["files"] if path.endswith(".png")),
    ]


def _fidelity_text(fidelity: dict[str, Any]) -> str:
    if not fidelity["after"]:
        return "Not measured (`--loop.fidelity-episodes 0`)."
    rows = {
        f"{name.replace('_', ' ')} ({meaning})": {
            when: _number(fidelity[when].get(name)) if fidelity[when] else "-"
            for when in ("before", "after")
        }
        for name, meaning in _FIDELITY.items()
    }
    why = "" if fidelity["before"] else "V has changed: the world before cannot see these drives. "
    return (
        f"{why}The new controller, spoilt in many ways, and constant actions: each drove on real "
        "tracks and in both dreams. Before is the world that the round went on from.\n\n"
        + _table("", rows)
    )


def _table(name: str, rows: dict[str, dict[str, Any]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [[name, *(column.replace("_", " ") for column in columns)]]
    lines += [["---", *("---:" for _ in columns)]]
    lines += [[row, *(_number(values[one]) for one in columns)] for row, values in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    if value is None:
        return "undefined"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value}"


def _name(contender: Contender, of_round: Contender) -> str:
    return "the run itself" if contender.folder == of_round.folder.parent else contender.folder.name


def _vision(contender: Contender) -> dict[str, Any]:
    """`what` was done to V, and its `errors` on frames from before the round and on new ones."""
    if not contender.reconstruction.exists():
        return {"what": "not looked at", "errors": {"as it was": {"old": None, "new": None}}}
    facts = json.loads(contender.reconstruction.read_text())
    errors = {"as it was": facts["before"]}
    if "after" not in facts:
        return {"what": "good enough for the new frames, and kept", "errors": errors}
    errors["fitted on"] = facts["after"]
    return {"what": "worse on the new frames, and was fitted on with all", "errors": errors}


def _drive(preset: Preset, contender: Contender) -> dict[str, Any]:
    """How the tracks of validation go on Gymnasium."""
    seeds, steps = preset.evolve.validation_seeds(), preset.evolve.validation_steps
    path = contender.folder / "validation.json"
    return evaluate_contender(contender, seeds=seeds, max_steps=steps, path=path)


def _worst(preset: Preset, contender: Contender, real: dict[str, Any]) -> dict[str, Any]:
    """The recorded worst of the `real` episodes."""
    folder, steps = contender.folder, preset.evolve.validation_steps
    _, seed = min(zip(real["returns"], real["seeds"], strict=True))
    episode = record_episode(
        linear_policy,
        load_linear(contender.controller)[0],
        load_world(contender.world),
        seed=seed,
        out=folder / "worst",
        steps=steps,
    )
    files = [str(path.relative_to(folder)) for path in episode.files]
    return {**asdict(episode), "files": files}


def _fidelity(preset: Preset, contender: Contender, best: Contender) -> dict[str, Any]:
    """The figures of the world before the round and after it, on drives of the new controller.

    They are None where nothing is measured, and before a V that was fitted on: worlds compare only
    where they see alike.
    """
    folder, size = contender.folder / "fidelity", preset.loop
    if not size.fidelity_episodes:
        return {"before": None, "after": None}
    config = FidelityConfig(
        drives=folder,
        first_seed=preset.evolve.validation_first_seed,
        episodes=size.fidelity_episodes,
        dreams=size.fidelity_dreams,
        steps=size.fidelity_steps,
        backend=preset.collect.backend,
    )
    after = load_world(contender.world)
    features = after.latent_size + after.hidden_size
    suite = policy_suite(load_variant(contender.controller, features=features))

    def row(name: str, world: Contender) -> dict[str, Any]:
        return _kept(
            folder / f"{name}.json",
            lambda: measure([load_world(world.world)], suite, config, driver=after).as_dict(),
        )["row"]

    before = row("before", best) if contender.vision == best.vision else None
    return {"before": before, "after": row("after", contender)}


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.exists():
        write_atomically(path, (json.dumps(make(), indent=1) + "\n").encode())
    return json.loads(path.read_text())
