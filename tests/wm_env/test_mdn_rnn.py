"""M: a scan equals a loop, the mask does what dropout means, and the density stays bounded."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.mdn import LOG_SIGMA_MAX, LOG_SIGMA_MIN
from wm_env.mdn_rnn import (
    MDNRNN,
    TILES_PER_STEP_LIMIT,
    Carry,
    MDNRNNConfig,
)
from wm_env.motion import MOTION_SIZE, SEEN_MOTION

SMALL = MDNRNNConfig(latent_size=5, action_size=3, hidden_size=16, mixtures=3)


@pytest.fixture(scope="module")
def model():
    return MDNRNN(SMALL, key=jax.random.key(0))


@pytest.fixture(scope="module")
def sequence():
    key_z, key_a = jax.random.split(jax.random.key(1))
    return jax.random.normal(key_z, (12, 5)), jax.random.uniform(key_a, (12, 3))


def test_paper_sizes_have_the_papers_weights():
    model = MDNRNN(MDNRNNConfig(), key=jax.random.key(0))
    assert model.gate_weight.shape == (32 + 3 + 256, 4 * 256)
    assert model.head_weight.shape == (256, 3 * 5 * 32 + 2)


def test_a_shared_mixture_has_one_choice_of_component(sequence):
    model = MDNRNN(dataclasses.replace(SMALL, shared_mixture=True), key=jax.random.key(0))
    mixture = model.predict(jnp.linspace(-1.0, 1.0, 16)).mixture
    assert model.head_weight.shape == (16, 3 + 2 * 3 * 5 + 2)
    assert mixture.log_pi.shape == (1, 3)
    assert mixture.mu.shape == mixture.log_sigma.shape == (5, 3)
    np.testing.assert_allclose(jnp.exp(mixture.log_pi).sum(), 1.0, rtol=1e-5)


def test_a_new_correlated_m_predicts_as_an_independent_one_until_its_couplings_are_fitted(model):
    together = MDNRNN(dataclasses.replace(SMALL, correlated=True), key=jax.random.key(0))
    h = jnp.linspace(-1.0, 1.0, 16)
    assert together.head_weight.shape == (16, 5 * 4 // 2 + model.head_weight.shape[1])
    got, expected = together.predict(h), model.predict(h)
    np.testing.assert_array_equal(got.mixture.whitening, np.eye(5))
    np.testing.assert_allclose(got.mixture.mu, expected.mixture.mu, rtol=1e-6)
    np.testing.assert_allclose(got.off_field, expected.off_field, rtol=1e-6)


def test_each_coupling_stands_once_below_the_diagonal():
    model = MDNRNN(dataclasses.replace(SMALL, correlated=True), key=jax.random.key(0))
    model = eqx.tree_at(
        lambda m: m.head_bias, model, model.head_bias.at[:10].set(jnp.arange(2.0, 12.0))
    )
    whitening = np.asarray(model.predict(jnp.zeros(16)).mixture.whitening)
    assert sorted(whitening[np.tril_indices(5, -1)]) == list(range(2, 12))
    np.testing.assert_array_equal(np.triu(whitening), np.eye(5))


def test_what_is_done_moves_the_car_and_the_motion_what_comes(sequence):
    model = MDNRNN(dataclasses.replace(SMALL, motion=True), key=jax.random.key(0))
    z, actions = sequence
    plain, other = model.unroll(z, actions), model.unroll(z, actions.at[0].add(0.5))
    assert plain.motion.shape == (12, MOTION_SIZE)
    assert not np.allclose(plain.motion[0], other.motion[0])
    assert not np.allclose(plain.h, other.h)
    between = slice(SMALL.latent_size, SMALL.latent_size + SEEN_MOTION)
    blind = eqx.tree_at(lambda m: m.gate_weight, model, model.gate_weight.at[between].set(0.0))
    hidden = [blind.unroll(z, done).h for done in (actions, actions.at[0].add(0.5))]
    np.testing.assert_array_equal(*hidden)


@pytest.mark.parametrize(
    ("head", "output", "tiles"),
    [
        ("poisson", np.log(0.4), 0.4),
        ("poisson", 30.0, TILES_PER_STEP_LIMIT),
        ("squared", 0.4, 0.4),
        ("squared", -0.1, 0.0),
        ("reward", 30.0, TILES_PER_STEP_LIMIT),
    ],
)
def test_expected_tiles_follow_from_the_heads_output(model, head, output, tiles):
    model = MDNRNN(dataclasses.replace(SMALL, tiles=head), key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.head_bias, model, model.head_bias.at[-2].set(output))
    assert float(model.expected_tiles(model.predict(jnp.zeros(16)))) == pytest.approx(tiles)


def test_unrolling_gives_the_carry_of_every_step(model, sequence):
    carries, carry = model.unroll(*sequence), model.initial_carry()
    for t in range(12):
        carry = model.advance_carry(sequence[0][t], sequence[1][t], carry)
        np.testing.assert_allclose(carries.h[t], carry.h, atol=1e-5)
        np.testing.assert_allclose(carries.c[t], carry.c, atol=1e-5)


def test_initial_carry_is_zero(model):
    carry = model.initial_carry()
    np.testing.assert_array_equal(carry.h, np.zeros(16))
    np.testing.assert_array_equal(carry.c, np.zeros(16))


def test_scan_equals_loop(model, sequence):
    def body(carry, inputs):
        prediction, carry = model.step(*inputs, carry)
        return carry, prediction

    final, scanned = jax.lax.scan(body, model.initial_carry(), sequence)
    carry = model.initial_carry()
    for t in range(12):
        prediction, carry = model.step(sequence[0][t], sequence[1][t], carry)
        np.testing.assert_allclose(scanned.mixture.mu[t], prediction.mixture.mu, atol=1e-5)
        np.testing.assert_allclose(scanned.tiles[t], prediction.tiles, atol=1e-5)
    np.testing.assert_allclose(final.h, carry.h, atol=1e-5)
    np.testing.assert_allclose(final.c, carry.c, atol=1e-5)


def test_step_is_advance_then_predict(model, sequence):
    z, a = sequence[0][0], sequence[1][0]
    prediction, carry = model.step(z, a, model.initial_carry())
    advanced = model.advance_carry(z, a, model.initial_carry())
    np.testing.assert_array_equal(carry.h, advanced.h)
    np.testing.assert_array_equal(model.predict(advanced.h).off_field, prediction.off_field)


def test_lstm_equals_the_textbook_equations(model, sequence):
    carry = Carry(h=jnp.linspace(-0.5, 0.5, 16), c=jnp.linspace(-1.0, 1.0, 16))
    x = np.concatenate([sequence[0][0], sequence[1][0], carry.h]).astype(np.float64)
    gates = x @ np.asarray(model.gate_weight, np.float64) + np.asarray(model.gate_bias)
    i, f, g, o = np.split(gates, 4)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    c = sigmoid(f) * np.asarray(carry.c) + sigmoid(i) * np.tanh(g)
    after = model.advance_carry(sequence[0][0], sequence[1][0], carry)
    np.testing.assert_allclose(after.c, c, atol=1e-5)
    np.testing.assert_allclose(after.h, sigmoid(o) * np.tanh(c), atol=1e-5)


def test_mask_of_ones_changes_nothing(model, sequence):
    carry = Carry(h=jnp.full(16, 0.3), c=jnp.full(16, -0.2))
    masked = model.advance_carry(sequence[0][0], sequence[1][0], carry, mask=jnp.ones(16))
    plain = model.advance_carry(sequence[0][0], sequence[1][0], carry)
    np.testing.assert_array_equal(masked.h, plain.h)


def test_mask_of_zeros_hides_h_from_the_gates_but_keeps_the_cell(model, sequence):
    inputs = sequence[0][0], sequence[1][0]
    c = jnp.full(16, 0.7)
    hidden = model.advance_carry(*inputs, Carry(h=jnp.full(16, 0.9), c=c), mask=jnp.zeros(16))
    empty = model.advance_carry(*inputs, Carry(h=jnp.zeros(16), c=c))
    np.testing.assert_array_equal(hidden.h, empty.h)
    np.testing.assert_array_equal(hidden.c, empty.c)


def test_log_pi_is_normalised(model):
    mixture = model.predict(jnp.linspace(-1.0, 1.0, 16)).mixture
    np.testing.assert_allclose(jnp.exp(mixture.log_pi).sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_log_sigma_stays_in_its_bounds_and_keeps_a_gradient_at_the_floor(model, scale):
    def total(bias):
        wild = MDNRNN(SMALL, key=jax.random.key(0))
        object.__setattr__(wild, "head_bias", bias)
        return wild.predict(jnp.zeros(16)).mixture.log_sigma.sum()

    bias = jnp.full_like(model.head_bias, scale)
    assert LOG_SIGMA_MIN * 15 <= total(bias) <= LOG_SIGMA_MAX * 15
    near_floor = jax.grad(total)(jnp.full_like(model.head_bias, LOG_SIGMA_MIN - 2.0))
    assert np.all(near_floor[30:45] > 0.05)


def test_forget_gate_starts_open(model):
    np.testing.assert_array_equal(model.gate_bias[16:32], 1.0)
