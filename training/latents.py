"""The store seen by V: for every image, plain and where it may be mirrored, what M learns from.

A file `latents-00000.safetensors` a shard holds `mu`, `log_sigma`, `mirrored_mu`,
`mirrored_log_sigma`, float16 [frames, z], how the car moved, and the step arrays of the shard; its
metadata names the V that made it and the images, so that a new V or other driving makes them anew.
A task that is not symmetric has no mirrored ones, nor has a V that is `sampled`: its draw of a
mirrored image is not the one that the driver acted upon. A task without tiles has its rewards in
their place and no car.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import safe_open
from safetensors.numpy import save_file

from training.car_motion import motion_of
from training.store import is_held_out
from wm_env.motion import MOTION_MIRRORED, MOTION_UNITS
from wm_env.preprocess import mirror
from wm_env.progress import progress_bar
from wm_env.shard import EpisodeRow, Shard, bounds
from wm_env.storage import StoreError, appearing_whole
from wm_env.task import CAR_RACING, Task, marked
from wm_env.vae import VAE, Posterior, VAEConfig
from wm_env.weights import digest_of

_BATCH = 512  # images that are read and encoded at a time


@dataclass(frozen=True)
class EpisodeLatents:
    """One episode for M, as V shows it to its drivers (`VAE.latent`).

    mu and log_sigma float16 [T + 1, z], actions [T, a], tiles and off_field [T]. Of a task without
    tiles these are rewards, in its unit, and whether it is terminated. motion float16 [T + 1, 10],
    see `wm_env.motion`, is None where there is no car.
    """

    row: EpisodeRow
    mu: np.ndarray
    log_sigma: np.ndarray
    actions: np.ndarray
    tiles: np.ndarray
    off_field: np.ndarray
    motion: np.ndarray | None = None


@dataclass(frozen=True)
class LatentShard:
    """A finished latent file, the rows of its episodes, and what they are of."""

    path: Path
    rows: tuple[EpisodeRow, ...]
    task: Task = CAR_RACING

    def episodes(
        self, *, held_out: bool = False, mirrored: Callable[[], bool] = lambda: False
    ) -> Iterator[EpisodeLatents]:
        """The training episodes, or the held-out one; only what is asked for is read.

        Each is mirrored when `mirrored()` says so, where there are mirrored ones.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            with safe_open(self.path, framework="numpy") as file:
                has_mirrored = "mirrored_mu" in file.keys()  # noqa: SIM118 (not a dict)
                for index, (row, frames, steps) in enumerate(bounds(self.rows)):
                    if is_held_out(self.rows, index) != held_out:
                        continue
                    flip = has_mirrored and mirrored()
                    prefix = "mirrored_" if flip else ""
                    actions, motion = file.get_slice("actions")[steps], None
                    if self.task.pays_tiles:
                        motion = file.get_slice("motion")[frames]
                        motion = motion * np.array(MOTION_MIRRORED, np.float16) if flip else motion
                    yield EpisodeLatents(
                        row,
                        file.get_slice(prefix + "mu")[frames],
                        file.get_slice(prefix + "log_sigma")[frames],
                        self.task.mirror_action(actions) if flip else actions,
                        file.get_slice("tiles")[steps],
                        file.get_slice("off_field")[steps],
                        motion,
                    )
        except Exception as error:  # safetensors' and the system's kinds
            raise _damaged(self.path, error) from error


def encode_store(shards: list[Shard], vae: VAE, out: Path) -> list[LatentShard]:
    """Encode every shard into a local folder; files of this very V and these images are kept."""
    for unfinished in out.glob(".latents-*"):
        unfinished.unlink(missing_ok=True)
    fingerprint = vae_fingerprint(vae)
    done = []
    with progress_bar("encoding", total=len(shards), unit="shards") as bar:
        for shard in shards:
            path = out / f"{shard.path.stem.replace('shard', 'latents', 1)}.safetensors"
            made_from = {"vae": fingerprint, "images": shard.manifest["checksums"]["images"]}
            made_from |= shard.task.mark
            if vae.config.sampled:  # files of before this was so hold mirrored ones
                made_from["mirrored"] = "no"
            if shard.task.pays_tiles:
                made_from["motion"] = ", ".join(MOTION_UNITS)
            if shard.task.reward_unit is not None:
                made_from["reward_unit"] = f"{shard.task.reward_unit:g}"
            if not (path.exists() and _made_from(path) == made_from):
                _encode_shard(shard, vae, path, made_from)
            done.append(LatentShard(path, shard.episodes, shard.task))
            bar.advance(1, frames=shard.frames)
    for left_over in set(out.glob("latents-*.safetensors")) - {latents.path for latents in done}:
        left_over.unlink()  # of shards that are not in the store now: M must not learn from them
    return done


