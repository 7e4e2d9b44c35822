"""The shipped world that follows the car's motion: gas speeds the dreamt car up, brake stops it."""

import jax
import jax.numpy as jnp
import numpy as np

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.motion import MOTION_UNITS
from wm_env.weights import load_world

DREAMS = 8


def test_gas_and_brake_move_the_dreamt_car():
    env, params = DreamCarRacing(), DreamParams(world_model=load_world("carracing_motion"))
    gas, brake = jnp.array([0.0, 0.5, 0.0]), jnp.array([0.0, 0.0, 0.8])

    def drive(key):
        def frame(state, inputs):
            action, key = inputs
            _, state, *_ = env.step_env(key, state, action, params)
            return state, state.carry.motion[0] * MOTION_UNITS["forward"]

        _, state = env.reset_env(key, params)
        actions = jnp.concatenate([jnp.tile(gas, (60, 1)), jnp.tile(brake, (40, 1))])
        return jax.lax.scan(frame, state, (actions, jax.random.split(key, 100)))[1]

    speed = np.asarray(jax.jit(jax.vmap(drive))(jax.random.split(jax.random.key(0), DREAMS)))
    print("units/s after 20, 60 and 100 frames", speed.mean(axis=0)[[19, 59, 99]].round(1))
    # The simulator's car on an endless plane: 19, 49 and 0.
    assert (np.abs(speed[:, [19, 59]] - [19.0, 49.0]) < 8.0).all()
    assert (speed[:, 99] < 5.0).all()
