"""The trained controller as a driver that collects: what it sees, does and remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.drivers import make_driver
from agents.drivers import policy as policy_module
from agents.drivers.policy import PolicyDriver
from agents.linear import LinearController
from wm_env.preprocess import preprocess
from wm_env.weights import WeightsError

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 3, 96, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def controller():
    weight = 0.1 * jax.random.normal(jax.random.key(1), (3, 288))
    return LinearController(weight=weight, bias=jnp.array([0.0, 0.0, 0.2]))


@jax.jit
def recursion(world, controller, images, actions):
    """h of one car after the actions [t, 3] at images [t, …], and what the controller wants."""
    carry, wanted = world.mdn_rnn.initial_carry(), []
    for image, action in zip(images, actions, strict=True):
        z = world.encode(image)
        wanted.append(controller(world.features(z, carry.h)))
        carry = world.mdn_rnn.advance_carry(z, action, carry)
    return jnp.stack(wanted)


def test_without_noise_it_does_what_the_controller_wants(world, controller):
    driver = PolicyDriver(3, 0, world=world, controller=controller, noise=0.0)
    actions = np.stack([driver.act(frames) for frames in FRAMES], axis=1)
    for car in range(3):
        wanted = recursion(world, controller, preprocess(FRAMES[:, car]), actions[car])
        np.testing.assert_allclose(actions[car], wanted, atol=2e-5)


def test_the_carry_follows_the_action_really_taken(world, controller, monkeypatch):
    driver = PolicyDriver(3, 0, world=world, controller=controller, noise=0.6)
    wanted_by_driver, disturb = [], driver._noise.disturb

    def listening(wanted):
        wanted_by_driver.append(wanted)
        return disturb(wanted)

    monkeypatch.setattr(driver._noise, "disturb", listening)
    actions = np.stack([driver.act(frames) for frames in FRAMES], axis=1)
    for car in range(3):
        wanted = recursion(world, controller, preprocess(FRAMES[:, car]), actions[car])
        np.testing.assert_allclose([one[car] for one in wanted_by_driver], wanted, atol=2e-5)
        assert np.abs(actions[car] - wanted).max() > 0.01


def test_actions_are_legal_and_a_seed_repeats_them(world, controller):
    drivers = [PolicyDriver(3, 5, world=world, controller=controller, noise=0.6) for _ in range(2)]
    for frames in FRAMES:
        one, two = (driver.act(frames) for driver in drivers)
        np.testing.assert_array_equal(one, two)
        assert one.shape == (3, 3) and one.dtype == np.float32
        assert (one >= [-1, 0, 0]).all() and (one <= 1).all()


def noisy(parameters, features, key):
    """A policy that is not linear and takes its own chances; steers as its parameters say."""
    assert features.shape == (288,)
    return jnp.stack([parameters["steer"], jax.random.uniform(key), 3.0 * features[0]])


def test_any_policy_on_the_features_drives(world):
    driver = PolicyDriver(
        3, 0, world=world, controller={"steer": jnp.array(-0.25)}, policy=noisy, noise=0.0
    )
    actions = np.stack([driver.act(frames) for frames in FRAMES])
    np.testing.assert_array_equal(actions[..., 0], -0.25)
    z = jax.jit(jax.vmap(world.encode))(preprocess(FRAMES[0]))
    np.testing.assert_allclose(actions[0, :, 2], np.clip(3.0 * z[:, 0], 0.0, 1.0), atol=2e-5)


def test_each_car_and_step_has_a_key_of_its_own_and_a_seed_repeats_them(world):
    def gas(seed):
        parameters = {"steer": jnp.array(0.0)}
        driver = PolicyDriver(3, seed, world=world, controller=parameters, policy=noisy, noise=0.0)
        return np.stack([driver.act(frames)[:, 1] for frames in FRAMES])

    assert len(np.unique(gas(0))) == FRAMES.shape[0] * FRAMES.shape[1]
    np.testing.assert_array_equal(gas(0), gas(0))
    assert not np.intersect1d(gas(0), gas(1)).size


def test_it_is_the_driver_called_on_policy(world, controller):
    options = {"world": world, "controller": controller, "noise": 0.6}
    by_name, one = make_driver("on_policy", 3, 5, **options), PolicyDriver(3, 5, **options)
    for frames in FRAMES:
        np.testing.assert_array_equal(by_name.act(frames), one.act(frames))


def test_what_a_car_does_depends_on_its_own_frames_alone(world, controller):
    one, two = (PolicyDriver(3, 5, world=world, controller=controller) for _ in range(2))
    for frames in FRAMES:
        others = np.concatenate([frames[:1], 255 - frames[1:]])
        np.testing.assert_array_equal(one.act(frames)[0], two.act(others)[0])


def test_another_world_compiles_nothing_anew(world, random_world, controller):
    before = policy_module._drive._cache_size()
    for each in (world, random_world(4)):
        driver = PolicyDriver(3, 0, world=each, controller=controller, noise=0.1)
        driver.act(FRAMES[0])
        driver.act(FRAMES[1])
        compiled = policy_module._drive._cache_size()
        driver.act(FRAMES[2])
        assert policy_module._drive._cache_size() == compiled
    assert compiled - before <= 2  # the first frame, which nothing precedes, and all others


def test_negative_noise_is_refused(world, controller):
    with pytest.raises(ValueError, match="noise is -1"):
        PolicyDriver(1, 0, world=world, controller=controller, noise=-1.0)


def test_a_missing_controller_is_named(world):
    with pytest.raises(WeightsError, match="nowhere"):
        PolicyDriver(1, 0, world=world, controller="nowhere")
