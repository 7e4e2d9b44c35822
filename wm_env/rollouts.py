"""One whole episode of a policy in a dream, as a scan: controllers are evolved by it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from wm_env.dream import DreamCarRacing, DreamParams, DreamState

# policy(policy_params, observation, key) -> action
Policy = Callable[[Any, Any, Any], Any]


class Trajectory(eqx.Module):
    """Every frame of an episode; frames after its end hold what the dream went on with."""

    observation: Shaped[Array, "t ..."]  # what the agent saw at t
    action: Shaped[Array, "t ..."]  # what its policy answered, as yet unclipped
    z: Float[Array, "t z"]
    reward: Float[Array, "t"]  # 0 after the end
    alive: Bool[Array, "t"]  # whether the episode was still on at t
    motion: Float[Array, "t m"] | None = None  # the car's at t, where M keeps track of that


class Rollout(eqx.Module):
    """How an episode went. Without a lap or a fall it met the time limit."""

    ret: Float[Array, ""]  # return: the sum of rewards
    length: Int[Array, ""]  # frames
    tiles: Float[Array, ""]
    lap_finished: Bool[Array, ""]
    off_field: Bool[Array, ""]
    trajectory: Trajectory | None = None


class _Progress(eqx.Module):
    state: DreamState
    observation: Array
    alive: Array
    rollout: Rollout


def rollout(
    env: DreamCarRacing,
    params: DreamParams,
    policy: Policy,
    policy_params: Any,
    key: PRNGKeyArray,
    *,
    steps: int = 1000,
    state: DreamState | None = None,
    record: bool = False,
) -> Rollout:
    """Drive one episode of at most `steps` frames; callers vmap (and jit).

    Differentiable when `env` is `env.with_transition_gradients()`. `state` begins the episode there
    instead of at a reset; `record` adds the trajectory.
    """
    key_reset, key_dream, key_policy = jax.random.split(key, 3)
    if state is None:
        observation, state = env.reset_env(key_reset, params)
    else:
        observation = env.observe(key_reset, state, None, params)

    def frame(now: _Progress, keys: tuple[Array, Array]) -> tuple[_Progress, tuple | None]:
        action = policy(policy_params, now.observation, keys[1])
        observation, state, reward, terminated, info = env.step_env(
            keys[0], now.state, action, params
        )
        reward = jnp.where(now.alive, reward, 0.0)
        so_far = now.rollout
        after = Rollout(
            ret=so_far.ret + reward,
            length=so_far.length + now.alive.astype(jnp.int32),
            tiles=jnp.where(now.alive, info["tiles"], so_far.tiles),
            lap_finished=so_far.lap_finished | (now.alive & info["lap_finished"]),
            off_field=so_far.off_field | (now.alive & info["off_field"]),
        )
        alive = now.alive & ~terminated & ~env.is_truncated(state, params)
        seen = None
        if record:
            before = now.state
            seen = now.observation, action, before.z, reward, now.alive, before.carry.motion
        return _Progress(state, observation, alive, after), seen

    zero, no = jnp.float32(0.0), jnp.bool_(False)
    start = Rollout(ret=zero, length=jnp.int32(0), tiles=zero, lap_finished=no, off_field=no)
    keys = jax.random.split(key_dream, steps), jax.random.split(key_policy, steps)
    begin = _Progress(state, observation, jnp.bool_(True), start)
    end, seen = jax.lax.scan(frame, begin, keys)
    return Rollout(
        ret=end.rollout.ret,
        length=end.rollout.length,
        tiles=end.rollout.tiles,
        lap_finished=end.rollout.lap_finished,
        off_field=end.rollout.off_field,
        trajectory=Trajectory(*seen) if seen is not None else None,
    )
