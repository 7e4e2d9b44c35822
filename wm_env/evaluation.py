"""How well a policy drives: one episode for each seed, in the real CarRacing-v3 or in the dream.

Worlds of other tasks are driven alike, and their real environments.

Gymnasium's CarRacing-v3 is the judge: seeds 1000 to 1099, no warm-up, a deterministic policy. Each
figure depends on its seed alone, not on which other seeds, or how many processes, were with it.
"""

import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wm_env.episodes import Episode, Plain, drive_dream, drive_envpool
from wm_env.judge import EvaluationError, drive_gymnasium
from wm_env.progress import progress_bar
from wm_env.rollouts import Policy
from wm_env.simulator import BACKENDS, check_backend
from wm_env.task import CAR_RACING, task_named
from wm_env.weights import task_told, world_for
from wm_env.world_model import WorldModel

__all__ = ["ENVS", "Episode", "Evaluation", "EvaluationError", "evaluate"]

ENVS = ("real", "dream")

_DREAM = {
    "temperature": 1.0,
    "persistence": 0.0,
    "dropout": 0.0,
    "track_tiles": 281.0,
    "lap_complete_percent": 1.0,
    "start": "first",
    "precision": "float32",
}


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one policy, in the order of the seeds that were asked for."""

    env: str  # "real" or "dream"
    backend: str  # "gymnasium", "envpool" or, of a dream, "jax"
    seeds: tuple[int, ...]
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    laps_finished: tuple[bool, ...]
    off_field: tuple[bool, ...]  # of another task than CarRacing: terminated
    task: str = CAR_RACING.id

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns (numpy's, as the literature gives it)."""
        return float(np.std(self.returns))

    @property
    def ci95(self) -> float:
        """Half width of the mean's 95% confidence interval (normal); NaN for a single episode."""
        count = len(self.returns)
        if count < 2:
            return math.nan
        return 1.96 * float(np.std(self.returns, ddof=1)) / math.sqrt(count)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values; `ci95` is None where it is not defined."""
        fields = {name: _listed(value) for name, value in asdict(self).items()}
        ci95 = None if math.isnan(self.ci95) else self.ci95
        return {**fields, "mean": self.mean, "std": self.std, "ci95": ci95}

    def to_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=1)

    def summary(self) -> str:
        """A small table, with the figures that one would quote."""
        count, tiles = len(self.seeds), task_named(self.task).pays_tiles
        best, worst = int(np.argmax(self.returns)), int(np.argmin(self.returns))
        spread = "" if math.isnan(self.ci95) else f"  (95% of the mean: ±{self.ci95:.1f})"
        rows = (
            ("environment", f"{self.env} ({self.backend})"),
            *([] if tiles else [("task", self.task)]),
            ("episodes", f"{count}, seeds {_ranges(self.seeds)}"),
            ("return", f"{self.mean:.1f} ± {self.std:.1f}{spread}"),
            ("best", f"{self.returns[best]:.1f}, seed {self.seeds[best]}"),
            ("worst", f"{self.returns[worst]:.1f}, seed {self.seeds[worst]}"),
            ("frames", f"{np.mean(self.lengths):.0f} on average"),
            *([("laps finished", f"{sum(self.laps_finished)} of {count}")] if tiles else []),
            ("off the field" if tiles else "terminated", f"{sum(self.off_field)} of {count}"),
        )
        return "\n".join(f"{name:<14} {value}" for name, value in rows)


def evaluate(
    policy: Policy | Callable[[np.ndarray], Any],
    policy_params: Any = Plain.PLAIN,
    *,
    env: str = "real",
    seeds: Iterable[int],
    world_model: WorldModel | str | os.PathLike | None = None,
    backend: str = "gymnasium",
    observation: str = "features",
    continuous: bool = True,
    processes: int | None = None,
    ray: str | None = None,
    progress: bool = True,
    max_episode_steps: int = 1000,
    dream: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Drive one episode for each seed.

    Args:
        policy: `policy(policy_params, observation, key) -> action` on one observation, in JAX,
            which is vmapped over several; or, without `policy_params`, any callable that takes one
            observation (numpy) and gives an action, as
            `lambda seen: network.predict(seen, deterministic=True)[0]`. It must depend on the
            observation alone: one callable drives many episodes, some of them by turns. On
            Gymnasium it goes to other processes (by cloudpickle), on CPUs: let it hold a network
            and no environment, which would go with it.
        policy_params: pytree of arrays.
        env: "real" or "dream".
        seeds: one episode each. Those of EnvPool give other tracks than Gymnasium's, and a callable
            dreams other dreams of a seed than a policy in JAX.
        world_model: a WorldModel, the path of one, or a shipped name; None is the shipped one.
            Pixels of the real environment need none. Its task is what is driven.
        backend: of the real environment, "gymnasium" (the judge) or "envpool" (fast).
        observation, continuous: what the policy sees and how it acts, as for `make_real`.
        processes: for Gymnasium; one a core unless told.
        ray: address of a Ray cluster (HOST:PORT or "auto") to drive on instead, with Gymnasium.
        progress: whether to show a bar with the running mean on stderr.
        max_episode_steps: an episode's time limit.
        dream: of env="dream": temperature, persistence, dropout, track_tiles,
            lap_complete_percent, start and precision, as for DreamCarRacingEnv.

    Raises:
        ValueError: an argument outside its range, no seeds, or a policy of other arguments.
        EvaluationError: the policy cannot be sent to other processes, fails there, or an episode
            lost its process three times; the message names the seeds.
        WorkersError: there is no Ray cluster at that address.
        WeightsError: the world cannot be loaded.
    """
    seeds = tuple(int(seed) for seed in seeds)
    _check_policy(policy, policy_params)
    _check(env, seeds, backend, {"max_episode_steps": max_episode_steps, "processes": processes})
    _check_dream(env, dream)
    if ray is not None and (env, backend) != ("real", "gymnasium"):
        raise ValueError(
            f"ray is {ray!r} with env={env!r} and backend={backend!r}; a cluster drives the real "
            "environment of Gymnasium only."
        )
    world: Any = None
    if observation == "pixels" and env == "real":
        task = task_told(None, world_model)
    else:
        world = world_for(None, world_model)
        task = world.task
    if env == "real":
        check_backend(backend, task)
    options = {
        "observation": observation,
        "continuous": continuous,
        "max_episode_steps": max_episode_steps,
        "task": task,
    }
    driven = (policy, policy_params, world)
    if env == "dream":
        backend = "jax"
        drive = drive_dream(*driven, {**options, **_DREAM, **(dream or {})}, seeds)
    elif backend == "envpool":
        drive = drive_envpool(*driven, options, seeds)
    else:
        drive = drive_gymnasium(*driven, options, seeds, processes=processes, ray=ray)
    episodes: dict[int, Episode] = {}
    name, total = f"driving {env}", len(seeds)
    bar = progress_bar(name, total=total, unit="episodes", show=progress)
    with closing(drive), bar as running:
        for index, episode in drive:
            episodes[index] = episode
            mean = np.mean([one.ret for one in episodes.values()])
            running.advance(1, frames=episode.length, note=f"mean {mean:.1f}")
    return _in_order([episodes[index] for index in range(total)], env, backend, task.id)


