"""What is seen: the decoded latent and the running score, as arrays and in a window."""

import gymnasium as gym
import jax
import numpy as np
import pygame
import pytest

from wm_env import rendering
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv

GAS = np.float32([0.0, 0.5, 0.0])


@pytest.fixture(scope="module")
def slow_fall(with_outcomes, world):
    """A world that pays a tile a frame and in which cars may fall."""
    return with_outcomes(world, log_tiles=0.0, off_field=-1.0)


@jax.jit
def decoded(world, z):
    return world.decode(z)


def test_render_gives_the_screen_of_car_racing(world):
    env = DreamCarRacingEnv(world_model=world, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(GAS)
    frame = env.render()
    real = gym.make("CarRacing-v3", render_mode="rgb_array")
    real.reset(seed=0)
    assert frame.shape == real.render().shape and frame.dtype == np.uint8


def test_the_screen_shows_the_decoded_latent_and_the_return_so_far(world, slow_fall):
    env = DreamCarRacingEnv(world_model=slow_fall, render_mode="rgb_array")
    env.reset(seed=0)
    ret = sum(env.step(GAS)[1] for _ in range(4))
    expected = rendering.screen(np.asarray(decoded(slow_fall, env._state.z)), ret)
    np.testing.assert_array_equal(env.render(), expected)
    other = rendering.screen(np.asarray(decoded(slow_fall, env._state.z)), ret + 1.0)
    assert np.any(other != expected)  # the score can be told from another


def test_vector_render_gives_each_lanes_screen_and_a_lane_that_ended_begins_at_zero(slow_fall):
    envs = DreamCarRacingVectorEnv(2, world_model=slow_fall, render_mode="rgb_array")
    envs.reset(seed=0)
    returns, ended = np.zeros(2), False
    for _ in range(12):
        _, rewards, terminated, truncated, _ = envs.step(np.stack([GAS, GAS]))
        over = terminated | truncated
        returns = np.where(over, 0.0, returns + rewards)
        frames = envs.render()
        for frame, z, ret in zip(frames, envs._state.z, returns, strict=True):
            image = np.asarray(decoded(slow_fall, z))
            np.testing.assert_array_equal(frame, rendering.screen(image, ret))
        ended |= bool(over.any())
    assert ended


def test_human_mode_shows_the_screen_in_a_window_and_closes_twice(world):
    env = DreamCarRacingEnv(world_model=world, render_mode="human")
    env.reset(seed=0)
    _, reward, *_ = env.step(GAS)
    assert env.render() is None
    window = np.swapaxes(pygame.surfarray.array3d(pygame.display.get_surface()), 0, 1)
    image = np.asarray(decoded(world, env._state.z))
    np.testing.assert_array_equal(window, rendering.screen(image, reward))
    env.close()
    assert not pygame.display.get_init()
    env.close()
