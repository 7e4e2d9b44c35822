"""Checkpoints come back as they were, or say why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

TREE = {"weight": jnp.arange(6.0).reshape(2, 3), "count": jnp.int32(7), "name": "static"}


def test_a_checkpoint_comes_back_with_its_step_dtypes_and_shapes(tmp_path):
    save_checkpoint(TREE, 42, tmp_path / "c.safetensors")
    zeros = jax.tree.map(lambda leaf: leaf if isinstance(leaf, str) else jnp.zeros_like(leaf), TREE)
    loaded, step = load_checkpoint(zeros, tmp_path / "c.safetensors")
    assert step == 42 and loaded["name"] == "static"
    assert loaded["count"].shape == () and loaded["count"].dtype == jnp.int32
    np.testing.assert_array_equal(loaded["weight"], TREE["weight"])


def test_a_missing_truncated_or_foreign_checkpoint_is_named(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(TREE, path)
    save_checkpoint(TREE, 1, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(TREE, path)


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path):
    save_checkpoint(TREE, 1, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="Remove it to begin anew"):
        load_checkpoint(TREE | {"weight": jnp.zeros((3, 3))}, tmp_path / "c.safetensors")


def test_another_configuration_is_refused_and_its_differences_named(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(TREE, 3, path, {"steps": 20, "batch": 4})
    assert load_checkpoint(TREE, path, {"batch": 4, "steps": 20})[1] == 3
    with pytest.raises(CheckpointError, match="steps was 20 and is 700"):
        load_checkpoint(TREE, path, {"steps": 700, "batch": 4})
