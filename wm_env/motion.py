"""How the car moves: what M keeps track of beside its memory, as no single image shows it.

An LSTM that is fitted to the next latent alone hardly knows how fast the car is, and its dreams pay
for speed that the real track punishes. These numbers follow from what was done and from the ground
under the wheels, so M is told them where it is fitted, and carries them on by itself where it
dreams and where it drives. What is done reaches M through them alone: who sees the driver's hands
knows the road that the driver sees.

They are carried on as a rigid car on four tyres moves. Its form is Gymnasium's Car
(gymnasium.envs.box2d.car_dynamics), and so are the constants that a fit begins with.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Each is 0 in a car at rest on the road, and told in this unit, about the spread of its kind. A
# wheel's speed is that of its rim; differences are right less left.
MOTION_UNITS = {
    "forward": 20.0,  # speed along the car's axis, in units of length a second
    "sideways": 4.0,  # speed across it, to the right
    "turning": 0.6,  # rad/s, to the left
    "steering": 0.3,  # rad, of the front wheels to the left
    "throttle": 1.0,  # the engine's, which follows the gas
    "front_wheels": 20.0,
    "rear_wheels": 20.0,
    "front_difference": 4.0,
    "rear_difference": 4.0,
    "on_road": 1.0,  # share of the wheels that are, less 1
}
MOTION_SIZE = len(MOTION_UNITS)
MOTION_MIRRORED = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0)  # in a mirror

SEEN_MOTION = 3  # the first of them, which are what moves the picture, are what M sees

FRAMES_PER_SECOND = 50
TILE_LENGTH = 3.5  # of the road, in Gymnasium's units of length

# Of Gymnasium's Car.
CAR = {
    "mass": 7.3,
    "inertia": 19.1,
    "stiffness": 82.0,  # a tyre's force, for each unit/s by which it slips
    "grip": 400.0,  # the most it can be, on the road
    "grass": 0.6,  # the share of that elsewhere
    "power": 7290.0,  # of the engine: its gain of the rear rims' speed, times that speed
    "spin": 0.182,  # a rim's gain of speed by a force for a second
    "brake": 405.0,  # a rim's loss of speed a second, at full brake
}
_LEFT_RIGHT = (-1.1, 1.1, -1.1, 1.1)  # where the wheels are, from the hull's middle: front pair,
_AHEAD = (1.68, 1.68, -1.56, -1.56)  # rear pair
_FRAME = 1.0 / FRAMES_PER_SECOND
_THROTTLE_RISE = 0.1  # a frame; it falls at once
_STEERING_RATE, _STEERING_LIMIT = 3.0 * _FRAME, 0.42  # rad a frame, rad
_IDLE = 2.7  # units/s of the rims, below which the engine's torque grows no more
_LOCKED = 0.9  # of the brake: wheels stand still

_LIMIT = 8.0  # of each number; the fastest car goes at 5


class Motion(eqx.Module):
    """The car's motion a frame later: how it drives on, and whether M sees it on the road."""

    constants: Float[Array, "c"]  # logs of shares of those of CAR
    road_weight: Float[Array, "s"]
    road_bias: Float[Array, ""]

    def __init__(self, seen_size: int):
        """Gymnasium's car, on the road until something is learned.

        `seen_size` is that of what M sees and remembers, [z, h].
        """
        self.constants = jnp.zeros(len(CAR))
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
        units = jnp.array([*MOTION_UNITS.values()])
        forward, sideways, turning, steering, throttle, *wheels, on_road = motion * units
        steer, gas, brake = a
        constants = jnp.array([*CAR.values()]) * jnp.exp(self.constants)
        car = dict(zip(CAR, constants, strict=True))
        grip = car["grip"] * (1.0 + on_road * (1.0 - car["grass"]))
        right, ahead = jnp.array(_LEFT_RIGHT), jnp.array(_AHEAD)

        throttle = jnp.minimum(gas, throttle + _THROTTLE_RISE)
        rims = _rims(*wheels)
        driven = throttle * jnp.array([0.0, 0.0, 1.0, 1.0])
        rims += _FRAME * car["power"] * driven / (jnp.abs(rims) + _IDLE)
        slowed = jnp.maximum(jnp.abs(rims) - _FRAME * car["brake"] * brake, 0.0)
        rims = jnp.where(brake < _LOCKED, jnp.sign(rims) * slowed, 0.0)

        # What each tyre does against its slip, along itself and across, up to its grip.
        across, along = sideways - turning * ahead, forward + turning * right
        cos, sin = jnp.cos(steering), jnp.sin(steering)
        cos, sin = jnp.stack([cos, cos, 1.0, 1.0]), jnp.stack([sin, sin, 0.0, 0.0])
        push = car["stiffness"] * (rims - (cos * along - sin * across))
        hold = -car["stiffness"] * (cos * across + sin * along)
        gripped = jnp.minimum(1.0, grip / jnp.sqrt(push**2 + hold**2 + 1e-6))
        push, hold = gripped * push, gripped * hold
        rims -= _FRAME * car["spin"] * push

        to_right, to_front = cos * hold - sin * push, sin * hold + cos * push
        turning += _FRAME / car["inertia"] * jnp.sum(right * to_front - ahead * to_right)
        sideways += _FRAME / car["mass"] * jnp.sum(to_right)
        forward += _FRAME / car["mass"] * jnp.sum(to_front)
        cos, sin = jnp.cos(_FRAME * turning), jnp.sin(_FRAME * turning)
        forward, sideways = cos * forward - sin * sideways, cos * sideways + sin * forward
        steering += jnp.clip(-steer - steering, -_STEERING_RATE, _STEERING_RATE)
        steering = jnp.clip(steering, -_STEERING_LIMIT, _STEERING_LIMIT)
        after = jnp.stack([forward, sideways, turning, steering, throttle, *_wheels(rims)])
        return jnp.clip(after / units[:-1], -_LIMIT, _LIMIT)


def _rims(front: Array, rear: Array, front_difference: Array, rear_difference: Array) -> Array:
    """The speeds of the four rims, in the order of _LEFT_RIGHT and _AHEAD."""
    front_difference, rear_difference = 0.5 * front_difference, 0.5 * rear_difference
    pairs = front - front_difference, front + front_difference
    return jnp.stack([*pairs, rear - rear_difference, rear + rear_difference])


def _wheels(rims: Float[Array, "4"]) -> Float[Array, "4"]:
    """What `_rims` undoes: means of both pairs, then their differences."""
    left, right = rims[::2], rims[1::2]
    return jnp.concatenate([0.5 * (left + right), right - left])
