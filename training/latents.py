"""The store seen by V: for every image, plain and mirrored, the posterior that M learns from.

A file `latents-00000.safetensors` a shard holds `mu`, `log_sigma`, `mirrored_mu`,
`mirrored_log_sigma`, float16 [frames, z], and the step arrays of the shard; its metadata names the
V that made it, so that a new V makes them anew.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from wm_env.preprocess import mirror, mirror_action
from wm_env.progress import progress_bar
from wm_env.shard import EpisodeRow, Shard, StoreError, publish, temporary_path
from wm_env.vae import VAE, Posterior

_STEP_ARRAYS = ("actions", "tiles", "off_field")


@dataclass(frozen=True)
class EpisodeLatents:
    """One episode for M.

    mu and log_sigma float16 [T + 1, z], actions [T, 3], tiles and off_field [T].
    """

    row: EpisodeRow
    mu: np.ndarray
    log_sigma: np.ndarray
    actions: np.ndarray
    tiles: np.ndarray
    off_field: np.ndarray


@dataclass(frozen=True)
class LatentShard:
    """A finished latent file and the rows of its episodes."""

    path: Path
    rows: tuple[EpisodeRow, ...]

    def episodes(
        self, *, held_out: bool = False, mirrored: Callable[[], bool] = lambda: False
    ) -> Iterator[EpisodeLatents]:
        """The training episodes (or the held-out last one).

        Each is mirrored when `mirrored()` says so.
        """
        arrays = load_file(self.path)
        frame = step = 0
        for index, row in enumerate(self.rows):
            frames = slice(frame, frame + row.length + 1)
            steps = slice(step, step + row.length)
            frame, step = frames.stop, steps.stop
            if (index == len(self.rows) - 1) != held_out:
                continue
            flip = mirrored()
            prefix = "mirrored_" if flip else ""
            actions = arrays["actions"][steps]
            yield EpisodeLatents(
                row,
                arrays[prefix + "mu"][frames],
                arrays[prefix + "log_sigma"][frames],
                mirror_action(actions) if flip else actions,
                arrays["tiles"][steps],
                arrays["off_field"][steps],
            )


def encode_store(shards: list[Shard], vae: VAE, out: Path) -> list[LatentShard]:
    """Encode every shard; files that this very V made are kept."""
    out.mkdir(parents=True, exist_ok=True)
    fingerprint = vae_fingerprint(vae)
    done = []
    with progress_bar("encoding", total=len(shards), unit="shards") as bar:
        for shard in shards:
            path = out / f"{shard.path.stem.replace('shard', 'latents')}.safetensors"
            if not (path.exists() and _made_by(path, fingerprint)):
                _encode_shard(shard, vae, path, fingerprint)
            done.append(LatentShard(path, shard.episodes))
            bar.advance(1, frames=shard.frames)
    return done


def open_latents(out: Path) -> list[LatentShard]:
    """All latent files in a folder.

    Raises:
        StoreError: when there is none.
    """
    paths = sorted(Path(out).glob("latents-*.safetensors"))
    if not paths:
        raise StoreError(
            f"no latents in {out}; run `python -m training latents` with this --out first."
        )
    return [LatentShard(path, _rows(path)) for path in paths]


def vae_fingerprint(vae: VAE) -> str:
    """sha256 of V's weights: the name of a V."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(vae, eqx.is_array)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _encode_shard(shard: Shard, vae: VAE, path: Path, fingerprint: str) -> None:
    images = shard.read("images")
    arrays = {name: np.ascontiguousarray(shard.read(name)) for name in _STEP_ARRAYS}
    for prefix, seen in (("", images), ("mirrored_", mirror(images))):
        mu, log_sigma = encode_images(vae, seen)
        arrays[prefix + "mu"], arrays[prefix + "log_sigma"] = (
            mu.astype(np.float16),
            log_sigma.astype(np.float16),
        )
    temporary = temporary_path(path)
    rows = json.dumps([asdict(row) for row in shard.episodes])
    save_file(arrays, temporary, metadata={"vae": fingerprint, "episodes": rows})
    publish(temporary, path)


def _made_by(path: Path, fingerprint: str) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("vae") == fingerprint
    except Exception:  # a damaged file is made again
        return False


def _rows(path: Path) -> tuple[EpisodeRow, ...]:
    with safe_open(path, framework="numpy") as file:
        return tuple(EpisodeRow(**row) for row in json.loads(file.metadata()["episodes"]))


def encode_images(
    vae: VAE, images: np.ndarray, *, batch: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and log sigmas, float32 [n, z] each, of uint8 images [n, 64, 64, 3]."""
    parts = []
    for start in range(0, len(images), batch):
        block = images[start : start + batch]
        padded = np.zeros((batch, *block.shape[1:]), np.uint8)  # one shape, one compilation
        padded[: len(block)] = block
        posterior = _encode(vae, jnp.asarray(padded))
        parts.append(
            (np.asarray(posterior.mu)[: len(block)], np.asarray(posterior.log_sigma)[: len(block)])
        )
    return np.concatenate([mu for mu, _ in parts]), np.concatenate(
        [log_sigma for _, log_sigma in parts]
    )


@eqx.filter_jit
def _encode(vae: VAE, images: Array) -> Posterior:
    # Sixteen images at a time stay in a CPU's cache, which is a third faster than all at once.
    return jax.lax.map(vae.encode, images, batch_size=16)