def _in_order(episodes: list[Episode], env: str, backend: str, task: str) -> Evaluation:
    return Evaluation(
        env=env,
        backend=backend,
        seeds=tuple(one.seed for one in episodes),
        returns=tuple(round(one.ret, 4) for one in episodes),
        lengths=tuple(one.length for one in episodes),
        laps_finished=tuple(one.lap_finished for one in episodes),
        off_field=tuple(one.off_field for one in episodes),
        task=task,
    )


def _check_policy(policy: Callable[..., Any], policy_params: Any) -> None:
    try:
        inspect.signature(policy).bind(*([None] if policy_params is Plain.PLAIN else [None] * 3))
    except TypeError as error:
        raise ValueError(
            f"the policy {policy!r} does not fit ({error}); expected policy(policy_params, "
            "observation, key) with policy_params, or policy(observation) without."
        ) from error
    except ValueError:  # builtins need not tell their signature
        pass


def _check(
    env: str, seeds: tuple[int, ...], backend: str, counts: Mapping[str, int | None]
) -> None:
    for name, value, expected in (("env", env, ENVS), ("backend", backend, BACKENDS)):
        if value not in expected:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(expected)}.")
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**31:
        raise ValueError(
            f"seeds are {_ranges(seeds) or 'none'}; expected one or more, from 0 to 2**31 - 1. "
            "range(1000, 1100) are those that published figures use."
        )
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; expected 1 or more.")


def _check_dream(env: str, dream: Mapping[str, Any] | None) -> None:
    if dream is not None and (env != "dream" or not set(dream) <= set(_DREAM)):
        raise ValueError(
            f"dream is {dict(dream)} with env={env!r}; expected some of {', '.join(_DREAM)}, and "
            "env='dream': the real environment has no such options."
        )


def _ranges(seeds: tuple[int, ...]) -> str:
    """Seeds in short: "1000..1099" where they follow one another."""
    if len(seeds) > 2 and seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}..{seeds[-1]}"
    shown = ", ".join(str(seed) for seed in seeds[:8])
    return shown + (", …" if len(seeds) > 8 else "")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
