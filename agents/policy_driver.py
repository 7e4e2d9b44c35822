"""A trained controller that fills a dataset: V, M and a linear controller on many real cars."""

import os

import jax
import numpy as np
from jaxtyping import Array

from agents.drivers import ActionNoise, Actions, Frames, Style
from agents.linear import LinearController, load_linear
from wm_env.mdn_rnn import Carry
from wm_env.preprocess import preprocess
from wm_env.weights import load_world
from wm_env.world_model import WorldModel

_BURST_RATE = 0.01  # a step, of a wrong manoeuvre


class PolicyDriver:
    """Drives from raw frames as the controller would, with noise on what it does.

    The noise is that of TrackDriver, its standard deviation drawn for each car from U(0, noise):
    without noise the action tells M what the road looks like, and the dream obeys the driver. M's
    carry follows the action really taken. Lives for one episode a car, like every driver.

    Args:
        cars: number of cars.
        seed: of the noise.
        world: a WorldModel, the path of one, or a shipped name; None is the shipped one.
        controller: a LinearController, the path of one, or a shipped name; None is the shipped one.
        noise: the largest standard deviation of a car's noise; 0 drives cleanly, without bursts.

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
        controller: LinearController | str | os.PathLike | None = None,
        noise: float = 0.3,
    ):
        if not noise >= 0.0:
            raise ValueError(f"noise is {noise}; expected a standard deviation of 0 or more.")
        if not isinstance(world, WorldModel):
            world = load_world("carracing" if world is None else world)
        if not isinstance(controller, LinearController):
            name = "carracing_controller" if controller is None else controller
            controller, _ = load_linear(name, features=world.latent_size + world.hidden_size)
        self._world, self._controller = world, controller
        style = Style(noise=(0.0, noise), burst_rate=_BURST_RATE if noise > 0.0 else 0.0)
        self._noise = ActionNoise(cars, np.random.default_rng(seed), style)
        self._carry = world.mdn_rnn.initial_carries(cars)
        self._before: tuple[Array, Actions] | None = None

    def act(self, frames: Frames) -> Actions:
        """Actions [n, 3] for frames [n, 96, 96, 3]."""
        z, self._carry, wanted = _drive(
            self._world, self._controller, self._carry, self._before, preprocess(frames)
        )
        actions = self._noise.disturb(np.asarray(wanted))
        self._before = z, actions
        return actions


@jax.jit
def _drive(
    world: WorldModel,
    controller: LinearController,
    carry: Carry,
    before: tuple[Array, Array] | None,
    images: Array,
) -> tuple[Array, Carry, Array]:
    """Latents and carries on seeing `images`, and what the controller wants to do.

    `before` is what was seen and done a step ago; None at first frames.
    """
    if before is not None:
        carry = jax.vmap(world.mdn_rnn.advance_carry)(*before, carry)
    z = jax.vmap(world.encode)(images)
    return z, carry, jax.vmap(controller)(jax.vmap(world.features)(z, carry.h))
