"""Pictures that say whether a fit worked."""

from pathlib import Path

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from wm_env.vae import VAE


def reconstructions(
    vae: VAE, images: np.ndarray, drivers: list[str], path: Path, *, per_driver: int = 12
) -> None:
    """A sheet, two rows a driver: held-out images [n, 64, 64, 3] above V's reconstructions."""
    rows = []
    for driver in sorted(set(drivers)):
        mine = images[[index for index, name in enumerate(drivers) if name == driver][:per_driver]]
        mine = np.concatenate([mine, np.zeros((per_driver - len(mine), 64, 64, 3), np.uint8)])
        decoded = jax.vmap(lambda image: vae.decode(vae.encode_mean(image)))(jnp.asarray(mine))
        decoded = np.asarray(jnp.round(decoded * 255)).astype(np.uint8)
        rows += [np.concatenate(list(mine), axis=1), np.concatenate(list(decoded), axis=1)]
    sheet = np.repeat(np.repeat(np.concatenate(rows), 2, axis=0), 2, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, sheet)
