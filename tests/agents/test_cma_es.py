"""Evolution in the dream: returns rise, and worlds can be swapped without compiling."""

import jax
import jax.numpy as jnp
import pytest

from agents.cma_es import CMAESConfig, Evolution
from agents.linear import LinearController, linear_policy
from tests.contracts.test_compilation import compilations
from wm_env.dream import DreamParams

pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # evosax multiplies floats by booleans


@pytest.fixture(scope="module")
def evolution():
    return Evolution(
        LinearController.zeros(), linear_policy, CMAESConfig(population=8, dreams=2, steps=20)
    )


def test_a_generation_moves_the_mean_and_reports_finite_returns(evolution, world):
    state = evolution.init(jax.random.key(0))
    after, outcome = evolution.advance(state, DreamParams(world_model=world), jax.random.key(1))
    assert float(state.std) == pytest.approx(0.1)
    assert jnp.isfinite(outcome.mean_return) and outcome.best_return >= outcome.mean_return
    assert not jnp.array_equal(
        evolution.controller(after).weight, evolution.controller(state).weight
    )


def test_the_same_key_gives_the_same_generation(evolution, world):
    state, params = evolution.init(jax.random.key(0)), DreamParams(world_model=world)
    one, _ = evolution.advance(state, params, jax.random.key(1))
    two, _ = evolution.advance(state, params, jax.random.key(1))
    assert jnp.array_equal(one.mean, two.mean)


def test_alike_searches_share_a_program_that_is_compiled_once(world):
    def search(gain, **changes):
        config = CMAESConfig(population=8, dreams=2, steps=21, **changes)
        controller = jax.tree.map(lambda leaf: leaf + gain, LinearController.zeros())
        evolution, params = (
            Evolution(controller, linear_policy, config),
            DreamParams(world_model=world),
        )
        state = evolution.init(jax.random.key(0))
        for _ in range(2):
            state, _ = evolution.advance(state, params, jax.random.key(1))
        return evolution

    with compilations() as first:
        one = search(0.0)
    with compilations() as later:
        two = search(0.5)
        three = search(0.0, sigma=0.2)
    assert sum("advance" in name for name in first) == 1
    assert sum("advance" in name for name in later) == 1  # sigma is part of the config
    assert one == two and hash(one) == hash(two) and one != three
