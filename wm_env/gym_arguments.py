"""Arguments, actions and reset options of the Gymnasium adapters, checked on the host."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.error import InvalidAction

from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.flattened import Flattened
from wm_env.mdn_rnn import Carry
from wm_env.preprocess import IMAGE_SHAPE
from wm_env.task import Task
from wm_env.vae import VAE, PackedDecoder
from wm_env.weights import world_for
from wm_env.world_model import WorldModel

STARTS = {"first": 0.0, "middle": 1.0, "mixed": 0.5}

_NO_TIME_LIMIT = int(np.iinfo(np.int32).max)
_OPTION_SETS = ({"frame"}, {"frames", "actions"}, {"z"})


def dream_params(
    task: Task,
    *,
    world_model: WorldModel | str | os.PathLike | None,
    temperature: float,
    persistence: float = 0.0,
    dropout: float,
    track_tiles: float,
    lap_complete_percent: float,
    start: str | float,
    max_episode_steps: int | None,
    precision: str = "float32",
) -> DreamParams:
    """DreamParams from an environment's arguments; every number becomes an array.

    Raises:
        ValueError: a number outside its range, or an unknown start or precision.
        WeightsError: the world cannot be loaded, or is of another task.
    """
    if not isinstance(start, float | int) and start not in STARTS:
        raise ValueError(
            f"start is {start!r}; expected one of {', '.join(STARTS)}, or the share of episodes "
            "that begin mid-track, between 0 and 1."
        )
    share = STARTS[start] if isinstance(start, str) else float(start)
    for name, value, low, high in (
        ("temperature", temperature, 0.0, math.inf),
        ("persistence", persistence, 0.0, 0.999),
        ("dropout", dropout, 0.0, 0.999),
        ("track_tiles", track_tiles, 1.0, math.inf),
        ("lap_complete_percent", lap_complete_percent, 1e-6, 1.0),  # a share, as in CarRacing
        ("start", share, 0.0, 1.0),
        ("max_episode_steps", 1 if max_episode_steps is None else max_episode_steps, 1, math.inf),
    ):
        number = isinstance(value, Real) or np.ndim(value) == 0 and hasattr(value, "dtype")
        if not number or not low <= value <= high or math.isinf(value):
            expected = f"from {low} up, finite" if math.isinf(high) else f"from {low} to {high}"
            raise ValueError(f"{name} is {value!r}; expected a number {expected}.")
    return canonical(
        DreamParams(
            world_model=world_for(task, world_model).with_precision(precision),
            temperature=temperature,
            persistence=persistence,
            dropout=dropout,
            track_tiles=track_tiles,
            lap_complete_percent=lap_complete_percent,
            start_middle=share,
            max_steps_in_episode=max_episode_steps or _NO_TIME_LIMIT,
        )
    )


def canonical(params: DreamParams) -> DreamParams:
    """The same parameters with arrays for numbers, so that no change of a value compiles anew."""

    def array(leaf: Any) -> jax.Array:
        coarse = getattr(leaf, "dtype", None) == jnp.bfloat16  # a weight of that precision
        return jnp.asarray(leaf, jnp.bfloat16 if coarse else jnp.float32)

    limit = jnp.asarray(params.max_steps_in_episode, jnp.int32)
    return replace(jax.tree.map(array, params), max_steps_in_episode=limit)


def step_arguments(env: DreamCarRacing, params: DreamParams, render_mode: str | None) -> Flattened:
    """The parameters for compiled steps; where these decode images V is a decoder only, packed."""
    if env.observation == "pixels" or render_mode is not None:
        world = params.world_model
        packed = eqx.tree_at(lambda world: world.vae, world, _packed(world.vae))
        params = replace(params, world_model=packed)
    return Flattened(params)


@jax.jit
def _packed(vae: VAE) -> PackedDecoder:
    return vae.packed()


def checked_action(env: DreamCarRacing, action: Any, lanes: tuple[int, ...] = ()) -> np.ndarray:
    """The action(s), float32 [*lanes, a] or int32 [*lanes].

    Raises:
        InvalidAction: another shape, a number that is not finite, or no such discrete action.
    """
    shape = (*lanes, env.num_actions) if env.continuous else lanes
    kinds = "fiu" if env.continuous else "iu"
    try:
        array = np.asarray(action)
    except ValueError as error:  # rows of different lengths
        raise InvalidAction(
            f"the action is {action!r}; expected {shape} ({_meaning(env)})."
        ) from error
    if array.shape != shape or array.dtype.kind not in kinds:
        raise InvalidAction(
            f"the action has shape {array.shape} and dtype {array.dtype}; expected {shape} of "
            f"{'floats' if env.continuous else 'integers'} ({_meaning(env)}). "
            "env.action_space.sample() shows one."
        )
    if not env.continuous:
        if np.any((array < 0) | (array >= env.num_actions)):
            raise InvalidAction(f"the action is {action}; expected {_meaning(env)}.")
        return array.astype(np.int32)
    if not np.isfinite(array).all():
        raise InvalidAction(
            f"the action is {action}; expected finite numbers ({_meaning(env)}). "
            "A policy that answers NaN has usually diverged."
        )
    return array.astype(np.float32)


def _meaning(env: DreamCarRacing) -> str:
    return env.task.meaning if env.continuous else f"0 to {env.num_actions - 1}"


def start_from_options(
    world: WorldModel, options: Mapping[str, Any] | None
) -> tuple[jax.Array, Carry] | None:
    """Latent and carry that reset options ask for, or None for a usual start.

    `frame` is one real frame; `frames` [n] with `actions` [n - 1, a] burn the carry in (action i
    was taken at frame i); `z` is a latent. Frames are the simulator's, of CarRacing uint8
    [96, 96, 3], or V's [64, 64, 3].

    Raises:
        ValueError: unknown options, or wrong shapes or types.
    """
    if not options:
        return None
    if set(options) not in _OPTION_SETS:
        raise ValueError(
            f"reset options are {sorted(options)}; expected 'frame', or 'frames' with 'actions', "
            "or 'z', or none."
        )
    initial = world.mdn_rnn.initial_carry()
    if "z" in options:
        z = _floats(options["z"], "z")
        if z.shape != (world.latent_size,) or not np.all(np.isfinite(z)):
            raise ValueError(
                f"options['z'] has shape {z.shape}; expected ({world.latent_size},), finite. "
                "Encode a frame with world_model.encode, or pass it as 'frame'."
            )
        return jnp.asarray(z), initial
    if "frame" in options:
        return _encode(world, _images(options["frame"], "frame", world.task)[None])[0], initial
    images = _images(options["frames"], "frames", world.task)
    actions = _floats(options["actions"], "actions")
    shape = (len(images) - 1, world.task.action_size)
    if actions.shape != shape or not np.all(np.isfinite(actions)):
        raise ValueError(
            f"options['actions'] has shape {actions.shape}; expected {shape}, "
            f"finite: one continuous action between each two of the {len(images)} frames."
        )
    z = _encode(world, images)
    return z[-1], _burn_in(world, z, actions)


def _floats(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"options[{name!r}] is {value!r}; expected numbers.") from error


def _images(frames: Any, name: str, task: Task) -> np.ndarray:
    frames, raw = np.asarray(frames), task.preprocess.frame_shape
    many = name == "frames"
    fits = frames.shape[-3:] in (raw, IMAGE_SHAPE) and frames.ndim == 3 + many
    if not fits or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(
            f"options[{name!r}] has shape {frames.shape} and dtype {frames.dtype}; expected uint8 "
            f"{'[n, ' if many else '['}{raw[0]}, {raw[1]}, 3] as {task.id} gives them, or the same "
            "in 64x64 from wm_env.preprocess."
        )
    return task.preprocess(frames) if frames.shape[-3:] == raw else frames


@eqx.filter_jit
def _encode(world: WorldModel, images: Any) -> jax.Array:
    return jax.vmap(world.encode)(images)


@eqx.filter_jit
def _burn_in(world: WorldModel, z: jax.Array, actions: Any) -> Carry:
    return world.burn_in(z, actions)
