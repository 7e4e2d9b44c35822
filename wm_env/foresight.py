"""What M expects of given actions: step by step beside a real drive, or alone in a dream."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from wm_env import mdn
from wm_env.mdn_rnn import Carry
from wm_env.world_model import Step, WorldModel


class Foresight(eqx.Module):
    """What M expected of each real step before it was taken, h being fed with real frames."""

    z: Float[Array, "t z"]  # mean of z_{t+1}
    tiles: Float[Array, "t"]  # expected number of tiles hit
    off_field: Float[Array, "t"]  # probability of leaving the field
    surprise: Float[Array, "t"]  # -log p(z_{t+1} | z_t, a_t, h_t), nats, summed over z


@jax.jit
def foresee(world: WorldModel, z: Float[Array, "t1 z"], actions: Float[Array, "t a"]) -> Foresight:
    """M's one-step expectations along real latents, of which there is one more than of actions."""
    m = world.mdn_rnn
    expected = jax.vmap(m.predict)(m.unroll(z[:-1], actions).h)
    return Foresight(
        z=jax.vmap(mdn.mean)(expected.mixture),
        tiles=jax.vmap(m.expected_tiles)(expected),
        off_field=jax.nn.sigmoid(expected.off_field),
        surprise=-jnp.sum(jax.vmap(mdn.log_prob)(expected.mixture, z[1:]), axis=1),
    )


def dream_on(
    world: WorldModel,
    z: Float[Array, "z"],
    carry: Carry,
    actions: Float[Array, "t a"],
    *,
    key: PRNGKeyArray,
    temperature: float | Float[Array, ""] = 1.0,
) -> Step:
    """Dream from z and M's carry there, told the actions: all steps, with t before each shape."""

    def body(now: tuple[Array, Carry], inputs: tuple[Array, Array]) -> tuple[tuple, Step]:
        (z, carry), (action, key) = now, inputs
        step = world.advance(z, action, carry, key=key, temperature=temperature)
        return (step.z, step.carry), step

    return jax.lax.scan(body, (z, carry), (actions, jax.random.split(key, len(actions))))[1]
