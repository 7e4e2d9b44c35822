"""Gradient ascent on the dreamt return: one update is one compiled program.

The return is differentiated through policy, M and the sampled latents (reparameterised): Heess et
al. (2015), "Learning continuous control policies by stochastic value gradients" (SVG(inf)).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from wm_env.dream import DreamCarRacing, DreamParams, DreamState
from wm_env.reward import FRAME_REWARD, OFF_FIELD_REWARD, TRACK_REWARD
from wm_env.rollouts import Policy


def expected_return(
    params: DreamParams, policy: Policy, controller: Any, key: Array, *, steps: int
) -> Float[Array, ""]:
    """Return of a dream's first `steps` frames, in expectation over the fall off the field.

    Whether the car falls is drawn, and a draw of yes or no has no gradient. But a fall ends the
    episode and changes nothing else, so that its probability can stand for it exactly: each frame
    counts as often as the car is still driving.
    """
    env = DreamCarRacing().with_transition_gradients()
    lap_tiles = params.lap_complete_percent * params.track_tiles
    key_reset, key_dream, key_policy = jax.random.split(key, 3)
    _, start = env.reset_env(key_reset, params)

    # The states alone are kept for the way back; M's gates and heads would take ten times as much.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def frame(now: tuple[DreamState, Array, Array], keys: tuple[Array, Array]) -> tuple[Any, None]:
        state, driving, ret = now
        action = policy(controller, env.observe(keys[1], state, None, params), keys[1])
        _, after, *_ = env.step_env(keys[0], state, action, params)
        fall = jax.nn.sigmoid(params.world_model.mdn_rnn.predict(after.carry.h).off_field)
        paid = TRACK_REWARD / params.track_tiles * (after.tiles - state.tiles) + FRAME_REWARD
        ret = ret + driving * ((1.0 - fall) * paid + fall * OFF_FIELD_REWARD)
        driving = jnp.where(after.tiles < lap_tiles, driving * (1.0 - fall), 0.0)
        return (after, driving, ret), None

    keys = jax.random.split(key_dream, steps), jax.random.split(key_policy, steps)
    (_, _, ret), _ = jax.lax.scan(frame, (start, jnp.float32(1.0), jnp.float32(0.0)), keys)
    return ret


class AscentState(NamedTuple):
    """A controller and the moments of its gradient, which Adam keeps."""

    controller: Any
    adam: optax.OptState


class Slope(NamedTuple):
    """What an update saw: the mean return before it, and how steep the dreams were."""

    window_return: Float[Array, ""]
    gradient_norm: Float[Array, ""]  # of the mean over dreams, which Adam follows
    median_norm: Float[Array, ""]  # of a single dream's
    clipped: Float[Array, ""]  # share of the dreams whose gradient was shortened


def begin(controller: Any) -> AscentState:
    """The state of an ascent from a controller on."""
    return AscentState(controller, optax.scale_by_adam().init(controller))


@functools.partial(jax.jit, static_argnames=("policy", "batch", "steps"))
def ascend(
    state: AscentState,
    params: DreamParams,
    key: Array,
    *,
    policy: Policy,
    batch: int,
    steps: int,
    learning_rate: float,
    clip: float,
) -> tuple[AscentState, Slope]:
    """One update by Adam (Kingma & Ba 2015) on `batch` new dreams of `steps` frames.

    The dream is chaotic, and a few dreams' gradients are many times the others': each is shortened
    to `clip` before they are averaged, so that none outvotes the rest.
    """

    def slope(key: Array) -> tuple[Array, Any, Array]:
        ret, gradient = jax.value_and_grad(
            lambda controller: expected_return(params, policy, controller, key, steps=steps)
        )(state.controller)
        norm = optax.tree_utils.tree_norm(gradient)
        scale = jnp.minimum(1.0, clip / norm)
        # Over long horizons a gradient may overflow; such a dream has no say.
        known = jnp.isfinite(norm)
        return ret, jax.tree.map(lambda leaf: jnp.where(known, scale * leaf, 0.0), gradient), norm

    returns, gradients, norms = jax.vmap(slope)(jax.random.split(key, batch))
    gradient = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
    steps_up, adam = optax.scale_by_adam().update(gradient, state.adam)
    controller = jax.tree.map(lambda p, up: p + learning_rate * up, state.controller, steps_up)
    return AscentState(controller, adam), Slope(
        window_return=returns.mean(),
        gradient_norm=optax.tree_utils.tree_norm(gradient),
        median_norm=jnp.median(norms),
        clipped=jnp.mean((norms > clip).astype(jnp.float32)),
    )
