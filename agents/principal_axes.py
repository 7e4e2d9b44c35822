"""The few directions in which what drivers see varies, where a linear controller is searched for.

Of the 288 numbers of [z, h] some forty combinations hold all but 2 % of the variance. A search in
the controller's 867 numbers moves most of them to no effect; along these axes, each in its own
unit, a step changes what the driver does by as much as any other.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from agents.linear import LinearController
from wm_env.world_model import WorldModel


class Coordinates(NamedTuple):
    """How far a controller is from where the search began."""

    weight: Float[Array, "a k"]
    bias: Float[Array, "a"]


class PrincipalAxes(eqx.Module):
    """The principal components of features around their mean, whitened, and a first controller.

    Source: Pearson 1901, "On lines and planes of closest fit to systems of points in space".
    """

    origin: LinearController
    mean: Float[Array, "f"]
    axes: Float[Array, "f k"]  # along each, what drivers see has variance 1

    @classmethod
    def of(cls, origin: LinearController, world: WorldModel, count: int) -> "PrincipalAxes":
        """The `count` largest of what M remembers and V sees in the middles of the world's drives.

        Raises:
            ValueError: these moments do not span so many.
        """
        seen = np.concatenate([world.starts.z, world.starts.h], axis=1, dtype=np.float64)
        most = min(len(seen) - 1, seen.shape[1])
        if not 1 <= count <= most:
            raise ValueError(
                f"axes is {count}; expected 1 to {most}, which the {len(seen)} moments of real "
                "drives that the world knows can tell apart. 40 is what the shipped world was "
                "searched with; None searches all numbers."
            )
        mean = seen.mean(axis=0)
        _, spread, directions = np.linalg.svd(seen - mean, full_matrices=False)
        units = spread[:count, None] / np.sqrt(len(seen) - 1)
        axes = (directions[:count] / units).T
        return cls(origin, jnp.asarray(mean, jnp.float32), jnp.asarray(axes, jnp.float32))

    @property
    def start(self) -> Coordinates:
        """Where the search begins: at the first controller."""
        weight = jnp.zeros((len(self.origin.bias), self.axes.shape[1]))
        return Coordinates(weight, jnp.zeros_like(self.origin.bias))

    def controller(self, at: Coordinates) -> LinearController:
        """The controller there: the first one, and what it does more along each axis."""
        weight = at.weight @ self.axes.T
        moved = self.origin.weight + weight, self.origin.bias + at.bias - weight @ self.mean
        return eqx.tree_at(lambda one: (one.weight, one.bias), self.origin, moved)
