"""Many devices: each batch is split among them, weights are whole on each.

One process drives all devices of its machine, without being told; the cores of a CPU count as one.
Several machines fit together when all run the same command, with --out in a folder that they share,
after `join_hosts`: each reads its share of the data, and the first alone writes.
"""

import math
import os
from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wm_env.cores import cores_are_devices

_Tree = TypeVar("_Tree")
_Item = TypeVar("_Item")


class DevicesError(ValueError):
    """Work that cannot be shared as asked: the message says what, among how many."""


class Devices:
    """The devices that share batches of one size: as many of those here as divide it.

    Raises:
        DevicesError: there are several processes, and not all of their devices would be used.
    """

    def __init__(self, batch: int):
        found = jax.devices()
        if cores_are_devices():  # one uses all of them, and fits M faster
            found = found[:1]
        count = math.gcd(batch, len(found))
        if jax.process_count() > 1 and count < len(found):
            raise DevicesError(
                f"a batch of {batch} cannot be split evenly among the {len(found)} devices of "
                f"{jax.process_count()} processes; take a multiple of {len(found)}."
            )
        mesh = Mesh(np.array(found[:count]), ("batch",))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec("batch"))

    def split(self, batch: _Tree) -> _Tree:
        """A batch on the devices, split along its first axis; each process gives its own share."""
        put = jax.make_array_from_process_local_data
        return jax.tree.map(lambda leaf: put(self._split, leaf), batch)

    def replicate(self, tree: _Tree) -> _Tree:
        """The arrays of a pytree, the same on every process, whole on each device."""
        put = jax.make_array_from_process_local_data
        return jax.tree.map(
            lambda leaf: put(self._whole, np.asarray(leaf)) if eqx.is_array(leaf) else leaf, tree
        )

    def key(self, seed: int) -> jax.Array:
        """`jax.random.key(seed)`, whole on each device."""
        return jax.jit(jax.random.key, out_shardings=self._whole)(seed)


def gather(tree: _Tree) -> _Tree:
    """A replicated pytree as an ordinary one of this process alone."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if eqx.is_array(x) else x, tree)


def join_hosts() -> None:
    """Make this process one of many; before all else, since gymnax computes when it is imported.

    Slurm, Open MPI and cloud TPUs tell JAX where the others are. Elsewhere these do:
    JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
        num_processes=int(count) if count else None, process_id=int(index) if index else None
    )


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process has come to the same `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def own_share(shards: Sequence[_Item]) -> list[_Item]:
    """The shards that this process reads: all, where it is the only one.

    Raises:
        DevicesError: there are fewer shards than processes.
    """
    if len(shards) < jax.process_count():
        raise DevicesError(
            f"{len(shards)} shards cannot be shared by {jax.process_count()} processes; collect "
            "more with `python -m training collect`, or use fewer processes."
        )
    return list(shards[jax.process_index() :: jax.process_count()])


def check_same_start(step: int) -> None:
    """Compare the step from which each process goes on.

    Raises:
        DevicesError: they differ.
    """
    if jax.process_count() > 1:
        steps = multihost_utils.process_allgather(np.int32(step)).tolist()
        if len(set(steps)) > 1:
            raise DevicesError(
                f"the processes would go on from steps {steps}; give all of them the same --out, "
                "in a folder that they share."
            )
