"""The MLP controller: what it does at first, its file, and commands that take either kind."""

import json

import jax
import numpy as np
import pytest

from agents.__main__ import main
from agents.controllers import load_controller_policy, save_any
from agents.linear import LinearController, linear_policy
from agents.mlp import MLPController, load_mlp, mlp_policy, save_mlp
from wm_env.weights import WeightsError, save_controller, save_world


def random_controller(hidden=(5, 4), features=288):
    controller = MLPController.init(features, hidden, key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(controller)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def test_a_new_one_drives_straight_on_at_half_gas():
    controller = MLPController.init(288, (32,), key=jax.random.key(0))
    np.testing.assert_array_equal(controller(np.ones(288, np.float32)), [0.0, 0.5, 0.0])
    assert sum(leaf.size for leaf in jax.tree.leaves(controller)) == 32 * 289 + 3 * 33


def test_it_is_layers_of_tanh_under_the_linear_controller():
    controller, features = random_controller(), jax.random.normal(jax.random.key(2), (288,))
    hidden = np.asarray(features, np.float64)
    for weight, bias in zip(controller.weights, controller.biases, strict=True):
        hidden = np.tanh(np.asarray(weight, np.float64) @ hidden + np.asarray(bias, np.float64))
    steer, gas, brake = hidden
    expected = [steer, (gas + 1.0) / 2.0, max(brake, 0.0)]
    np.testing.assert_allclose(controller(features), expected, atol=1e-5)
    np.testing.assert_array_equal(mlp_policy(controller, features, None), controller(features))


def test_a_saved_one_is_loaded_as_it_was(tmp_path):
    controller = random_controller()
    save_mlp(controller, tmp_path / "c.safetensors", {"update": 7})
    loaded, metadata = load_mlp(tmp_path / "c.safetensors", features=288)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, controller))
    assert loaded.hidden == (5, 4) and metadata == {"update": 7}


@pytest.mark.parametrize("hidden", [(0,), (4, -1)])
def test_a_layer_of_nothing_is_refused(hidden):
    with pytest.raises(ValueError, match="expected sizes of 1 or more"):
        MLPController.init(288, hidden, key=jax.random.key(0))


LAYERS = {
    "weight_0": np.zeros((4, 288)),
    "bias_0": np.zeros(4),
    "weight_1": np.zeros((3, 4)),
    "bias_1": np.zeros(3),
}


@pytest.mark.parametrize(
    "change",
    [
        {"weight_1": np.zeros((3, 5))},
        {"weight_1": np.zeros((2, 4)), "bias_1": np.zeros(2)},
        {"bias_0": np.zeros(())},
        {"bias_2": np.zeros(3)},
        {"weight": np.zeros((3, 288))},
    ],
)
def test_layers_that_do_not_follow_one_another_are_refused(tmp_path, change):
    path = tmp_path / "c.safetensors"
    save_controller(LAYERS, path)
    assert load_mlp(path)[0].hidden == (4,)
    save_controller({**LAYERS, **change}, path)
    with pytest.raises(WeightsError, match="expected weight_0"):
        load_mlp(path)


def test_a_files_arrays_tell_its_kind(tmp_path):
    kinds = {linear_policy: LinearController.zeros(), mlp_policy: random_controller()}
    for policy, controller in kinds.items():
        save_any(controller, tmp_path / "c.safetensors", {"update": 1})
        found = load_controller_policy(tmp_path / "c.safetensors", features=288)
        assert found[0] is policy and type(found[1]) is type(controller)
        assert found[2] == {"update": 1}


def test_the_shipped_controller_is_linear():
    assert load_controller_policy()[0] is linear_policy


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_controller_of_another_world_is_refused(tmp_path, hidden):
    other = random_controller(hidden, 40) if hidden else LinearController.zeros(40)
    save_any(other, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=r"40\).* expected .*288\)"):
        load_controller_policy(tmp_path / "c.safetensors", features=288)


def test_evaluate_drives_by_either_kind(world, tmp_path):
    save_world(world, tmp_path / "world.safetensors")
    returns = []
    # One hidden unit for each feature, in its linear range, is the linear controller.
    linear = LinearController(weight=np.full((3, 288), 0.01), bias=np.zeros(3))
    mlp = MLPController(
        weights=(1e-3 * np.eye(288), 10.0 * np.ones((3, 288))), biases=(np.zeros(288), np.zeros(3))
    )
    for controller in (linear, mlp, random_controller()):
        save_any(controller, tmp_path / "c.safetensors", {"kind": type(controller).__name__})
        files = ["--world", tmp_path / "world.safetensors", "--controller"]
        options = ["--env", "dream", "--episodes", 2, "--steps", 8, "--json", tmp_path / "f.json"]
        assert main(["evaluate", *map(str, [*files, tmp_path / "c.safetensors", *options])]) == 0
        told = json.loads((tmp_path / "f.json").read_text())
        assert told["training"] == {"kind": type(controller).__name__}
        returns.append(told["mean"])
    assert returns[0] == pytest.approx(returns[1], abs=1e-2)
    assert abs(returns[0] - returns[2]) > 0.1
