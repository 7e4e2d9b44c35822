"""Programs are compiled once: weights and numbers are arguments, never constants or cache keys."""

import contextlib
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env import gym_env, gym_vector
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv
from wm_env.rollouts import rollout


@contextlib.contextmanager
def compilations():
    """Collects the names of the programs that XLA compiles meanwhile."""
    compiled = []

    class Collector(logging.Handler):
        def emit(self, record):
            found = re.match(r"Finished XLA compilation of (\S+)", record.getMessage())
            if found:
                compiled.append(found[1])

    logger, collector = logging.getLogger("jax"), Collector(logging.DEBUG)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        with jax.log_compiles(True):
            yield compiled
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    "shown", [{}, {"observation": "pixels"}, {"render_mode": "rgb_array"}], ids=str
)
def test_other_worlds_and_numbers_compile_nothing(world, random_world, vector, shown):
    def make(**arguments):
        arguments = {**arguments, **shown}
        return DreamCarRacingVectorEnv(2, **arguments) if vector else DreamCarRacingEnv(**arguments)

    def drive(env):
        env.reset(seed=0)
        for _ in range(3):
            env.step(np.zeros(env.action_space.shape, np.float32))
        if env.render_mode:
            env.render()

    jax.clear_caches()  # equal environments of other tests share these programs
    with compilations() as first:
        drive(make(world_model=world))
    assert any("step" in name for name in first)
    other = random_world(9)
    with compilations() as later:
        env = make(world_model=other, temperature=1.3, dropout=0.1, start="mixed", track_tiles=300)
        drive(env)
        env.params = DreamParams(world_model=world, temperature=2.0, max_steps_in_episode=50)
        drive(env)
        env.params = env.params.replace(dropout=0.05)
        drive(env)
    assert later == []


def test_other_worlds_and_numbers_compile_nothing_under_gymnax(world, random_world):
    env, plain = DreamCarRacing("latent"), DreamParams(world_model=world)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    keys = jax.random.split(jax.random.key(0), 2)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, plain)

    def latents(params):
        return np.asarray(step(keys, state, np.zeros((2, 3), np.float32), params)[0])

    with compilations() as first:
        seen = [latents(plain)]
    assert any("step" in name for name in first)
    other = random_world(9)
    with compilations() as later:
        for params in (
            DreamParams(world_model=other),
            plain.replace(temperature=1.3),
            plain.replace(temperature=0.2, track_tiles=300.0, lap_complete_percent=0.9),
            DreamParams(world_model=other, dropout=0.1, start_middle=0.5, max_steps_in_episode=50),
        ):
            seen.append(latents(params))
        seen.append(latents(plain))
    assert later == []
    np.testing.assert_array_equal(seen[0], seen[-1])
    assert len({latent.tobytes() for latent in seen[:4]}) == 4  # the numbers did reach the program


@pytest.mark.parametrize("observation", ["features", "pixels"])
def test_no_weights_are_constants_of_the_programs(world, observation):
    single = DreamCarRacingEnv(world_model=world, observation=observation)
    single.reset(seed=0)
    batch = DreamCarRacingVectorEnv(2, world_model=world, observation=observation)
    batch.reset(seed=0)
    action = np.zeros(3, np.float32)
    lowered = [
        gym_env._step.lower(single.core, single._flat, single._key, single._state, action),
        gym_vector._step.lower(
            batch.core, batch._dream, batch._flat, batch._keys, batch._state, np.zeros((2, 3))
        ),
    ]
    lowered += [
        gym_env._reset.lower(single.core, single._flat, single._key, None),
        gym_vector._reset.lower(batch.core, batch._flat, batch._keys, None),
    ]
    for program in lowered:
        refuse_constants(program)


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("observation", ["features", "pixels"])
def test_no_weights_are_constants_of_gymnaxs_programs(world, observation, continuous):
    env, params = DreamCarRacing(observation, continuous), DreamParams(world_model=world)
    keys = jax.random.split(jax.random.key(0), 2)
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    state = jax.eval_shape(reset, keys, params)[1]
    actions = np.zeros((2, 3), np.float32) if continuous else np.zeros(2, np.int32)
    refuse_constants(reset.lower(keys, params))
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    refuse_constants(step.lower(keys, state, actions, params))


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("continuous", [True, False])
def test_no_weights_are_constants_of_a_rollout(world, continuous, record):
    env = DreamCarRacing(continuous=continuous)

    def policy(weight, observation, key):
        answer = jnp.tanh(observation @ weight)
        return answer if continuous else jnp.argmax(answer)

    @jax.jit
    def play(params, weights, keys):
        def one(weight, key):
            return rollout(env, params, policy, weight, key, steps=5, record=record)

        return jax.vmap(one)(weights, keys)

    keys, weights = jax.random.split(jax.random.key(0), 2), np.zeros((2, 288, 3), np.float32)
    refuse_constants(play.lower(DreamParams(world_model=world), weights, keys))


def refuse_constants(program):
    text = program.as_text()
    assert "stablehlo" in text
    for constant in large_constants(text):
        pytest.fail(f"a constant of {constant} numbers; weights belong into the arguments")


def large_constants(text, limit=1000):
    """Sizes of constants that hold more than one repeated number."""
    for value, shape in re.findall(r"stablehlo.constant dense(\S*)\s*: tensor<([\dx]*)", text):
        size = int(np.prod([int(n) for n in shape.split("x") if n]))
        if size > limit and value[:2] in ("<[", '<"', "_r"):
            yield size


def test_the_search_for_constants_would_find_one(world):
    program = jax.jit(lambda h: world.mdn_rnn.predict(h).tiles)
    text = program.lower(np.zeros(256, np.float32)).as_text()
    assert list(large_constants(text))
