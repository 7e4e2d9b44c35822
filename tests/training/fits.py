"""Tiny fits of V and of M on made-up data, for tests here and in processes of their own."""

from pathlib import Path

import jax

from tests.training.episodes import made_up_episode
from training.latents import LatentShard, encode_store, open_latents
from training.memory import MemoryConfig, fit_memory
from training.store import open_store, shard_path
from training.vision import VisionConfig, fit_vision
from wm_env.mdn_rnn import MDNRNNConfig
from wm_env.shard import Shard, write_shard
from wm_env.vae import VAE, VAEConfig

VISION = VisionConfig(
    vae=VAEConfig(latent_size=4, encoder_channels=(2,) * 4, decoder_channels=(2,) * 3),
    batch=8,
    group=4,
    steps=7,
    every=3,
)
MEMORY = MemoryConfig(
    mdn_rnn=MDNRNNConfig(latent_size=4, hidden_size=8),
    batch=8,
    length=8,
    burn_in=4,
    steps=7,
    every=3,
)


def write_data(folder: Path, *, first_seed: int = 0) -> tuple[list[Shard], list[LatentShard]]:
    """Two shards of four episodes, and latents of them."""
    for index in range(2):
        seeds = range(first_seed + 10 * index, first_seed + 10 * index + 4)
        episodes = [made_up_episode(seed, plain=True) for seed in seeds]
        write_shard(shard_path(folder / "data", index), episodes, {})
    shards = open_store(folder / "data")
    vae = VAE(VISION.vae, key=jax.random.key(0))
    return shards, encode_store(shards, vae, folder / "latents")


def fit_both(folder: Path, out: Path) -> None:
    """Fit V and M on what `write_data` left in a folder."""
    fit_vision(open_store(folder / "data"), VISION, out / "vision")
    fit_memory(open_latents(folder / "latents"), MEMORY, out / "memory")
