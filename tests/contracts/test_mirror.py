"""CarRacing is symmetric, and so is the shipped dream: a mirrored start dreams a mirrored drive."""

import jax
import numpy as np
import pytest

import wm_env
from wm_env.car_racing import make_car_racing
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.preprocess import mirror, preprocess
from wm_env.task import CAR_RACING

FRAMES = 30
STEPS = 20
RIGHT = np.tile(np.array([0.5, 0.1, 0.0], np.float32), (STEPS, 1))


@pytest.fixture(scope="module")
def drive():
    """Images and actions of a real beginning that weaves: uint8 [30, 64, 64, 3] and [29, 3]."""
    env = make_car_racing()
    frames, actions = [env.reset(seed=0)[0]], []
    for t in range(FRAMES - 1):
        actions.append(np.array([0.3 * np.sin(t / 5), 0.4, 0.0], np.float32))
        frames.append(env.step(actions[-1])[0])
    env.close()
    return preprocess(np.stack(frames)), np.stack(actions)


@pytest.fixture(scope="module")
def dream():
    """`dream(images, actions, given)`: decoded images and tiles after each of the given actions."""
    world = wm_env.load_world("carracing")
    env = DreamCarRacingEnv(world_model=world, observation="latent", temperature=0.0)
    decode = jax.jit(jax.vmap(world.decode))

    def play(images, actions, given):
        env.reset(seed=0, options={"frames": images, "actions": actions})
        steps = [env.step(action) for action in given]
        shown = np.asarray(decode(np.stack([step[0] for step in steps])), np.int32)
        return shown, np.array([step[4]["tiles"] for step in steps])

    return play


def test_a_mirrored_beginning_and_steering_dream_the_mirror_image(drive, dream):
    """Pixels differ by a third of what they do where images or steering are not mirrored."""
    images, actions = drive
    mirrored = mirror(images), CAR_RACING.mirror_action(actions)
    plain, tiles = dream(images, actions, RIGHT)
    other, other_tiles = dream(*mirrored, CAR_RACING.mirror_action(RIGHT))
    wrong_way, _ = dream(*mirrored, RIGHT)

    error = np.abs(plain - mirror(other)).mean()
    not_flipped = np.abs(plain - other).mean()
    not_steered = np.abs(plain - mirror(wrong_way)).mean()
    print(
        f"mirrored dream: mean absolute pixel difference {error:.2f} of 255, without mirroring the "
        f"images {not_flipped:.2f}, without mirroring the steering {not_steered:.2f}; tiles "
        f"{tiles[-1]:.2f} and {other_tiles[-1]:.2f}"
    )
    assert error < 0.5 * not_flipped
    assert error < 0.5 * not_steered
    assert tiles[-1] > 1.0, "the car drives"
    np.testing.assert_allclose(tiles, other_tiles, atol=0.5)
