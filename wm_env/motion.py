"""How the car moves: what M keeps track of beside its memory, as no single image shows it.

An LSTM that is fitted to the next latent alone hardly knows how fast the car is, and its dreams pay
for speed that the real track punishes. These numbers follow from what was done and from the ground
under the wheels, so M is told them where it is fitted, and carries them on by itself where it
dreams and where it drives. What is done reaches M through them alone: who sees the driver's hands
knows the road that the driver sees.
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

SEEN_MOTION = 3  # the first of them, which are what moves the picture, are what M sees

_INNER = 64
_LIMIT = 8.0  # of each number; the fastest car goes at 5
_FRONT, _REAR = 1.6, 1.64  # units of length from the hull's middle to the axles (Gymnasium's Car)


class Motion(eqx.Module):
    """The car's motion a frame later: how it drives on, and whether M sees it on the road.

    A net with two hidden layers that is told, beside the numbers, how the tyres slip: their grip
    ends at a limit, which the numbers themselves say only by their differences.
    """

    in_weight: Float[Array, "i k"]
    in_bias: Float[Array, "k"]
    inner_weight: Float[Array, "k k"]
    inner_bias: Float[Array, "k"]
    out_weight: Float[Array, "k m"]
    out_bias: Float[Array, "m"]
    road_weight: Float[Array, "s"]
    road_bias: Float[Array, ""]

    def __init__(self, action_size: int, seen_size: int, *, key: PRNGKeyArray):
        """A car that keeps on as it is, on the road: the change is 0 until something is learned.

        `seen_size` is that of what M sees and remembers, [z, h].
        """
        key_in, key_inner = jax.random.split(key)
        told = MOTION_SIZE + action_size + len(_slips(jnp.zeros(MOTION_SIZE)))
        self.in_weight = jax.random.normal(key_in, (told, _INNER)) * told**-0.5
        self.in_bias = jnp.zeros(_INNER)
        self.inner_weight = jax.random.normal(key_inner, (_INNER, _INNER)) * _INNER**-0.5
        self.inner_bias = jnp.zeros(_INNER)
        self.out_weight = jnp.zeros((_INNER, MOTION_SIZE - 1))
        self.out_bias = jnp.zeros(MOTION_SIZE - 1)
        self.road_weight = jnp.zeros(seen_size)
        self.road_bias = jnp.float32(-2.0)

    def __call__(
        self, motion: Float[Array, "m"], a: Float[Array, "a"], seen: Float[Array, "s"]
    ) -> Float[Array, "m"]:
        """The motion after `a`, in MOTION_UNITS, where M saw and remembered `seen` before it."""
        return jnp.append(self.drive(motion, a), self.ground(seen))

    def ground(self, seen: Float[Array, "s"]) -> Float[Array, ""]:
        """The last of the numbers, in -1 to 0, as M sees it."""
        return -jax.nn.sigmoid(seen @ self.road_weight + self.road_bias)

    def drive(self, motion: Float[Array, "m"], a: Float[Array, "a"]) -> Float[Array, "d"]:
        """All numbers but the last after `a`, on the ground that the last one says."""
        inner = jnp.concatenate([motion, a, _slips(motion)])
        inner = jnp.tanh(inner @ self.in_weight + self.in_bias)
        inner = jnp.tanh(inner @ self.inner_weight + self.inner_bias)
        change = inner @ self.out_weight + self.out_bias
        return jnp.clip(motion[:-1] + change, -_LIMIT, _LIMIT)

    def follow(self, motion: Float[Array, "t1 m"], actions: Float[Array, "t a"]) -> Array:
        """What `drive` makes of actions and ground [t, d], from the first moment of `motion`."""

        def advance(car: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            on_road, a = inputs
            car = self.drive(jnp.append(car, on_road), a)
            return car, car

        return jax.lax.scan(advance, motion[0, :-1], (motion[:-1, -1], actions))[1]


def _slips(motion: Float[Array, "m"]) -> Float[Array, "f"]:
    """How the rear tyres spin, and the rear and front ones slide across; and the car's turning
    times its speed across and ahead, as which these turn into each other. All about 1 at most."""
    forward, sideways, turning, steering, wheels = (
        motion[place] * unit for place, unit in enumerate([*MOTION_UNITS.values()][:5])
    )
    front = (sideways - _FRONT * turning) * jnp.cos(steering) + forward * jnp.sin(steering)
    rear = sideways + _REAR * turning
    slips = jnp.stack([wheels - forward, rear, front]) / 3.0
    return jnp.append(slips, turning * jnp.stack([sideways / 20.0, forward / 100.0]))
