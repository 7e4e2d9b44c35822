"""The car's motion: it drives as Gymnasium's Car does, and the ground under it is M's to see."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.car_motion import drive_again
from wm_env.motion import MOTION_MIRRORED, MOTION_SIZE, MOTION_UNITS, Motion

UNITS = np.array([*MOTION_UNITS.values()], np.float32)
MIRRORED = np.array(MOTION_MIRRORED, np.float32)
CAR_MOTION = Motion(12)


def follow(motion, actions):
    """What the car makes of actions and ground [t, d], from the first moment of `motion`."""

    def advance(car, inputs):
        on_road, action = inputs
        car = CAR_MOTION.drive(jnp.append(car, on_road), action)
        return car, car

    motion = jnp.asarray(motion, jnp.float32)
    return jax.lax.scan(advance, motion[0, :-1], (motion[:-1, -1], jnp.asarray(actions)))[1]


def made_up(seed, steps=150):
    """Actions that are held for a while, flicks of the wheel and hard braking among them."""
    rng = np.random.default_rng(seed)
    held = rng.integers(3, 25, steps)
    kinds = np.stack(
        [
            rng.uniform(-1.0, 1.0, steps),
            rng.uniform(0.0, 0.6, steps) * (rng.random(steps) < 0.7),
            rng.uniform(0.0, 1.0, steps) * (rng.random(steps) < 0.15),
        ],
        axis=1,
    )
    return np.repeat(kinds, held, axis=0)[:steps].astype(np.float32)


@pytest.mark.parametrize("ground", ["road", "grass", "both"])
def test_from_rest_it_drives_as_gymnasiums_car_does(ground):
    errors = []
    for seed in range(4):
        actions = made_up(seed)
        road = np.full((len(actions) + 1, 4), ground != "grass")
        if ground == "both":
            road[60:110] = False
        told = drive_again(actions, road) / UNITS
        driven = follow(told, actions)
        errors.append(np.sqrt(np.mean((driven - told[1:, :-1]) ** 2, axis=0)))
        assert np.abs(told[:, 0]).max() > 0.3  # it went somewhere
    # A number's unit is about its spread over real drives. A car that spins is chaotic.
    assert np.all(np.median(errors, axis=0) < 0.1), errors


def test_its_constants_are_found_from_drives():
    actions = np.stack([made_up(seed, 80) for seed in range(8)])
    road = np.ones((8, 81, 4), bool)
    road[4:] = False
    told = np.stack([drive_again(*one) for one in zip(actions, road, strict=True)]) / UNITS
    told = jnp.asarray(told, jnp.float32)

    def loss(constants):
        car = eqx.tree_at(lambda motion: motion.constants, CAR_MOTION, constants)
        after = jax.vmap(jax.vmap(car.drive))(told[:, :-1], jnp.asarray(actions))
        return jnp.mean(jnp.abs(after - told[:, 1:, :-1]))

    wrong = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]) * 0.2  # a fifth off
    step, found = jax.jit(jax.value_and_grad(loss)), wrong
    for number in range(200):
        found -= 4e-3 * (1.0 - number / 200) * jnp.sign(step(found)[1])
    assert loss(found) < 0.2 * loss(wrong)
    print("constants, found against true", np.exp(found).round(3))
    assert np.abs(found).max() < 0.07


def test_at_rest_on_the_road_nothing_happens_by_itself():
    after = CAR_MOTION(jnp.zeros(MOTION_SIZE), jnp.zeros(3), jnp.ones(12))
    np.testing.assert_array_equal(after[:-1], 0.0)
    assert -0.2 < after[-1] < 0.0


def test_the_car_in_a_mirror_moves_as_in_a_mirror():
    motion = jax.random.normal(jax.random.key(5), (MOTION_SIZE,)).at[-1].set(-0.5)
    action = jnp.array([0.4, 0.3, 0.1])
    after = CAR_MOTION.drive(motion * MIRRORED, action * jnp.array([-1.0, 1.0, 1.0]))
    np.testing.assert_allclose(after, CAR_MOTION.drive(motion, action) * MIRRORED[:-1], atol=1e-5)


def test_gradients_are_finite_at_rest():
    grad = jax.grad(lambda motion: CAR_MOTION.drive(motion, jnp.zeros(3)).sum())
    assert np.all(np.isfinite(grad(jnp.zeros(MOTION_SIZE))))
