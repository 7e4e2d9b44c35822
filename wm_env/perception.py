"""What an agent of the dream perceives of real frames: V's latent, and what M remembers."""

import os
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.error import ResetNeeded

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.flattened import Flattened
from wm_env.gym_arguments import checked_action
from wm_env.gymnax_parts import spaces
from wm_env.mdn_rnn import Carry
from wm_env.task import Task
from wm_env.weights import world_for
from wm_env.world_model import WorldModel


class Perception:
    """V's latent and M's carry beside the real frames of one car, or of `lanes` of them."""

    def __init__(
        self,
        task: Task,
        world_model: WorldModel | str | os.PathLike | None,
        observation: str,
        continuous: bool,
        lanes: tuple[int, ...] = (),
    ):
        self._core = DreamCarRacing(observation, continuous, task)
        self.world = None if observation == "pixels" else world_for(task, world_model)
        self._flat = Flattened(self.world)
        self._lanes = lanes
        self._begun = False
        self._z: jax.Array | None = None
        self._carry: Carry | None = None

    @property
    def task(self) -> Task:
        """What is perceived."""
        return self._core.task

    @property
    def continuous(self) -> bool:
        """Whether actions are steer, gas and brake, or the like, rather than one of a few."""
        return self._core.continuous

    def spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        """The dream's observation and action spaces."""
        params = None if self.world is None else DreamParams(world_model=self.world)
        seen = spaces.gymnax_space_to_gym_space(self._core.observation_space(params))
        return seen, spaces.gymnax_space_to_gym_space(self._core.action_space(params))

    def understood(self, action: Any) -> tuple[np.ndarray, np.ndarray]:
        """The checked action, and the steer, gas and brake that it stands for, float32 [..., a].

        Raises:
            ResetNeeded: before `begin`.
            InvalidAction: wrong shape, not finite, or no such discrete action.
        """
        if not self._begun:
            raise ResetNeeded("step was called before reset; call reset() first.")
        action = checked_action(self._core, action, self._lanes)
        if self._core.continuous:
            action = np.clip(action, self.task.low, self.task.high)
            return action, action
        return action, self.task.discrete_actions[action]

    def begin(self, images: np.ndarray) -> np.ndarray:
        """What the agent sees of first frames."""
        self._begun = True
        if self._core.observation == "features":
            self._z, self._carry, seen = _begin(self._flat, images)
            return np.array(seen)
        return self._see(images)

    def advance(
        self, controls: np.ndarray, images: np.ndarray, begun: np.ndarray | None = None
    ) -> np.ndarray:
        """What the agent sees after acting; lanes of the mask `begun` show a first frame."""
        if self._core.observation == "features":
            self._z, self._carry, seen = _advance(
                self._flat, self._z, self._carry, controls, images, begun
            )
            return np.array(seen)
        return self._see(images)

    def _see(self, images: np.ndarray) -> np.ndarray:
        if self._core.observation == "pixels":
            return images.copy()
        return np.array(_encode(self._flat, images))


@jax.jit
def _encode(flat: Flattened, images: jax.Array) -> jax.Array:
    world: WorldModel = flat.tree
    return _vmap_lanes(world.encode, images)(images)


@jax.jit
def _begin(flat: Flattened, images: jax.Array) -> tuple[jax.Array, Carry, jax.Array]:
    world: WorldModel = flat.tree
    z = _vmap_lanes(world.encode, images)(images)
    carry = world.mdn_rnn.initial_carries(*z.shape[:-1])
    return z, carry, _vmap_lanes(world.features, images)(z, carry.h)


@jax.jit
def _advance(
    flat: Flattened,
    z: jax.Array,
    carry: Carry,
    controls: jax.Array,
    images: jax.Array,
    begun: jax.Array | None,
) -> tuple[jax.Array, Carry, jax.Array]:
    world: WorldModel = flat.tree
    carry = _vmap_lanes(world.mdn_rnn.advance_carry, images)(z, controls, carry)
    if begun is not None:
        carry = jax.tree.map(lambda leaf: jnp.where(begun[:, None], 0.0, leaf), carry)
    z = _vmap_lanes(world.encode, images)(images)
    return z, carry, _vmap_lanes(world.features, images)(z, carry.h)


def _vmap_lanes(function: Any, images: jax.Array) -> Any:
    """One car's images are [64, 64, 3]; those of lanes have an axis before."""
    return jax.vmap(function) if images.ndim == 4 else function
