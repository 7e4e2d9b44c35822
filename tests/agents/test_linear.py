"""The linear controller: 867 numbers, their meaning, and the file that they come from."""

import jax
import numpy as np
import pytest

from agents.linear import LinearController, linear_policy, load_linear, save_linear
from wm_env.weights import WeightsError, save_controller, save_world


def random_controller(seed=0, features=288):
    key_weight, key_bias = jax.random.split(jax.random.key(seed))
    return LinearController(
        weight=jax.random.normal(key_weight, (3, features)), bias=jax.random.normal(key_bias, (3,))
    )


def test_it_has_867_numbers():
    assert sum(leaf.size for leaf in jax.tree.leaves(LinearController.zeros())) == 867


def test_zeros_drive_straight_on_at_half_gas():
    features = np.ones(288, np.float32)
    np.testing.assert_array_equal(LinearController.zeros()(features), [0.0, 0.5, 0.0])


def test_actions_use_their_full_ranges_and_no_more():
    features = jax.random.normal(jax.random.key(1), (500, 288))
    actions = np.asarray(jax.vmap(random_controller())(features))
    assert (actions >= [-1.0, 0.0, 0.0]).all() and (actions <= 1.0).all()
    np.testing.assert_allclose(actions.min(axis=0), [-1.0, 0.0, 0.0], atol=1e-3)
    np.testing.assert_allclose(actions.max(axis=0), 1.0, atol=1e-3)


def test_the_policy_is_the_controller_and_uses_no_key():
    controller, features = random_controller(), np.ones(288, np.float32)
    actions = [linear_policy(controller, features, jax.random.key(seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(*actions)
    np.testing.assert_array_equal(actions[0], controller(features))


def test_a_saved_controller_is_loaded_as_it_was(tmp_path):
    controller = random_controller(3)
    save_linear(controller, tmp_path / "c.safetensors", {"generation": 7})
    loaded, metadata = load_linear(tmp_path / "c.safetensors", features=288)
    np.testing.assert_array_equal(loaded.weight, controller.weight)
    np.testing.assert_array_equal(loaded.bias, controller.bias)
    assert metadata == {"generation": 7}


@pytest.mark.parametrize(
    "arrays",
    [
        {"weight": np.zeros((2, 288)), "bias": np.zeros(2)},
        {"weight": np.zeros((3, 288)), "bias": np.zeros(4)},
        {"weight": np.zeros((3, 288))},
        {"weight": np.zeros((3, 288)), "bias": np.zeros(3), "hidden": np.zeros(1)},
    ],
)
def test_arrays_of_another_policy_are_refused(tmp_path, arrays):
    save_controller(arrays, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="linear controller"):
        load_linear(tmp_path / "c.safetensors")


def test_a_controller_of_another_world_is_refused(tmp_path):
    save_linear(random_controller(features=40), tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=r"expected .* \(3, 288\)"):
        load_linear(tmp_path / "c.safetensors", features=288)


def test_a_world_is_not_taken_for_a_controller(tmp_path, world):
    save_world(world, tmp_path / "world.safetensors")
    with pytest.raises(WeightsError, match="controller"):
        load_linear(tmp_path / "world.safetensors")


def test_a_missing_controller_is_named():
    with pytest.raises(WeightsError, match="nowhere"):
        load_linear("nowhere")
