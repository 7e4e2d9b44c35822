"""A person's drive: keys, the dream alone, and the real car beside its dream."""

import gymnasium as gym
import numpy as np
import pygame
import pytest

from wm_env import play
from wm_env.beside import DreamBesideReal
from wm_env.play import PlayConfig


@pytest.fixture(scope="module")
def world_file(world, tmp_path_factory):
    from wm_env.weights import save_world

    path = tmp_path_factory.mktemp("world") / "world.safetensors"
    save_world(world, path)
    return str(path)


@pytest.fixture
def both(world_file):
    env = play.make(PlayConfig(world=world_file, real=True))
    yield env
    env.close()


def test_keys_together_steer_and_give_gas():
    keys = play.keys_to_action()
    pressed = tuple(sorted((pygame.K_LEFT, pygame.K_UP)))
    np.testing.assert_array_equal(keys[pressed], np.float32([-1.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    "pressed, action",
    [
        ((pygame.K_LEFT,), [-1.0, 0.0, 0.0]),
        ((pygame.K_RIGHT,), [1.0, 0.0, 0.0]),
        ((pygame.K_UP,), [0.0, 1.0, 0.0]),
        ((pygame.K_DOWN,), [0.0, 0.0, 0.8]),
        ((pygame.K_LEFT, pygame.K_RIGHT, pygame.K_UP), [0.0, 1.0, 0.0]),
    ],
)
def test_keys_do_what_they_do_in_carracing_and_opposite_ones_cancel_out(pressed, action):
    np.testing.assert_array_equal(play.keys_to_action()[tuple(sorted(pressed))], np.float32(action))


def test_the_dream_beside_the_real_car_begins_at_its_frame(both):
    frame, _ = both.reset(seed=3)
    inner = both.dream.unwrapped
    expected = inner.reset(options={"frame": frame})[0]
    both.reset(seed=3)
    np.testing.assert_allclose(inner._state.z, expected[: len(inner._state.z)], atol=1e-5)


def test_both_cars_are_given_the_same_action(both):
    both.reset(seed=3)
    alone = gym.make("CarRacing-v3")
    alone.reset(seed=3)
    action = np.float32([0.5, 1.0, 0.0])
    steps = [(both.step(action), alone.step(action)) for _ in range(3)]
    (frame, reward, *_, info), (expected, expected_reward, *_) = steps[-1]
    np.testing.assert_array_equal(frame, expected)
    assert reward == expected_reward
    assert int(both.dream.unwrapped._state.time) == 3
    assert np.isfinite(info["dream_reward"])
    alone.close()


def test_the_picture_shows_both_screens(both):
    both.reset(seed=3)
    picture, screen = both.render(), both.dream.render()
    rows, columns = screen.shape[:2]
    np.testing.assert_array_equal(picture[-rows:, -columns:], screen)
    np.testing.assert_array_equal(picture[-rows:, :columns], both.real.render())


def test_environments_of_other_actions_do_not_go_together(world):
    real = gym.make("CarRacing-v3", continuous=False, render_mode="rgb_array")
    dream = gym.make("DreamCarRacing-v0", world_model=world, render_mode="rgb_array")
    with pytest.raises(ValueError, match="the same `continuous`"):
        DreamBesideReal(real, dream)


def test_a_drive_goes_on_until_the_window_is_closed(world_file, monkeypatch):
    frames = []
    make = play.make

    def filmed(config):
        env = make(config)
        render = env.render

        def render_and_close_soon():
            frames.append(render())
            if len(frames) == 5:
                pygame.event.post(pygame.event.Event(pygame.QUIT))
            return frames[-1]

        env.render = render_and_close_soon
        return env

    monkeypatch.setattr(play, "require_display", lambda: None)
    monkeypatch.setattr(play, "make", filmed)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    play.run(PlayConfig(world=world_file, fps=1000, seed=0))
    assert 5 <= len(frames) <= 8
