"""Lanes spread over devices, here eight simulated ones: the same dreams, no talk between them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wm_env

ROOT = Path(wm_env.__file__).parents[1]

# Sixteen lanes, four steps and a time limit of three, so that every lane begins anew once.
SCRIPT = """
import os, sys
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"
import importlib.util, json, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
spec = importlib.util.spec_from_file_location("fixtures", "tests/conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import rollout
try:
    shard_map = jax.shard_map
except AttributeError:
    from jax.experimental.shard_map import shard_map

env = DreamCarRacing()
world = fixtures._with_outcomes(fixtures._random_world(2), log_tiles=-1.0, off_field=-2.2)
params = DreamParams(world_model=world, start_middle=0.5, max_steps_in_episode=3)
mesh = Mesh(np.array(jax.devices()), ("lanes",))
lanes, everywhere = NamedSharding(mesh, P("lanes")), NamedSharding(mesh, P())
keys = jax.random.split(jax.random.key(0), (5, 16))
actions = jax.random.uniform(jax.random.key(1), (4, 16, 3))
batch = jax.vmap(env.step, in_axes=(0, 0, 0, None))
_, begin = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys[4], params)
outcomes, facts = {}, {}

def drive(name, step, put, params):
    state = put(begin)
    for t in range(4):
        outcome = step(put(keys[t]), state, put(actions[t]), params)
        state = outcome[1]
    # The last step's own values: every earlier one went into its state.
    outcomes[name] = outcome
    facts[name] = sorted(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(outcome))

drive("alone", jax.jit(batch), lambda tree: tree, params)
put = lambda tree: jax.device_put(tree, lanes)
everyones = jax.device_put(params, everywhere)
compiled = jax.jit(batch).lower(put(keys[0]), put(begin), put(actions[0]), everyones).compile()
drive("named", compiled, put, everyones)
each = shard_map(batch, mesh=mesh, in_specs=(P("lanes"), P("lanes"), P("lanes"), P()),
                 out_specs=P("lanes"))
drive("mapped", jax.jit(each), put, everyones)
text = compiled.as_text()
facts["talk"] = [word for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
                 if word in text]

def steady(action, observation, key):
    return action

def returns(keys, params):
    play = lambda key: rollout(env, params, steady, actions[0, 0], key, steps=5)
    return jax.vmap(play)(keys)

for name, where in (("rollout alone", keys[0]), ("rollout named", put(keys[0]))):
    outcomes[name] = jax.jit(returns)(where, everyones if "named" in name else params)
    facts[name] = len(outcomes[name].ret.sharding.device_set)

arrays = {f"{name}/{i}": np.asarray(leaf) for name, tree in outcomes.items()
          for i, leaf in enumerate(jax.tree.leaves(tree))}
np.savez(sys.argv[1] + "/outcomes.npz", **arrays)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What the script found: `outcomes(name)`, the leaves of a name, and facts."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arrays = dict(np.load(folder / "outcomes.npz"))

    def outcomes(name):
        return [value for key, value in arrays.items() if key.split("/")[0] == name]

    return outcomes, json.loads(done.stdout)


def agree(outcomes, one, other):
    pairs = list(zip(outcomes(one), outcomes(other), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("how", ["named", "mapped"])
def test_lanes_on_eight_devices_dream_what_they_dream_on_one(sharded, how):
    outcomes, facts = sharded
    agree(outcomes, "alone", how)
    assert set(facts["alone"]) == {1} and set(facts[how]) == {8}
    observation = outcomes("alone")[0]
    assert observation.shape == (16, 288)
    assert len({lane.tobytes() for lane in observation}) == 16


def test_devices_do_not_wait_for_each_other(sharded):
    assert sharded[1]["talk"] == []


def test_rollouts_on_eight_devices_return_what_they_return_on_one(sharded):
    outcomes, facts = sharded
    agree(outcomes, "rollout alone", "rollout named")
    assert (facts["rollout alone"], facts["rollout named"]) == (1, 8)
    assert len(set(outcomes("rollout alone")[0])) > 1
