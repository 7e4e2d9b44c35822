"""Writes the golden dream: `python -m tests.golden.write` from the root of the repository."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import rollout


def dreamt(world):
    """Thirty frames with everything in play: temperature, dropout, a middle start, a drive."""
    # An untrained car would leave the field at once.
    bias = world.mdn_rnn.head_bias.at[-1].set(-8.0)
    world = eqx.tree_at(lambda w: w.mdn_rnn.head_bias, world, bias)
    params = DreamParams(world_model=world, temperature=1.2, dropout=0.1, start_middle=1.0)

    def weave(_, observation, key):
        return jnp.stack([jnp.sin(10.0 * observation[0]), jnp.abs(observation[1]) / 4.0, 0.0])

    drive = rollout(
        DreamCarRacing(), params, weave, None, jax.random.key(2018), steps=30, record=True
    )
    seen = drive.trajectory
    return {
        "ret": float(drive.ret),
        "tiles": float(drive.tiles),
        "length": int(drive.length),
        "reward": np.asarray(seen.reward).round(5).tolist(),
        "action": np.asarray(seen.action).round(5).tolist(),
        "features": np.asarray(seen.observation)[:, [0, 1, 31, 32, 33, 287]].round(5).tolist(),
    }


def main():
    from tests.conftest import _random_world

    path = Path(__file__).parent / "dream_trajectory.json"
    path.write_text(json.dumps(dreamt(_random_world(7)), indent=1) + "\n")


if __name__ == "__main__":
    main()
