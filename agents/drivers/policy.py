"""A trained controller that fills a dataset: V, M and what drives on them, on many real cars."""

import functools
import os
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from agents.drivers.action_noise import ActionNoise, Style
from agents.drivers.driver import Actions, Frames
from agents.linear import LinearController, linear_policy, load_linear
from wm_env.mdn_rnn import Carry
from wm_env.rollouts import Policy
from wm_env.task import CAR_RACING, Task
from wm_env.weights import world_for
from wm_env.world_model import WorldModel

_BURST_RATE = 0.01  # a step, of a wrong manoeuvre
_BURST_STEPS = (4, 40)
_BORROWED = 0.5  # of these, with the actions for another car's road


class PolicyDriver:
    """Drives from raw frames as a trained controller would, with noise on what it does.

    M learns where the controller errs, and what led there: episodes are stored whole, failures and
    all. That noise is the heuristic driver's, its standard deviation drawn for each car from
    U(0, noise): without noise the action tells M what the road looks like, and the dream obeys the
    driver. M's carry follows the action really taken. Lives for one episode a car.

    Args:
        cars: number of cars.
        seed: of the noise and of the policy's keys.
        world: a WorldModel, the path of one, or a shipped name; None is the shipped one.
        controller: a LinearController, the path of one, or a shipped name; None is the shipped one.
            For another policy its parameters, a pytree of arrays.
        policy: a function `policy(controller, features, key) -> action` on one car's [z, h], in
            JAX, as for `wm_env.rollouts.rollout`.
        noise: the largest standard deviation of a car's noise; 0 drives cleanly, without bursts.
        task: what is driven, which must be the world's and the controller's.

    Raises:
        ValueError: `noise` is negative.
        WeightsError: the world or the controller cannot be loaded, or they do not fit.
    """

    def __init__(
        self,
        cars: int,
        seed: int,
        *,
        world: WorldModel | str | os.PathLike | None = None,
        controller: Any = None,
        policy: Policy = linear_policy,
        noise: float = 0.3,
        task: Task = CAR_RACING,
    ):
        if not noise >= 0.0:
            raise ValueError(f"noise is {noise}; expected a standard deviation of 0 or more.")
        world = world_for(task, world)
        if policy is linear_policy and not isinstance(controller, LinearController):
            features = world.latent_size + world.hidden_size
            controller, _ = load_linear(controller, features=features, task=task)
        self._world, self._controller, self._policy = world, controller, policy
        style = Style(
            noise=(0.0, noise),
            burst_rate=_BURST_RATE if noise > 0.0 else 0.0,
            burst_steps=_BURST_STEPS,
            borrowed=_BORROWED,
        )
        self._noise = ActionNoise(cars, np.random.default_rng(seed), style, task)
        self._key = jax.random.key(seed)
        self._carry = world.mdn_rnn.initial_carries(cars)
        self._before: tuple[Array, Actions] | None = None

    def act(self, frames: Frames) -> Actions:
        """Actions [n, a] for the task's frames [n, height, width, 3]."""
        self._key, key = jax.random.split(self._key)
        z, self._carry, wanted = _drive(
            self._policy,
            self._world,
            self._controller,
            self._carry,
            self._before,
            self._world.task.preprocess(frames),
            key,
        )
        actions = self._noise.disturb(np.asarray(wanted))
        self._before = z, actions
        return actions


@functools.partial(jax.jit, static_argnums=0)
def _drive(
    policy: Policy,
    world: WorldModel,
    controller: Any,
    carry: Carry,
    before: tuple[Array, Array] | None,
    images: Array,
    key: PRNGKeyArray,
) -> tuple[Array, Carry, Array]:
    """Latents and carries on seeing `images`, and what the controller wants to do.

    `before` is what was seen and done a step ago; None at first frames.
    """
    if before is not None:
        carry = jax.vmap(world.mdn_rnn.advance_carry)(*before, carry)
    z = jax.vmap(world.encode)(images)
    features = jax.vmap(world.features)(z, carry.h)
    keys = jax.random.split(key, len(images))
    return z, carry, jax.vmap(policy, in_axes=(None, 0, 0))(controller, features, keys)
