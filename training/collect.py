"""Collection: real cars, driven headless by scripted or trained drivers, into a store of shards.

A worker process a core takes shard after shard. What a shard holds depends on its plan alone: any
worker, any machine and any later run would write the same driving. Hence a lost worker costs the
shard that it had in hand and no more: another drives that again.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Literal

import numpy as np

from agents.drivers import drivers_of
from training.driving import drive
from training.plan import CollectConfig, ShardPlan
from training.store import check_task, clean_unfinished, shard_path
from wm_env.jobs import Done, JobLostError, Progress
from wm_env.progress import Bar, progress_bar
from wm_env.seeds import refuse_held_out
from wm_env.shard import Shard, read_shard, write_shard
from wm_env.simulator import check_backend, provenance
from wm_env.storage import StoreError, StorePath, to_path
from wm_env.workers import run_jobs


def collect(
    store: str | StorePath,
    config: CollectConfig,
    *,
    damaged: Literal["refuse", "skip"] = "refuse",
    on_shard: Callable[[Shard], None] | None = None,
) -> list[Shard]:
    """Fill a store up to the plan; shards that are there are kept and never rewritten.

    Args:
        store: a folder or any URL that fsspec knows; workers on other machines must see it too.
        config: what to collect.
        damaged: "refuse" a shard whose manifest is damaged, or "skip" it and drive it anew.
        on_shard: called with each shard that gets finished.

    Returns:
        The shards of the plan, in order.

    Raises:
        ValueError: a number of the config is out of range, or an environment, driver or back-end is
            unknown.
        StoreError: a finished shard is damaged or is not of this plan, or one cannot be collected.
        WorkersError: there is no Ray cluster at that address.
    """
    _check(config)
    folder, plan = to_path(store), config.plan()
    folder.mkdir(parents=True, exist_ok=True)
    clean_unfinished(folder)
    done = _finished(folder, plan, config, damaged)
    missing = [one for one in plan if one.index not in done]
    jobs = run_jobs(
        collect_shard,
        (folder, config),
        missing,
        processes=config.workers,
        ray=config.ray,
        patience=config.patience,
    )
    total = sum(config.episodes.values())
    already = sum(len(shard.episodes) for shard in done.values())
    with progress_bar("collecting", total=total, done=already, unit="episodes") as bar:
        progress = _CollectionProgress(bar, list(done.values()), missing)
        try:
            with closing(jobs) as events:
                for event in events:
                    progress.show(event)
                    if isinstance(event, Done):
                        shard = done[missing[event.index].index] = _visible(event.result)
                        if on_shard:
                            on_shard(shard)
        except JobLostError as error:
            lost = missing[error.index]
            raise StoreError(
                f"shard {lost.index} ({lost.driver}, seeds {lost.seeds[0]}..{lost.seeds[-1]}) "
                f"cannot be collected: {error} {len(done)} of {len(plan)} shards are finished and "
                "safe; the same command goes on from there."
            ) from error
        finally:
            clean_unfinished(folder)
    return [done[one.index] for one in plan]


def _finished(
    folder: StorePath, plan: list[ShardPlan], config: CollectConfig, damaged: str
) -> dict[int, Shard]:
    """The shards of the plan that are there, by number."""
    done, there = {}, {path.name for path in folder.glob("shard-*.zip")}
    for one in plan:
        path = shard_path(folder, one.index)
        if path.name not in there:
            continue
        try:
            shard = read_shard(path)
        except StoreError as error:
            if damaged == "refuse":
                raise
            print(f"driven anew: {error}", file=sys.stderr)
            continue
        done[one.index] = _same_plan(shard, one, config)
    return done


class _CollectionProgress:
    """Keeps the bar true: the driving of shards in hand counts, and that of a lost one no more."""

    def __init__(self, bar: Bar, done: list[Shard], plans: list[ShardPlan]):
        self._bar, self._plans = bar, plans
        self._returns = [row.ret for shard in done for row in shard.episodes]
        self._episodes, self._frames = float(len(self._returns)), 0
        self._in_hand: dict[int, tuple[float, int]] = {}  # episodes' worth, and frames

    def show(self, event: Any) -> None:
        """Take in what a worker told."""
        self._in_hand.pop(event.index, None)
        plan = self._plans[event.index]
        if isinstance(event, Done):
            self._returns += [row.ret for row in event.result.episodes]
            self._episodes += len(plan.seeds)
            self._frames += event.result.frames
        elif not isinstance(event, Progress):
            self._bar.say(f"shard {plan.index} is taken over by another worker: {event.reason}")
        elif event.sign is not None:
            share, frames = event.sign
            self._in_hand[event.index] = share * len(plan.seeds), frames
        self._bar.move_to(
            self._episodes + sum(episodes for episodes, _ in self._in_hand.values()),
            frames=self._frames + sum(frames for _, frames in self._in_hand.values()),
            note=f"return {np.mean(self._returns):.0f}" if self._returns else "",
        )


def _check(config: CollectConfig) -> None:
    for name in ("workers", "cars", "max_steps"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more.")
    if not config.episodes or min(config.episodes.values()) < 0:
        raise ValueError(
            f"episodes is {config.episodes}; expected a number of 0 or more for each driver."
        )
    check_backend(config.backend, config.task)
    refuse_held_out(seed for one in config.plan() for seed in one.seeds)
    drivers = drivers_of(config.task)
    unknown = set(config.episodes) - set(drivers)
    if unknown:
        raise ValueError(f"unknown drivers {sorted(unknown)}; expected some of {sorted(drivers)}.")


def _same_plan(shard: Shard, plan: ShardPlan, config: CollectConfig) -> Shard:
    check_task(shard, config.task)
    found, expected = shard.manifest["provenance"].get("plan"), plan.settings(config)
    if found != expected:
        raise StoreError(
            f"shard {shard.path} was made by the plan {found}, but this one asks for {expected}; "
            "use another --out, or the command that began this store."
        )
    return shard


def _visible(shard: Shard) -> Shard:
    if not shard.path.exists():
        raise StoreError(
            f"a worker on another machine wrote {shard.path}, which is not there on this one; "
            "give --store a folder that every machine shares, or a URL."
        )
    return shard


def collect_shard(
    shared: tuple[StorePath, CollectConfig], plan: ShardPlan
) -> Generator[tuple[float, int], None, Shard]:
    """In a worker: drive and write a shard; yields its share that is driven, and frames so far."""
    folder, config = shared
    episodes = yield from drive(plan, config)
    made_by = {**provenance(config.backend, config.task), "plan": plan.settings(config)}
    return write_shard(shard_path(folder, plan.index), episodes, made_by)
