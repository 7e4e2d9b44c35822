"""What M is fitted on: real latents, its own samples, and both in one window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.dataset import Windows
from training.memory import MemoryConfig, half_dreamt, hidden_states, memory_loss
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig

STEPS = 12


@pytest.fixture(scope="module")
def mdn_rnn():
    return MDNRNN(key=jax.random.key(0))


@pytest.fixture(scope="module")
def driving():
    z = jax.random.normal(jax.random.key(1), (STEPS, 32))
    return z, jax.random.uniform(jax.random.key(2), (STEPS, 3))


def dreamt_with(share, mdn_rnn, z, actions):
    return half_dreamt(mdn_rnn, z, actions, shares=jnp.array([share]), key=jax.random.key(3))


def test_without_own_samples_it_is_the_prediction_of_each_real_step(mdn_rnn, driving):
    expected = jax.vmap(mdn_rnn.predict)(hidden_states(mdn_rnn, *driving).h)
    got = dreamt_with(0.0, mdn_rnn, *driving)
    np.testing.assert_allclose(got.mixture.mu, expected.mixture.mu, atol=1e-5)
    np.testing.assert_allclose(got.log_tiles, expected.log_tiles, atol=1e-5)


def test_with_nothing_but_own_samples_only_the_first_latent_counts(mdn_rnn, driving):
    z, actions = driving
    one = dreamt_with(1.0, mdn_rnn, z, actions)
    other = dreamt_with(1.0, mdn_rnn, z.at[1:].add(1.0), actions)
    np.testing.assert_array_equal(one.mixture.mu, other.mixture.mu)
    assert not np.allclose(one.mixture.mu, dreamt_with(0.0, mdn_rnn, *driving).mixture.mu)


def window(seed=0):
    random = np.random.default_rng(seed)
    return Windows(
        z=random.normal(size=(STEPS + 1, 32)).astype(np.float32),
        log_sigma=np.full((STEPS + 1, 32), -2.0, np.float32),
        actions=random.uniform(size=(STEPS, 3)).astype(np.float32),
        tiles=random.integers(0, 2, STEPS).astype(np.float32),
        off_field=np.zeros(STEPS, np.float32),
        weight=np.ones(STEPS, np.float32),
    )


def test_the_loss_is_the_weighted_sum_of_its_parts(mdn_rnn):
    config = MemoryConfig(tiles_weight=2.0, off_field_weight=3.0)
    loss, parts = memory_loss(mdn_rnn, window(), key=jax.random.key(0), config=config)
    expected = parts["next_z"] + 2.0 * parts["tiles"] + 3.0 * parts["off_field"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_steps_without_weight_do_not_count(mdn_rnn):
    config, key = MemoryConfig(), jax.random.key(0)
    plain = window()
    weight = plain.weight.copy()
    weight[-1] = 0.0
    strange = plain.tiles.copy()
    strange[-1] = 50.0
    one, _ = memory_loss(mdn_rnn, plain._replace(weight=weight), key=key, config=config)
    other, _ = memory_loss(
        mdn_rnn, plain._replace(weight=weight, tiles=strange), key=key, config=config
    )
    assert float(one) == float(other)


def test_dropout_changes_what_is_predicted():
    config = MemoryConfig(mdn_rnn=MDNRNNConfig(dropout=0.5))
    mdn_rnn = MDNRNN(config.mdn_rnn, key=jax.random.key(0))
    dropped, _ = memory_loss(mdn_rnn, window(), key=jax.random.key(0), config=config)
    kept, _ = memory_loss(mdn_rnn, window(), key=jax.random.key(0), config=MemoryConfig())
    assert float(dropped) != float(kept)
