"""What M is fitted on: real latents, its own samples, and both in one window."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.fits import MEMORY, write_data
from training.dataset import Windows
from training.fit import adam
from training.latents import LatentShard
from training.memory import (
    fit_memory,
    load_memory,
    make_batch_loss,
    make_train_step,
    member_paths,
    new_state,
)
from training.memory_loss import MemoryConfig, half_dreamt, memory_loss
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.motion import MOTION_SIZE
from wm_env.reward import TYPICAL_TRACK_TILES
from wm_env.task import task_named

STEPS = 12


@pytest.fixture(scope="module")
def mdn_rnn():
    return MDNRNN(key=jax.random.key(0))


@pytest.fixture(scope="module")
def driving():
    z = jax.random.normal(jax.random.key(1), (STEPS, 32))
    return z, jax.random.uniform(jax.random.key(2), (STEPS, 3))


def dreamt_with(share, mdn_rnn, z, actions):
    return half_dreamt(mdn_rnn, z, actions, shares=(share,), key=jax.random.key(3)).prediction


def test_a_fresh_m_expects_a_fall_rarely_and_one_that_is_fitted_on_what_it_did(mdn_rnn):
    fresh, told = new_state(MEMORY).mdn_rnns, new_state(MemoryConfig(), [mdn_rnn]).mdn_rnns
    np.testing.assert_allclose(jax.nn.sigmoid(fresh.head_bias[0, -1]), 1 / 1100, rtol=0.01)
    assert not np.any(fresh.head_bias[0, :-1])
    np.testing.assert_array_equal(told.head_bias[0], mdn_rnn.head_bias)


def test_without_own_samples_it_is_the_prediction_of_each_real_step(mdn_rnn, driving):
    expected = jax.vmap(mdn_rnn.predict)(mdn_rnn.unroll(*driving).h)
    got = dreamt_with(0.0, mdn_rnn, *driving)
    np.testing.assert_allclose(got.mixture.mu, expected.mixture.mu, atol=1e-5)
    np.testing.assert_allclose(got.tiles, expected.tiles, atol=1e-5)


def test_with_nothing_but_own_samples_only_the_first_latent_counts(mdn_rnn, driving):
    z, actions = driving
    one = dreamt_with(1.0, mdn_rnn, z, actions)
    other = dreamt_with(1.0, mdn_rnn, z.at[1:].add(1.0), actions)
    np.testing.assert_array_equal(one.mixture.mu, other.mixture.mu)
    assert not np.allclose(one.mixture.mu, dreamt_with(0.0, mdn_rnn, *driving).mixture.mu)


@pytest.mark.parametrize("shares", [(0.0,), (0.5,)])
def test_m_is_told_the_motion_but_for_the_ground(driving, shares):
    z, actions = driving
    mdn_rnn = MDNRNN(MDNRNNConfig(motion=True), key=jax.random.key(0))
    told = jax.random.normal(jax.random.key(4), (STEPS, MOTION_SIZE))
    options = {"shares": shares, "key": jax.random.key(3)}
    prediction, motion, _ = half_dreamt(mdn_rnn, z, actions, told=told, **options)
    np.testing.assert_array_equal(motion[:, :-1], told[:, :-1])
    np.testing.assert_allclose(motion[:, -1], -jax.nn.sigmoid(-2.0), atol=1e-6)  # none learned
    # What is done tells M nothing that the motion does not.
    other = half_dreamt(mdn_rnn, z, actions + 0.3, told=told, **options).prediction
    np.testing.assert_array_equal(other.mixture.mu, prediction.mixture.mu)
    without = MDNRNN(key=jax.random.key(0))
    assert half_dreamt(without, z, actions, **options).motion is None


def window(seed=0):
    random = np.random.default_rng(seed)
    return Windows(
        z=random.normal(size=(STEPS + 1, 32)).astype(np.float32),
        log_sigma=np.full((STEPS + 1, 32), -2.0, np.float32),
        actions=random.uniform(size=(STEPS, 3)).astype(np.float32),
        tiles=random.integers(0, 2, STEPS).astype(np.float32),
        off_field=np.zeros(STEPS, np.float32),
        weight=np.ones(STEPS, np.float32),
        track_tiles=np.float32(250.0),
        motion=random.normal(size=(STEPS + 1, MOTION_SIZE)).astype(np.float32),
    )


def test_a_motion_where_there_is_no_car_is_refused(tmp_path):
    shard = LatentShard(tmp_path / "latents-00000.safetensors", (), task_named("LunarLander-v3"))
    config = MemoryConfig(mdn_rnn=MDNRNNConfig(motion=True))
    with pytest.raises(ValueError, match="motion is True, but LunarLander-v3 has no car"):
        fit_memory([shard], config, tmp_path)


def test_a_step_that_saw_its_own_sample_need_not_foretell_the_next_latent(mdn_rnn):
    def next_z(**told):
        config = MemoryConfig(**told)
        parts = memory_loss(mdn_rnn, window(), key=jax.random.key(0), config=config)[1]
        return float(parts["next_z"])

    # Everything from the second step on is a sample.
    whole, first = (next_z(own_shares=(1.0,), own_foretold=told) for told in (True, False))
    assert 0.0 < first < 0.2 * whole
    assert next_z(own_shares=(0.0,), own_foretold=False) == next_z(own_shares=(0.0,))


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


def tiles_loss(output, tiles, *, head="poisson", **changes):
    """The tiles' part of the loss of a window whose head says `output` at every step."""
    config = MemoryConfig(mdn_rnn=MDNRNNConfig(tiles=head), own_shares=(0.0,), **changes)
    mdn_rnn = MDNRNN(config.mdn_rnn, key=jax.random.key(0))
    weight = mdn_rnn.head_weight.at[:, -2].set(0.0)
    bias = mdn_rnn.head_bias.at[-2].set(output)
    mdn_rnn = eqx.tree_at(lambda m: (m.head_weight, m.head_bias), mdn_rnn, (weight, bias))
    of = window()._replace(tiles=np.full(STEPS, tiles, np.float32))
    _, parts = memory_loss(mdn_rnn, of, key=jax.random.key(0), config=config)
    return float(parts["tiles"]) / STEPS


