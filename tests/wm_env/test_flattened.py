"""A flattened pytree is the same pytree inside a program, and one structure is one program."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.flattened import Flattened


@pytest.fixture
def traced():
    """A compiled sum of a Flattened tree's "a", and how often it was traced."""
    count = []

    @jax.jit
    def total(flat):
        count.append(flat.tree)
        return flat.tree["a"].sum()

    return total, count


def test_the_tree_comes_back():
    tree = {"a": np.arange(3.0), "b": (np.int32(1), None)}
    assert jax.tree.all(jax.tree.map(np.array_equal, Flattened(tree).tree, tree))


def test_other_numbers_of_one_structure_need_no_other_program(traced):
    total, count = traced
    assert total(Flattened({"a": jnp.ones(3)})) == 3.0
    assert total(Flattened({"a": 2.0 * jnp.ones(3)})) == 6.0
    assert len(count) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_needs_no_other_program(traced, copied):
    total, count = traced
    flat = Flattened({"a": jnp.ones(3)})
    assert total(flat) == total(copied(flat)) == 3.0
    assert len(count) == 1


def test_another_structure_is_another_program(traced):
    total, count = traced
    total(Flattened({"a": jnp.ones(3)}))
    assert total(Flattened({"a": jnp.ones(3), "b": jnp.ones(2)})) == 3.0
    assert set(count[1]) == {"a", "b"}
