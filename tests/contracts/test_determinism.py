"""Same seed, same actions, same program: the same bits in every process and every run."""

import os
import subprocess
import sys
from pathlib import Path

from wm_env import weights

ROOT = Path(weights.__file__).parents[1]

# Each line of the output: the digests of single, vector and gymnax dreams of 50 steps.
SCRIPT = """
import hashlib, importlib.util
import jax, numpy as np
spec = importlib.util.spec_from_file_location("fixtures", "tests/conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
from wm_env.gym_env import DreamCarRacingEnv
from wm_env.gym_vector import DreamCarRacingVectorEnv
from wm_env.weights import load_world

world = fixtures._with_outcomes(load_world("carracing"), log_tiles=-1.0, off_field=-2.2)
arguments = {"world_model": world, "dropout": 0.1, "start": "mixed", "temperature": 1.2}
actions = np.random.default_rng(7).uniform([-1, 0, 0], 1, (50, 3)).astype(np.float32)
single = DreamCarRacingEnv(**arguments)
vector = DreamCarRacingVectorEnv(2, **arguments)

@jax.jit
def gymnax_dream(key, params):
    def body(state, inputs):
        obs, state, *outcome = single.core.step(*inputs[:1], state, inputs[1], params)
        return state, (obs, *outcome)
    obs, state = single.core.reset(key, params)
    return obs, jax.lax.scan(body, state, (jax.random.split(key, 50), actions))[1]

def digests(seed):
    for env, given in ((single, actions), (vector, np.stack([actions, -actions], 1))):
        digest, falls = hashlib.sha256(env.reset(seed=seed)[0].tobytes()), 0
        for action in given:
            obs, reward, terminated, truncated, info = env.step(action)
            for part in (obs, reward, terminated, truncated, info["tiles"]):
                digest.update(np.asarray(part).tobytes())
            falls += np.sum(terminated)
            if env is single and terminated:
                digest.update(env.reset()[0].tobytes())
        assert falls > 0, "no episode ended"
        yield digest.hexdigest()
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(gymnax_dream(jax.random.key(seed), single.params)):
        digest.update(np.asarray(leaf).tobytes())
    yield digest.hexdigest()

for seed in (5, 5, 6):
    print(*digests(seed))
"""


def test_processes_and_runs_dream_the_same_bits():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in (1, 2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, again, other = (line.split() for line in outputs[0].splitlines())
    assert outputs[0] == outputs[1]
    assert first == again
    assert len(first) == 3 and len({*first, *other}) == 6, "digests that tell dreams apart"
