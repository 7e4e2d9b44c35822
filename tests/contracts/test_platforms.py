"""Devices that are not at hand: the programs that users run can be lowered for them."""

import jax
import jax.numpy as jnp
import pytest
from jax.export import export

from agents.cma_es import CMAESConfig, Evolution
from agents.dream_mix import DreamMix
from agents.linear import LinearController, linear_policy
from wm_env.dream import DreamCarRacing, DreamParams

LANES = 64  # more than are decoded at once on a CPU


@pytest.fixture(params=["cuda", "tpu"])
def lowered(request, monkeypatch):
    """Lowers `function(*args)`, of any pytrees of arrays, for the platform."""
    backend = {"cuda": "gpu"}.get(request.param, request.param)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # which our code looks at
    jax.clear_caches()

    def lowered(function, *args):
        leaves, structure = jax.tree.flatten(args)

        def flat(*leaves):
            return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

        export(jax.jit(flat), platforms=[request.param])(*leaves)  # raises where it cannot

    return lowered


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("observation", ["features", "pixels"])
def test_dreams_can_be_lowered(world, lowered, observation, precision):
    env = DreamCarRacing(observation)
    params = DreamParams(world_model=world.with_precision(precision))
    keys = jax.random.split(jax.random.key(0), LANES)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)

    def step(data, state, actions, params):
        keys = jax.random.wrap_key_data(data)
        return jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, state, actions, params)

    lowered(step, jax.random.key_data(keys), state, jnp.zeros((LANES, 3)), params)


def test_a_generation_of_cma_es_can_be_lowered(world, lowered, lenient_dtypes):
    config = CMAESConfig(population=8, dreams=2, steps=4)
    evolution = Evolution(LinearController.zeros(), linear_policy, config)
    state, mix = evolution.init(jax.random.key(0)), DreamMix(DreamParams(world_model=world))
    lowered(lambda state, mix: evolution.advance(state, mix, jax.random.key(1)), state, mix)


def test_gradients_of_v_can_be_lowered(world, lowered):
    def posterior(vae, images):
        return jax.vmap(vae.latent)(images).sum()

    images = jnp.zeros((2, 64, 64, 3))
    lowered(jax.value_and_grad(posterior), world.vae, images)
