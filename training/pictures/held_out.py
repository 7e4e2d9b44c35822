"""Held-out episodes for M's pictures, of as many drivers as there are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.latents import EpisodeLatents, LatentShard
from training.store import is_held_out
from wm_env.shard import EpisodeRow, Shard
from wm_env.storage import StoreError


@dataclass(frozen=True)
class Drive:
    """A held-out episode of T steps with what was seen, uint8 [T + 1, 64, 64, 3]."""

    episode: EpisodeLatents
    images: np.ndarray


def held_out_episodes(shards: Sequence[LatentShard], count: int) -> list[EpisodeLatents]:
    """At most `count` held-out episodes, evenly spread over the shards that hold one out.

    Raises:
        StoreError: no shard does, or a file is damaged.
    """
    holding = [shard for shard in shards if _held_out_row(shard.rows)]
    if not holding:
        raise StoreError(
            "no episode is held out, because every latent shard has but one; collect more with "
            "`python -m training collect`, then encode it."
        )
    spread = np.linspace(0, len(holding), min(count, len(holding)), endpoint=False).astype(int)
    return [episode for at in spread for episode in holding[at].episodes(held_out=True)]


def held_out_drives(
    shards: Sequence[Shard], latent_shards: Sequence[LatentShard], count: int
) -> list[Drive]:
    """At most `count` held-out episodes with their images, each of another driver where possible.

    Those that left the field come first: there it matters most what M expects.

    Raises:
        StoreError: the latents are of other shards, none is held out, or a file is damaged.
    """
    latents_of = {shard.rows: shard for shard in latent_shards}
    pairs = {
        row: (shard, latents_of[shard.episodes])
        for shard in shards
        if (row := _held_out_row(shard.episodes)) and shard.episodes in latents_of
    }
    if not pairs:
        raise StoreError(
            f"none of {len(shards)} shards and {len(latent_shards)} latent shards has a held-out "
            "episode in common; run `python -m training latents` on this store."
        )
    drives = []
    for row in _of_different_drivers(sorted(pairs, key=lambda row: not row.off_field), count):
        shard, latent_shard = pairs[row]
        *_, (_, frames, _) = shard.bounds()
        (episode,) = latent_shard.episodes(held_out=True)
        drives.append(Drive(episode, shard.read("images", frames)))
    return drives


def _held_out_row(rows: Sequence[EpisodeRow]) -> EpisodeRow | None:
    return rows[-1] if is_held_out(rows, len(rows) - 1) else None


def _of_different_drivers(rows: list[EpisodeRow], count: int) -> list[EpisodeRow]:
    """The first row of each driver, then the second of each, and so on."""
    turns: dict[str, int] = {}
    ranked = []
    for row in rows:
        turns[row.driver] = turns.get(row.driver, -1) + 1
        ranked.append((turns[row.driver], row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])][:count]
