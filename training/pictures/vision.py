"""Pictures of V: what it keeps of each driver's images, and what each latent dimension means."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from agents.sheet import Block, Strip, write_sheet
from wm_env.vae import VAE, Posterior

UNUSED_SIGMA = 0.9  # a posterior that stays so close to the prior's sigma of 1 tells nothing
REACH = np.linspace(-2.5, 2.5, 11, dtype=np.float32)  # of a traversal, in standard deviations

_BATCH = 16  # images at a time stay in a CPU's cache


@dataclass(frozen=True)
class Dimension:
    """A latent dimension over many images: how far its mean varies, and V's average sigma of it."""

    index: int
    deviation: float
    sigma: float


def vision_pictures(vae: VAE, images: np.ndarray, drivers: Sequence[str], out: Path) -> None:
    """Write `reconstructions.png` and `traversals.png` of held-out images into a folder.

    `images`, uint8 [n, 64, 64, 3], and the driver of each are those of `held_out_images`.
    """
    reconstructions(vae, images, drivers, out / "reconstructions.png")
    traversals(vae, images, out / "traversals.png")


def reconstructions(
    vae: VAE, images: np.ndarray, drivers: Sequence[str], path: Path, *, per_driver: int = 12
) -> None:
    """Two rows a driver: held-out images, uint8 [n, 64, 64, 3], above what V keeps of them.

    `drivers` names the driver of each image. Of each, `per_driver` are drawn; its error is the
    mean of all.
    """
    rebuilt, errors = rebuild(vae, images)
    blocks = []
    for driver in sorted(set(drivers)):
        mine = np.flatnonzero(np.asarray(drivers) == driver)
        shown = mine[:per_driver]
        notes = [f"{error:.1f}" for error in errors[shown]]
        title = f"{driver}: squared error {errors[mine].mean():.1f} (mean of {len(mine)} images)"
        strips = [Strip("real", images[shown]), Strip("reconstruction", rebuilt[shown], notes)]
        blocks.append(Block(title, [""] * per_driver, strips))
    write_sheet(
        path,
        "What V keeps of held-out images, by driver\n"
        "Below each real image: what V decodes from the mean of its posterior. The number is the "
        "squared error of the pair,\nsummed over 64 x 64 pixels and 3 colours of intensities in "
        f"[0, 1]; its mean over all {len(images)} images is {errors.mean():.1f}.",
        blocks,
    )


def traversals(vae: VAE, images: np.ndarray, path: Path) -> None:
    """A row for each used dimension of the latent, moved about a real image's latent and decoded.

    It is one of `images`, uint8 [n, 64, 64, 3], that tells V more than three quarters of them do:
    most often a bend, which shows more dimensions at work than grass.
    """
    posterior = _encode(vae, images)
    mu, used = np.asarray(posterior.mu), used_dimensions(posterior)
    base = int(np.argsort(nats(posterior))[3 * len(images) // 4])
    strips = [
        Strip(
            f"z[{one.index}]: std {one.deviation:.2f}\nsigma {one.sigma:.2f}",
            to_uint8(_decode(vae, moved_along(mu[base], one))),
        )
        for one in used
    ]
    # A V at the beginning of its fit uses none.
    moved = [Block("", [f"{reach:+.1f} std" for reach in REACH], strips)] if used else []
    write_sheet(
        path,
        f"What the dimensions of V's latent do: {len(used)} of {mu.shape[1]} are used\n"
        "Each row moves one dimension of the latent of the real image on top and decodes it, from "
        f"{REACH[0]} to {REACH[-1]} standard deviations.\n"
        f"std: of the dimension's posterior mean over {len(images)} held-out images, by which rows "
        f"are sorted. sigma: V's own uncertainty, on average;\ndimensions with sigma above "
        f"{UNUSED_SIGMA} (the prior has 1) tell nothing and are left out.",
        [Block("", [""], [Strip("the real image", images[base : base + 1])]), *moved],
    )


def rebuild(vae: VAE, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What V decodes from the mean latents of images, uint8 [n, 64, 64, 3], and the errors [n].

    An error is squared and summed over pixels and colours, of intensities in [0, 1].
    """
    decoded = np.asarray(_decode(vae, _encode(vae, images).mu))
    errors = np.sum((decoded - images.astype(np.float32) / 255.0) ** 2, axis=(1, 2, 3))
    return to_uint8(decoded), errors


def nats(posterior: Posterior) -> np.ndarray:
    """How much V keeps of each image: the KL divergence [n] of posteriors [n, z] from the prior."""
    mu, log_sigma = np.asarray(posterior.mu), np.asarray(posterior.log_sigma)
    return 0.5 * np.sum(mu**2 + np.exp(2 * log_sigma) - 2 * log_sigma - 1, axis=1)


def used_dimensions(posterior: Posterior) -> list[Dimension]:
    """The dimensions that V uses, of posteriors [n, z]; those whose mean varies most come first."""
    deviation = np.asarray(posterior.mu).std(axis=0)
    sigma = np.exp(np.asarray(posterior.log_sigma)).mean(axis=0)
    return [
        Dimension(int(index), float(deviation[index]), float(sigma[index]))
        for index in np.argsort(-deviation)
        if sigma[index] <= UNUSED_SIGMA
    ]


def moved_along(z: np.ndarray, dimension: Dimension) -> np.ndarray:
    """The latent z [z] with one dimension moved by each of REACH: [reach, z]."""
    moved = np.repeat(z[None], len(REACH), axis=0)
    moved[:, dimension.index] += REACH * np.float32(dimension.deviation)
    return moved


def to_uint8(decoded: Array | np.ndarray) -> np.ndarray:
    """Intensities in [0, 1] as uint8."""
    return np.round(np.asarray(decoded) * 255).astype(np.uint8)


@jax.jit
def _encode(vae: VAE, images: Array | np.ndarray) -> Posterior:
    return jax.lax.map(vae.encode, jnp.asarray(images), batch_size=_BATCH)


@jax.jit
def _decode(vae: VAE, z: Array | np.ndarray) -> Array:
    return jax.lax.map(vae.decode, jnp.asarray(z), batch_size=_BATCH)
