"""What a generation dreams of: worlds in equal shares, wildness drawn alike for all candidates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.dream_mix import DreamMix, load_worlds
from wm_env.dream import DreamParams
from wm_env.weights import save_world

KEY = jax.random.key(3)


def seen(params, key):
    """What a dream is told: its world's first weight, temperature, dropout and key."""
    weight = params.world_model.mdn_rnn.head_weight[0, 0]
    return weight, params.temperature, params.dropout, jax.random.key_data(key)


def test_each_dream_draws_its_own_temperature_and_dropout_from_the_ranges(world):
    mix = DreamMix(DreamParams(world_model=world), temperature=(0.5, 1.5), dropout=(0.0, 0.2))
    _, temperature, dropout, _ = mix.each(seen, KEY, 64)
    for drawn, low, high in ((temperature, 0.5, 1.5), (dropout, 0.0, 0.2)):
        assert drawn.shape == (1, 64) and len(np.unique(drawn)) == 64
        assert low <= drawn.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < drawn.max() <= high
    assert abs(np.corrcoef(temperature[0], dropout[0])[0, 1]) < 0.5


def test_without_ranges_every_dream_has_the_numbers_of_the_parameters(world):
    mix = DreamMix(DreamParams(world_model=world, temperature=1.25, dropout=0.1))
    _, temperature, dropout, keys = mix.each(seen, KEY, 6)
    assert np.unique(temperature) == np.float32(1.25) and np.unique(dropout) == np.float32(0.1)
    assert len(np.unique(keys[0], axis=0)) == 6


def test_the_same_key_gives_the_same_dreams_and_another_gives_others(world):
    mix = DreamMix(DreamParams(world_model=world), temperature=(0.5, 1.5))
    one, two, other = (mix.each(seen, key, 4) for key in (KEY, KEY, jax.random.key(4)))
    assert all(jnp.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not jnp.array_equal(one[1], other[1]) and not jnp.array_equal(one[3], other[3])


def test_dreams_are_spread_evenly_over_the_worlds_and_each_has_its_own_key(world, random_world):
    worlds = [world, random_world(1), random_world(2)]
    weights, _, _, keys = DreamMix(DreamParams(world_model=world), worlds[1:]).each(seen, KEY, 6)
    expected = [[float(w.mdn_rnn.head_weight[0, 0])] * 2 for w in worlds]
    assert weights.tolist() == expected
    assert len(np.unique(keys.reshape(6, -1), axis=0)) == 6


def test_plain_dreams_are_of_the_first_world_and_of_the_parameters_numbers(world, random_world):
    params = DreamParams(world_model=world, temperature=0.8, start_middle=0.3)
    plain = DreamMix(params, [random_world(1)], temperature=(0.5, 1.5)).plain
    assert float(plain.temperature) == pytest.approx(0.8)
    assert float(plain.start_middle) == pytest.approx(0.3)
    assert all(
        jnp.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(plain.world_model), jax.tree.leaves(world), strict=True)
    )


def saved(tmp_path, **worlds):
    for name, world in worlds.items():
        save_world(world, tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors") for name in worlds]


def test_worlds_of_one_v_are_read_in_order(world, random_world, tmp_path):
    other = dataclasses.replace(random_world(1), vae=world.vae)
    names = saved(tmp_path, one=world, two=other)
    weights = [np.asarray(w.mdn_rnn.head_weight, np.float16) for w in load_worlds(names)]
    for found, expected in zip(weights, (world, other), strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected.mdn_rnn.head_weight, np.float16))


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"mdn_rnn": {"hidden_size": 16}}, "M MDNRNNConfig.*hidden_size=16"),
        ({"first": 4}, "first start states 4, not 6"),
        ({"middle": 3}, "middle start states 3, not 10"),
    ],
)
def test_worlds_of_other_sizes_are_refused_by_the_name_of_their_file(
    world, random_world, tmp_path, changes, what
):
    other = dataclasses.replace(random_world(1, **changes), vae=world.vae)
    with pytest.raises(ValueError, match=rf"two.safetensors has {what}.*one.safetensors"):
        load_worlds(saved(tmp_path, one=world, two=other))


def test_a_world_of_another_v_is_refused_by_the_name_of_its_file(world, random_world, tmp_path):
    with pytest.raises(ValueError, match="two.safetensors has weights of V that differ"):
        load_worlds(saved(tmp_path, one=world, two=random_world(1)))
