"""A pytree that is taken apart once instead of at every call of a compiled program."""

import functools
from typing import Any

import jax


class _Structure:
    """A tree's structure, equal to itself alone: comparing that of a world would take longer than
    a dreamt step."""

    def __init__(self, structure: Any):
        self.structure = structure


# Trees of one structure have one object, and so one compiled program.
_structure_of = functools.cache(_Structure)


@jax.tree_util.register_pytree_node_class
class Flattened:
    """An argument of compiled programs: `Flattened(tree)` outside, `.tree` within."""

    def __init__(self, tree: Any):
        leaves, structure = jax.tree.flatten(tree)
        self._leaves, self._structure = tuple(leaves), _structure_of(structure)

    @property
    def tree(self) -> Any:
        return jax.tree.unflatten(self._structure.structure, self._leaves)

    def __reduce__(self) -> tuple:
        return Flattened, (self.tree,)  # a copy finds its structure's object anew

    def tree_flatten(self) -> tuple[tuple, _Structure]:
        return self._leaves, self._structure

    @classmethod
    def tree_unflatten(cls, structure: _Structure, leaves: Any) -> "Flattened":
        self = object.__new__(cls)
        self._leaves, self._structure = tuple(leaves), structure
        return self