def open_latents(out: Path) -> list[LatentShard]:
    """All latent files in a folder.

    Raises:
        StoreError: when there is none, or one is damaged.
    """
    paths = sorted(Path(out).glob("latents-*.safetensors"))
    if not paths:
        raise StoreError(
            f"no latents in {out}; run `python -m training latents` with this --out first."
        )
    return [LatentShard(path, _rows(path), marked(_made_from(path))) for path in paths]


def check_encoded_by(shards: Sequence[LatentShard], vae: VAE) -> None:
    """Look whether this very V encoded the files.

    Raises:
        StoreError: another did.
    """
    fingerprint = vae_fingerprint(vae)
    for shard in shards:
        if _made_from(shard.path).get("vae") != fingerprint:
            raise StoreError(
                f"latents {shard.path} were encoded by another V than the one at hand; run `python "
                "-m training latents` with that --out, which makes them anew."
            )


def two_sided(task: Task, vae: VAEConfig) -> bool:
    """Whether latents of mirrored images are made.

    Not where V shows samples: no driver acted upon those of a mirrored image.
    """
    return task.symmetric and not vae.sampled


def vae_fingerprint(vae: VAE) -> str:
    """sha256 of V's weights, and of what it shows: the name of a V."""
    return digest_of(vae, salt=b"sampled" * vae.config.sampled)


def _encode_shard(shard: Shard, vae: VAE, path: Path, made_from: dict[str, str]) -> None:
    at = (slice(start, start + _BATCH) for start in range(0, shard.frames, _BATCH))
    views: dict[str, Callable] = {"": lambda images: images}
    if two_sided(shard.task, vae.config):
        views["mirrored_"] = mirror
    encoded = [
        [part for view in views.values() for part in _encode_images(vae, view(images))]
        for images in shard.parts("images", at)
    ]
    names = [f"{view}{name}" for view in views for name in ("mu", "log_sigma")]
    columns = zip(names, zip(*encoded, strict=True), strict=True)
    arrays = {name: np.concatenate(parts) for name, parts in columns}
    arrays |= {name: np.ascontiguousarray(array) for name, array in _steps(shard).items()}
    if shard.task.pays_tiles:
        arrays["motion"] = _motion(shard, arrays["actions"])
    rows = json.dumps([asdict(row) for row in shard.episodes])
    with appearing_whole(path) as temporary:
        save_file(arrays, temporary, metadata={**made_from, "episodes": rows})


def _steps(shard: Shard) -> dict[str, np.ndarray]:
    """What was done in each step, and what M's heads are to foretell of it."""
    unit = shard.task.reward_unit
    if unit is None:
        return {name: shard.read(name) for name in ("actions", "tiles", "off_field")}
    return {
        "actions": shard.read("actions"),
        "tiles": shard.read("rewards") / np.float32(unit),
        "off_field": shard.read("terminated"),
    }


def _motion(shard: Shard, actions: np.ndarray) -> np.ndarray:
    """How the car moved in each episode, float16 [frames, 7]."""
    episodes = [(frames, steps) for _, frames, steps in shard.bounds()]
    images = shard.parts("images", (frames for frames, _ in episodes))
    moved = [
        motion_of(seen, actions[steps]) for seen, (_, steps) in zip(images, episodes, strict=True)
    ]
    return np.concatenate(moved, dtype=np.float16)


def _encode_images(vae: VAE, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents and log sigmas, float16 [n, z] each, of at most `_BATCH` uint8 images."""
    padded = np.zeros((_BATCH, *images.shape[1:]), np.uint8)  # one shape, one compilation
    padded[: len(images)] = images
    posterior = _encode(vae, jnp.asarray(padded))
    mu, log_sigma = (
        np.asarray(part, np.float16)[: len(images)] for part in (posterior.mu, posterior.log_sigma)
    )
    return mu, log_sigma


@eqx.filter_jit
def _encode(vae: VAE, images: Array) -> Posterior:
    def seen(image: Array) -> Posterior:
        return Posterior(vae.latent(image), vae.encode(image).log_sigma)

    # Sixteen images at a time stay in a CPU's cache, which is a third faster than all at once.
    return jax.lax.map(seen, images, batch_size=16)


def _made_from(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            found = file.metadata() or {}
    except Exception:  # a damaged file is made again
        return {}
    return {name: text for name, text in found.items() if name != "episodes"}


def _rows(path: Path) -> tuple[EpisodeRow, ...]:
    try:
        with safe_open(path, framework="numpy") as file:
            return tuple(EpisodeRow(**row) for row in json.loads(file.metadata()["episodes"]))
    except Exception as error:  # safetensors', json's and the system's kinds
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"latents {path} cannot be read ({error!r}); run `python -m training latents` with that "
        "--out, which makes damaged files anew."
    )
