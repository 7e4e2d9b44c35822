"""The car's motion: a learned step of it, the ground that M sees, and how the tyres slip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.motion import MOTION_MIRRORED, MOTION_SIZE, MOTION_UNITS, Motion, _slips

UNITS = np.array([*MOTION_UNITS.values()], np.float32)


@pytest.fixture
def learned():
    """A motion net with random weights, none of which is 0."""
    fresh = Motion(3, 12, key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def test_before_anything_is_learned_the_car_keeps_on_as_it_is_on_the_road():
    fresh = Motion(3, 12, key=jax.random.key(0))
    motion = jnp.linspace(-1.0, 1.0, MOTION_SIZE)
    after = fresh(motion, jnp.ones(3), jnp.ones(12))
    np.testing.assert_array_equal(after[:-1], motion[:-1])
    assert -0.2 < after[-1] < 0.0


def test_an_episode_is_followed_on_the_ground_that_was_there(learned):
    told = jax.random.normal(jax.random.key(2), (6, MOTION_SIZE))
    actions = jax.random.uniform(jax.random.key(3), (5, 3))
    car, expected = told[0, :-1], []
    for step in range(5):
        car = learned.drive(jnp.append(car, told[step, -1]), actions[step])
        expected.append(car)
    np.testing.assert_allclose(learned.follow(told, actions), jnp.stack(expected), atol=1e-5)
    grass = learned.follow(told.at[2, -1].set(-1.0), actions)
    np.testing.assert_allclose(grass[:2], expected[:2], atol=1e-5)
    assert not np.allclose(grass[2], expected[2])


def test_tyres_that_roll_do_not_slip():
    """Straight on; and round a circle whose middle lies on the line of both axles."""
    straight = jnp.array([40.0, 0.0, 0.0, 0.0, 40.0, 0.3, 0.0]) / UNITS
    np.testing.assert_allclose(_slips(straight)[:3], 0.0, atol=1e-6)
    # The circle's middle is beside the rear axle: the hull then moves across by -1.64 times its
    # turning, and the front wheels point along their own path.
    forward, turning = 20.0, 1.5
    steering = np.arctan((1.6 + 1.64) * turning / forward)
    rolling = np.array([forward, -1.64 * turning, turning, steering, forward, 0.1, 0.0], np.float32)
    np.testing.assert_allclose(_slips(jnp.asarray(rolling / UNITS))[:3], 0.0, atol=1e-5)


def test_slips_of_a_car_in_a_mirror_are_mirrored():
    motion = jax.random.normal(jax.random.key(5), (MOTION_SIZE,))
    mirrored = _slips(motion * jnp.array(MOTION_MIRRORED))
    # Spin and the exchange of sideways for forward stay; what goes across changes its side.
    expected = _slips(motion) * jnp.array([1.0, -1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose(mirrored, expected, atol=1e-6)
