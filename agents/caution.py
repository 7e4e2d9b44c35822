"""`python -m agents caution`: a driver who never brakes learns in dreams where he should.

A linear controller's brake is cut off at 0, and so is what a search learns of one that is always
there. But what he sees tells well in advance that the road will be lost: a readout of that, by
least squares over dreamt frames, is a brake to search on with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from agents.laps import LOST_FRAMES, progress
from agents.linear import LinearController, linear_policy, load_linear, save_linear
from agents.principal_axes import PrincipalAxes
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import rollout
from wm_env.task import CAR_RACING
from wm_env.weights import world_for
from wm_env.world_model import WorldModel

_SOON = 8, 28  # frames from now, between which the road is lost where there is danger
_BATCH = 128  # dreams at once
_SHRINKING = 200.0  # of the least squares, in frames


@dataclass(frozen=True)
class CautionConfig:
    """Give a linear controller a brake that follows the danger, and a gas that shrinks from it.

    Danger is a linear readout of [z, h], along the principal axes of what drivers see, fitted to
    tell the frames 8 to 28 frames before the road is lost from others, in dreams of the controller
    from middles of real drives. Its unit is the standard deviation where there is none.
    """

    controller: str  # file or shipped name
    world: str = "carracing_motion"  # file or shipped name
    out: Path = Path("out/caution.safetensors")
    brake: float = 0.5  # more on the brake's output, before its tanh, for each unit of danger
    threshold: float = 1.5  # units of danger, below which there is no brake
    gas: float = 0.2  # less on the gas's
    moments: int = 1536  # dreams
    steps: int = 160  # frames of each
    axes: int = 120
    temperature: float = 0.8
    persistence: float = 0.5
    seed: int = 0


class Danger(eqx.Module):
    """How near the road's loss is, in standard deviations of frames in which it is not near."""

    weight: Float[Array, "f"]
    bias: Float[Array, ""]


def run(config: CautionConfig) -> LinearController:
    """Dream, fit, and write the controller that takes care.

    Raises:
        ValueError: the dreams hold no danger, or nothing but it; or too many axes.
        WeightsError: world or controller cannot be loaded, or do not fit.
    """
    world = world_for(CAR_RACING, config.world)
    features = world.latent_size + world.hidden_size
    controller, facts = load_linear(config.controller, features=features, task=CAR_RACING)
    axes = PrincipalAxes.of(controller, world, config.axes)
    seen, lost = _dream(world, controller, config)
    danger, share = fit_danger(seen, lost, axes)
    cautious = with_caution(controller, danger, config)
    told = {"caution": {**vars(config), "out": str(config.out)}, "controller": facts}
    save_linear(cautious, config.out, told)
    print(f"{config.out}: dangerous frames {100 * share:.1f} % of {lost.size}")
    return cautious


def fit_danger(
    seen: Float[np.ndarray, "n t f"], lost: Bool[np.ndarray, "n t"], axes: PrincipalAxes
) -> tuple[Danger, float]:
    """The readout, from what was seen and when the road was lost; and the share of danger.

    Raises:
        ValueError: all frames are dangerous, or none is.
    """
    # A frame counts as lost by the tiles of the half second before it.
    begins = np.pad(lost[:, LOST_FRAMES:], ((0, 0), (0, LOST_FRAMES)))
    steps = lost.shape[1] - LOST_FRAMES - _SOON[1]
    frames = np.arange(0, max(steps, 0), 2)  # neighbours tell the same
    soon = np.stack([begins[:, at + _SOON[0] : at + _SOON[1]].any(axis=1) for at in frames], axis=1)
    driving = np.stack([~begins[:, max(at - 10, 0) : at + 6].any(axis=1) for at in frames], axis=1)
    dangerous = soon[driving]
    share = float(dangerous.mean()) if dangerous.size else 0.0
    if not 0.0 < share < 1.0:
        raise ValueError(
            f"{100 * share:.0f} % of {dangerous.size} dreamt frames are dangerous; expected some "
            "and not all. Take more moments, or a controller that loses the road at times."
        )
    along = (seen[:, frames][driving] - np.asarray(axes.mean)) @ np.asarray(axes.axes)
    along = np.concatenate([along, np.ones((len(along), 1))], axis=1).astype(np.float64)
    weight = np.where(dangerous, 1.0 / share, 1.0 / (1.0 - share))  # both count alike
    weighed = (along * weight[:, None]).T
    squares = weighed @ along + _SHRINKING * np.eye(along.shape[1])
    fitted = np.linalg.solve(squares, weighed @ (2.0 * dangerous - 1.0))
    score = along @ fitted
    calm, unit = score[~dangerous].mean(), score[~dangerous].std()
    readout = np.asarray(axes.axes, np.float64) @ fitted[:-1]
    bias = fitted[-1] - np.asarray(axes.mean) @ readout - calm
    danger = Danger(jnp.asarray(readout / unit, jnp.float32), jnp.float32(bias / unit))
    return danger, share


def with_caution(
    controller: LinearController, danger: Danger, config: CautionConfig
) -> LinearController:
    """The controller with another brake and less gas where there is danger; it steers as before."""
    steer, gas, _ = controller.weight
    weight = jnp.stack([steer, gas - config.gas * danger.weight, config.brake * danger.weight])
    bias = controller.bias.at[1].add(-config.gas * danger.bias)
    bias = bias.at[2].set(config.brake * (danger.bias - config.threshold))
    return eqx.tree_at(lambda one: (one.weight, one.bias), controller, (weight, bias))


def _dream(
    world: WorldModel, controller: LinearController, config: CautionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """What the driver sees, [n, t, f], and whether he is lost, [n, t], in dreams from middles."""
    params = DreamParams(
        world_model=world,
        temperature=config.temperature,
        persistence=config.persistence,
        start_middle=1.0,
    )

    @eqx.filter_jit
    def drive(params: DreamParams, controller: LinearController, keys: Array) -> Any:
        def one(key: Array) -> Any:
            env = DreamCarRacing()
            driven = rollout(
                env, params, linear_policy, controller, key, steps=config.steps, record=True
            ).trajectory
            assert driven is not None
            return driven.observation, progress(driven, params.track_tiles)[2]

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(config.seed), config.moments)
    batches = [keys[at : at + _BATCH] for at in range(0, len(keys), _BATCH)]
    dreamt = [jax.tree.map(np.asarray, drive(params, controller, batch)) for batch in batches]
    seen, lost = (np.concatenate(part) for part in zip(*dreamt, strict=True))
    return seen, lost
