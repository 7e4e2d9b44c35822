"""How the car moves: what M keeps track of beside its memory, as no single image shows it.

An LSTM that is fitted to the next latent alone hardly knows how fast the car is, and its dreams pay
for speed that the real track punishes. These numbers follow from what was done and from the ground
under the wheels, so M is told them where it is fitted, and carries them on by itself where it
dreams and where it drives.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Each is 0 in a car at rest on the road, and told in this unit, about the spread of its kind.
MOTION_UNITS = {
    "forward": 20.0,  # speed along the car's axis, in units of length a second
    "sideways": 4.0,  # speed across it, to the right
    "turning": 0.6,  # rad/s, to the left
    "steering": 0.3,  # rad, of the front wheels to the left
    "wheels": 20.0,  # speed of the rear wheels' rims
    "throttle": 1.0,  # the engine's, which follows the gas
    "on_road": 1.0,  # share of the wheels that are, less 1
}
MOTION_SIZE = len(MOTION_UNITS)
MOTION_MIRRORED = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0)  # the same car in a mirror

_INNER = 64
_LIMIT = 8.0  # of each number; the fastest car goes at 5


class Motion(eqx.Module):
    """The car's motion a frame later, from what it was, what was done and M's h after it."""

    in_weight: Float[Array, "i k"]
    in_bias: Float[Array, "k"]
    out_weight: Float[Array, "k m"]
    out_bias: Float[Array, "m"]

    def __init__(self, action_size: int, hidden_size: int, *, key: PRNGKeyArray):
        """A car that keeps on as it is: the change is 0 until something is learned."""
        told = MOTION_SIZE + action_size
        bound = (told + hidden_size) ** -0.5
        shape = told + hidden_size, _INNER
        weight = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        # Ten inputs say most of it, beside many of h.
        self.in_weight = weight.at[:told].multiply(4.0)
        self.in_bias = jnp.zeros(_INNER)
        self.out_weight = jnp.zeros((_INNER, MOTION_SIZE))
        self.out_bias = jnp.zeros(MOTION_SIZE)

    def __call__(
        self, motion: Float[Array, "m"], a: Float[Array, "a"], h: Float[Array, "h"]
    ) -> Float[Array, "m"]:
        """The motion after `a`, in units of MOTION_UNITS."""
        inner = jnp.tanh(jnp.concatenate([motion, a, h]) @ self.in_weight + self.in_bias)
        return jnp.clip(motion + inner @ self.out_weight + self.out_bias, -_LIMIT, _LIMIT)