def test_the_tiles_loss_is_half_the_poisson_deviance():
    assert tiles_loss(np.log(2.0), 2.0) == pytest.approx(0.0, abs=1e-5)
    assert tiles_loss(np.log(0.3), 0.0) == pytest.approx(0.3, rel=1e-5)
    assert tiles_loss(np.log(0.3), 2.0) == pytest.approx(2 * np.log(2 / 0.3) - 1.7, rel=1e-5)


def test_or_a_squared_error_of_tiles_or_of_their_reward_on_a_typical_track():
    assert tiles_loss(0.5, 2.0, head="squared") == pytest.approx(1.5**2, rel=1e-5)
    assert tiles_loss(0.5, 2.0, head="reward") == pytest.approx(
        (0.5 - 2.0 * TYPICAL_TRACK_TILES / 250.0) ** 2, rel=1e-5
    )


@pytest.mark.parametrize("head", ["poisson", "squared", "reward"])
def test_asymmetry_multiplies_the_loss_of_too_many_tiles_only(head):
    for output, times in ((2.0, 5.0), (-2.0, 1.0)):
        plain = tiles_loss(output, 1.0, head=head)
        assert tiles_loss(output, 1.0, head=head, asymmetry=5.0) == pytest.approx(times * plain)


def test_the_weight_of_falls_multiplies_the_loss_of_falls_only(mdn_rnn):
    off_field = np.zeros(STEPS, np.float32)
    off_field[-1] = 1.0
    key, falls, rest = jax.random.key(0), np.zeros(STEPS, np.float32), np.ones(STEPS, np.float32)
    falls[-1], rest[-1] = 1.0, 0.0
    for weight, times in ((falls, 7.0), (rest, 1.0)):
        of = window()._replace(off_field=off_field, weight=weight)
        _, plain = memory_loss(mdn_rnn, of, key=key, config=MemoryConfig())
        _, heavy = memory_loss(mdn_rnn, of, key=key, config=MemoryConfig(fall_weight=7.0))
        assert float(heavy["off_field"]) == pytest.approx(times * float(plain["off_field"]))


SMALL = MemoryConfig(mdn_rnn=MDNRNNConfig(hidden_size=8), batch=2, steps=5, clip=0.1)


@pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers
def test_members_learn_together_what_each_would_alone():
    both = dataclasses.replace(SMALL, members=2)
    windows = jax.tree.map(lambda *leaves: jnp.stack(leaves), window(0), window(1))
    key = jax.random.key(4)
    begin = new_state(both)
    alone = [jax.tree.map(lambda leaf, at=at: leaf[at], begin.mdn_rnns) for at in range(2)]
    assert not np.allclose(alone[0].gate_weight, alone[1].gate_weight)
    after, _ = make_train_step(both)(begin, windows, key)
    for at, member_key in enumerate(jax.random.split(key, 2)):
        grown = jax.jit(lambda m, key: step_alone(m, windows, key))(alone[at], member_key)
        np.testing.assert_allclose(after.mdn_rnns.gate_weight[at], grown.gate_weight, atol=1e-6)


def step_alone(mdn_rnn, windows, key):
    """One update by hand: Adam on the clipped gradient of the batch's loss."""
    gradient = jax.grad(lambda m: make_batch_loss(SMALL)(m, windows, key)[0])(mdn_rnn)
    optimizer = adam(SMALL)
    updates, _ = optimizer.update(gradient, optimizer.init(mdn_rnn))
    return eqx.apply_updates(mdn_rnn, updates)


def test_more_to_fine_tune_than_members_are_refused(mdn_rnn):
    with pytest.raises(ValueError, match="2 M's are to be fine-tuned, but members is 1"):
        new_state(MemoryConfig(), [mdn_rnn, mdn_rnn])


@pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers
def test_an_ensemble_fitted_on_whole_episodes_is_read_back_member_by_member(tmp_path):
    _, latents = write_data(tmp_path)
    config = dataclasses.replace(MEMORY, members=2, length=None, batch=2, steps=2)
    members = fit_memory(latents, config, tmp_path / "memory")
    assert len(members) == 2
    assert not np.allclose(members[0].gate_weight, members[1].gate_weight)
    for fitted, read in zip(members, load_memory(config, tmp_path / "memory"), strict=True):
        jax.tree.map(np.testing.assert_array_equal, fitted, read)
    assert [path.name for path in member_paths(config, tmp_path / "world.safetensors")] == [
        "world.safetensors",
        "world-2.safetensors",
    ]
