"""All pictures of M, of few enough episodes to be done in seconds."""

from pathlib import Path

from agents.moments import Watched, write_moments
from training.latents import LatentShard
from training.pictures.calibration import calibration_curves
from training.pictures.dreams import open_loop_dreams
from training.pictures.foretelling import foretell, world_of
from training.pictures.held_out import Drive, held_out_drives, held_out_episodes
from training.pictures.tiles import tiles_along
from wm_env.mdn_rnn import MDNRNN
from wm_env.shard import Shard
from wm_env.vae import VAE
from wm_env.world_model import WorldModel


def memory_pictures(
    vae: VAE,
    mdn_rnn: MDNRNN,
    shards: list[Shard],
    latent_shards: list[LatentShard],
    out: Path,
    *,
    drives: int = 4,
    episodes: int = 48,
) -> None:
    """Write M's pictures of held-out episodes into a folder.

    `dreams.png`, `tiles.png` and a `debug_grid-DRIVER.png` of `drives` of them, each of another
    driver where possible; `calibration.png` of at most `episodes`. The last two are of tiles: a
    task without has none, and `returns.png` instead of `tiles.png`.

    Raises:
        StoreError: the latents are of other shards, none is held out, or a file is damaged.
    """
    task = latent_shards[0].task
    world = world_of(vae, mdn_rnn, task)
    shown = held_out_drives(shards, latent_shards, drives)
    open_loop_dreams(world, shown, out / "dreams.png")
    name = "tiles.png" if task.pays_tiles else "returns.png"
    tiles_along(world, [drive.episode for drive in shown], out / name)
    if not task.pays_tiles:
        return
    for drive in shown:
        row = drive.episode.row
        debug_grid(world, drive, out / f"debug_grid-{row.driver}-{row.seed}.png")
    calibration_curves(world, held_out_episodes(latent_shards, episodes), out / "calibration.png")


def debug_grid(world: WorldModel, drive: Drive, path: Path) -> None:
    """The moments of a held-out drive that surprised M, and those where it promised too much."""
    (foretold,) = foretell(world, [drive.episode])
    row, z = drive.episode.row, drive.episode.mu
    name = f"{row.driver}, track {row.seed}"
    write_moments(world, Watched(name, drive.images, z, drive.episode.tiles, foretold), path)
