"""Open-loop error: how far a dream that is fed a real drive's actions gets from that drive.

Errors mean something beside others: of the frame as it was when the dream began, of the same
policy's frame on another track, and of V's own reconstruction, below which no dream can get.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_env.fidelity.drives import Drive
from wm_env.fidelity.estimates import Estimate
from wm_env.fidelity.moments import Moment, burned_in, groups
from wm_env.foresight import dream_on
from wm_env.mdn_rnn import Carry
from wm_env.progress import progress_bar
from wm_env.world_model import WorldModel

SAMPLED, LIKELIEST = "dream, temperature 1", "dream, temperature 0"
STILL, ELSEWHERE, V_ALONE = "as it was", "another track", "V alone"


@dataclass(frozen=True)
class OpenLoopConfig:
    """Where dreams begin, how long they last, and how many of them."""

    horizons: tuple[int, ...] = (1, 10, 50, 200)  # steps
    first: int = 60  # frame; CarRacing zooms in during the first 50
    every: int = 200  # frames between one beginning and the next
    samples: int = 4  # dreams at temperature 1 from each

    def starts(self, length: int) -> range:
        """Frames of a drive from which the longest horizon fits into it."""
        return range(self.first, length - max(self.horizons) + 1, self.every)

    def moments(self, length: int) -> set[int]:
        """Frames whose images are compared."""
        return {start + step for start in self.starts(length) for step in self.horizons}


@dataclass(frozen=True)
class OpenLoop:
    """Errors by what is compared with the real drive, one for each horizon."""

    horizons: tuple[int, ...]
    z: dict[str, tuple[Estimate, ...]]  # root mean square over the latent's dimensions
    pixels: dict[str, tuple[Estimate, ...]]  # mean absolute difference, of 255

    @classmethod
    def across(cls, members: Sequence["OpenLoop"]) -> "OpenLoop":
        """The mean errors of an ensemble's members."""

        def mean(unit: str) -> dict[str, tuple[Estimate, ...]]:
            tables = [getattr(one, unit) for one in members]
            return {
                name: tuple(map(Estimate.across, zip(*(one[name] for one in tables), strict=True)))
                for name in tables[0]
            }

        return cls(members[0].horizons, mean("z"), mean("pixels"))


def open_loop(
    world: WorldModel,
    drives: Sequence[Drive],
    config: OpenLoopConfig,
    *,
    steps: int,
    seed: int = 0,
    show: bool = True,
) -> OpenLoop:
    """Errors from all windows that fit into `drives`, of at most `steps` frames each.

    The drives' images must hold `config.moments(steps)`.
    """
    windows = [Moment(drive, time) for drive in drives for time in config.starts(drive.length)]
    # So that neighbours are on different tracks, and one can stand for "another track".
    windows.sort(key=lambda window: (window.drive.policy, window.time, window.drive.seed))
    in_z: dict[str, list[np.ndarray]] = {SAMPLED: [], LIKELIEST: [], STILL: [], ELSEWHERE: []}
    in_pixels: dict[str, list[np.ndarray]] = {**{name: [] for name in in_z}, V_ALONE: []}
    total = len(groups(windows))
    with progress_bar("open loop", total=total, unit="groups", show=show) as bar:
        for index, group in enumerate(groups(windows)):
            key = jax.random.fold_in(jax.random.key(seed), index)
            real = _at(group, config.horizons, world.latent_size)
            count = min(len(group), len(windows) - index * len(group))
            for name, z in _compared(world, group, real, config, steps, key):
                if name in in_z:
                    in_z[name].append(_rms(z - real[:, None])[:count])
                pictures = np.asarray(_decode(world, jnp.asarray(z[:, 0])))
                in_pixels[name].append(_image_error(pictures, group, config.horizons)[:count])
            bar.advance(1)
    return OpenLoop(config.horizons, _estimates(in_z, config), _estimates(in_pixels, config))


@eqx.filter_jit
def _dream_along(
    world: WorldModel,
    z: Float[Array, "n z"],
    carries: Carry,
    actions: Float[Array, "n t a"],
    keys: Array,
    temperature: Array,
) -> Float[Array, "n samples t z"]:
    """Latents of `samples` dreams from each z and carry, told the same actions."""

    def window(z: Array, carry: Carry, actions: Array, own: Array) -> Array:
        def one(key: Array) -> Array:
            key = jax.random.fold_in(key, own)
            return dream_on(world, z, carry, actions, key=key, temperature=temperature).z

        return jax.vmap(one)(keys)

    return jax.vmap(window)(z, carries, actions, jnp.arange(len(z)))


def _compared(
    world: WorldModel,
    group: list[Moment],
    real: np.ndarray,
    config: OpenLoopConfig,
    steps: int,
    key: Array,
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and latents [n, samples, horizons, z] of what is compared with the real latents."""
    longest, at = max(config.horizons), np.array(config.horizons) - 1
    z = jnp.stack([moment.z for moment in group])
    actions = jnp.stack([drive.actions[time : time + longest] for drive, time in group])
    begin = z, burned_in(world.mdn_rnn, group, steps), actions
    for name, temperature, samples in ((SAMPLED, 1.0, config.samples), (LIKELIEST, 0.0, 1)):
        keys = jax.random.split(key, samples)
        dreamt = _dream_along(world, *begin, keys, jnp.float32(temperature))
        yield name, np.asarray(dreamt)[:, :, at]
    yield STILL, np.broadcast_to(z[:, None], real.shape)[:, None]
    yield ELSEWHERE, np.roll(real, 1, axis=0)[:, None]
    yield V_ALONE, real[:, None]


def _at(group: list[Moment], horizons: tuple[int, ...], latent_size: int) -> np.ndarray:
    rows = [[drive.z[time + step] for step in horizons] for drive, time in group]
    return np.array(rows, np.float32).reshape(len(group), len(horizons), latent_size)


def _rms(difference: np.ndarray) -> np.ndarray:
    """[n, horizons] of [n, samples, horizons, z]."""
    return np.sqrt(np.mean(np.square(difference), axis=-1)).mean(axis=1)


def _image_error(
    pictures: np.ndarray, group: list[Moment], horizons: tuple[int, ...]
) -> np.ndarray:
    """[n, horizons] of [n, horizons, 64, 64, 3]."""
    real = np.stack([[drive.images[time + step] for step in horizons] for drive, time in group])
    return np.abs(pictures.astype(np.int16) - real).mean(axis=(2, 3, 4))


@eqx.filter_jit
def _decode(world: WorldModel, z: Array) -> Array:
    return jax.vmap(jax.vmap(world.decode))(z)


def _estimates(
    errors: dict[str, list[np.ndarray]], config: OpenLoopConfig
) -> dict[str, tuple[Estimate, ...]]:
    columns = range(len(config.horizons))
    return {
        name: tuple(
            Estimate.of([row[column] for part in parts for row in part]) for column in columns
        )
        for name, parts in errors.items()
    }
