"""Whole episodes of a policy, many lanes at once, in the dream or on EnvPool's CarRacing-v3."""

import enum
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from gymnasium.vector import VectorEnv

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.gym_arguments import dream_params
from wm_env.gym_vector import DreamCarRacingVectorEnv
from wm_env.real import make_real_vector
from wm_env.rollouts import rollout
from wm_env.world_model import WorldModel

# Episodes at once. Always as many, the last group filled up, because the rounding of a batched
# program depends on its size: a seed must score the same in whatever company.
LANES = 16

_Item = TypeVar("_Item")

# A `wm_env.rollouts.Policy`; or, with `Plain.PLAIN` for parameters, one of the observation alone.
AnyPolicy = Callable[..., Any]


class Plain(enum.Enum):
    """`PLAIN` in the place of a policy's parameters: it is any callable, observation -> action."""

    PLAIN = enum.auto()


@dataclass(frozen=True)
class Episode:
    """How one episode went; without a lap or a fall it met the time limit."""

    seed: int
    ret: float  # return: the sum of rewards
    length: int  # frames
    lap_finished: bool
    off_field: bool


def drive_dream(
    policy: AnyPolicy,
    policy_params: Any,
    world: WorldModel,
    options: dict[str, Any],
    seeds: tuple[int, ...],
) -> Generator[tuple[int, Episode], None, None]:
    """Dream an episode for each seed; yields its place among the seeds and how it went.

    `options` are the arguments of DreamCarRacingEnv, all but the world and the render mode.
    """
    if policy_params is Plain.PLAIN:
        env = DreamCarRacingVectorEnv(LANES, world_model=world, **options)
        yield from _drive_vector(policy, policy_params, env, seeds)
        return
    core = DreamCarRacing(*(options.pop(name) for name in ("observation", "continuous", "task")))
    params = dream_params(core.task, world_model=world, **options)
    steps = int(params.max_steps_in_episode)
    for first in range(0, len(seeds), LANES):
        group = seeds[first : first + LANES]
        keys = keys_of(filled(group, LANES))
        outcome = jax.device_get(_dream(core, params, policy, policy_params, keys, steps))
        for lane, seed in enumerate(group):
            episode = Episode(
                seed=seed,
                ret=float(outcome.ret[lane]),
                length=int(outcome.length[lane]),
                lap_finished=bool(outcome.lap_finished[lane]),
                off_field=bool(outcome.off_field[lane]),
            )
            yield first + lane, episode


def drive_envpool(
    policy: AnyPolicy,
    policy_params: Any,
    world: WorldModel | None,
    options: dict[str, Any],
    seeds: tuple[int, ...],
) -> Generator[tuple[int, Episode], None, None]:
    """Drive an episode for each seed on EnvPool; yields as `drive_dream` does.

    `options` are the arguments of `make_real_vector`.
    """
    env = make_real_vector(LANES, world, backend="envpool", **options)
    yield from _drive_vector(policy, policy_params, env, seeds)


def _drive_vector(
    policy: AnyPolicy, policy_params: Any, env: VectorEnv, seeds: tuple[int, ...]
) -> Generator[tuple[int, Episode], None, None]:
    """Drive LANES at once, of either mode of autoreset, and close the environment."""
    try:
        for first in range(0, len(seeds), LANES):
            group = seeds[first : first + LANES]
            observations, _ = env.reset(seed=filled(group, LANES))  # pyright: ignore[reportArgumentType]
            keys = keys_of(filled(group, LANES))
            returns, running, step = np.zeros(LANES), np.arange(LANES) < len(group), 0
            while running.any():
                actions = act(policy, policy_params, observations, keys, np.asarray(step), running)
                observations, rewards, terminated, truncated, infos = env.step(actions)
                step += 1
                returns += np.where(running, rewards, 0.0)
                over = running & (terminated | truncated)
                told = infos.get("final_info", infos)
                for lane in np.flatnonzero(over).tolist():
                    episode = Episode(
                        seed=group[lane],
                        ret=float(returns[lane]),
                        length=step,
                        lap_finished=bool(told["lap_finished"][lane]),
                        off_field=bool(told["off_field"][lane]),
                    )
                    yield first + lane, episode
                running &= ~over
    finally:
        env.close()


def act(
    policy: AnyPolicy,
    policy_params: Any,
    observations: Any,
    keys: Any,
    step: Any,
    running: np.ndarray | None = None,
) -> np.ndarray:
    """Actions of a policy for lanes of observations and keys.

    `step` is a numpy array, for a Python number would compile anew at each step. Of lanes, those
    that are not `running` may get any action.
    """
    if policy_params is not Plain.PLAIN:
        return np.asarray(_act(policy, policy_params, observations, keys, step))
    rows = np.arange(len(observations)) if running is None else np.flatnonzero(running)
    some = np.stack([np.asarray(policy(observations[row])) for row in rows])
    actions = np.zeros((len(observations), *some.shape[1:]), some.dtype)
    actions[rows] = some
    return actions


@eqx.filter_jit
def _act(
    policy: AnyPolicy, policy_params: Any, observations: Any, keys: Any, step: Any
) -> jax.Array:
    def one(observation: Any, key: Any) -> Any:
        return policy(policy_params, observation, jax.random.fold_in(key, step))

    return jax.vmap(one)(observations, keys)


@eqx.filter_jit
def _dream(
    core: DreamCarRacing,
    params: DreamParams,
    policy: AnyPolicy,
    policy_params: Any,
    keys: jax.Array,
    steps: int,
) -> Any:
    def one(key: jax.Array) -> Any:
        return rollout(core, params, policy, policy_params, key, steps=steps)

    return jax.vmap(one)(keys)


def keys_of(seeds: list[int]) -> jax.Array:
    """A key for each seed, as `jax.random.key` makes it of one."""
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def filled(items: Sequence[_Item], size: int) -> list[_Item]:
    """The items and then the last of them again, `size` in all."""
    return [*items, *[items[-1]] * (size - len(items))]
