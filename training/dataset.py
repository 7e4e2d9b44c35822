"""Streams over a store: shuffled images for V, windows of latents for M.

Memory does not grow with the set. ImageStream holds two pools, one in use and one being read, of
POOL_CHUNKS * CHUNK_FRAMES images of 12,288 bytes: 151 MB, and 8 bytes for each chunk of 64 images.
WindowStream holds two groups of `group` latent shards, 155 bytes a frame at 32 latents: 60 MB for
12 shards of 16 episodes of 1,000 steps. Only the shards' manifests, 1 kB an episode, stay.

An order is a function of (seed, step): a run that goes on at step n sees what it would have. What
is held out, `training.store.is_held_out` says.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from training.latents import EpisodeLatents, LatentShard
from training.store import is_held_out
from training.trouble import around_losses
from wm_env.motion import MOTION_SIZE
from wm_env.preprocess import IMAGE_SHAPE
from wm_env.shard import CHUNK_FRAMES, Shard
from wm_env.storage import StoreError

POOL_CHUNKS = 96  # 96 * 64 * 12,288 bytes = 75 MB

_Item = TypeVar("_Item")
_Window = tuple[EpisodeLatents, int, int]  # the episode, its first step, and that after its last


class ImageStream:
    """Shuffled training images of a store, as uint8 [batch, 64, 64, 3].

    Chunks are visited in random order each epoch; images are shuffled among the chunks of a pool.
    """

    def __init__(self, shards: list[Shard], *, batch: int, seed: int):
        self._shards, self._batch, self._seed = shards, batch, seed
        self._frames = np.array([_training_frames(shard) for shard in shards])
        self._first_chunk = np.cumsum([0, *-(-self._frames // CHUNK_FRAMES)])  # of each shard
        self._chunks = int(self._first_chunk[-1])
        if self._frames.sum() < batch:
            raise StoreError(
                f"the store holds fewer training images than one batch of {batch}; collect more, "
                "or ask for a smaller batch."
            )
        self._pools = -(-self._chunks // POOL_CHUNKS)
        fewest_images = self._chunks // self._pools * CHUNK_FRAMES
        self._pool_batches = max(1, int(0.9 * fewest_images) // batch)

    def batches(self, start_step: int = 0) -> Iterator[np.ndarray]:
        """Batches for ever, from that of `start_step` on.

        Raises:
            StoreError: a shard turns out to be damaged.
        """
        first_pool, skip = divmod(start_step, self._pool_batches)
        for pool, images in _prefetched(self._pool, first_pool):
            order = np.random.default_rng([self._seed, 1, pool])
            for index in range(self._pool_batches):
                # With replacement between batches, without within one: every pool gives equally
                # many batches.
                chosen = order.choice(len(images), self._batch, replace=len(images) < self._batch)
                if pool > first_pool or index >= skip:
                    yield images[chosen]
            del images  # before the pool after the next is begun

    def _pool(self, pool: int) -> np.ndarray:
        """The images of a pool, shard by shard, so that each file is opened once."""
        epoch, position = divmod(pool, self._pools)
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(self._chunks)
        chosen = np.sort(order[position :: self._pools])
        owners = np.searchsorted(self._first_chunk, chosen, side="right") - 1
        images = np.empty((len(chosen) * CHUNK_FRAMES, *IMAGE_SHAPE), np.uint8)
        filled = 0
        for owner in np.unique(owners).tolist():
            starts = (chosen[owners == owner] - self._first_chunk[owner]) * CHUNK_FRAMES
            stops = np.minimum(starts + CHUNK_FRAMES, self._frames[owner])
            for part in self._shards[owner].parts("images", map(slice, starts, stops)):
                images[filled : filled + len(part)] = part
                filled += len(part)
        return images[:filled]


def held_out_images(
    shards: list[Shard], count: int, *, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """A fixed sample of held-out images, spread over the shards that hold an episode out.

    Returns the images, uint8 [count, 64, 64, 3], and the driver of each.

    Raises:
        StoreError: no shard holds one out, or one is damaged.
    """
    shards = [shard for shard in shards if _training_frames(shard) < shard.frames]
    if not shards:
        raise StoreError(
            "no episode is held out for validation, because every shard of the store has but one; "
            "collect more with `python -m training collect`."
        )
    random = np.random.default_rng(seed)
    images, drivers = [], []
    for index in range(count):
        shard = shards[index * len(shards) // count]
        frame = int(random.integers(_training_frames(shard), shard.frames))
        images.append(shard.read("images", slice(frame, frame + 1))[0])
        drivers.append(shard.episodes[-1].driver)
    return np.stack(images), drivers


def _training_frames(shard: Shard) -> int:
    """How many frames of a shard are for training; those held out come after them."""
    rows = shard.episodes
    return sum(row.length + 1 for at, row in enumerate(rows) if not is_held_out(rows, at))


def _prefetched(make: Callable[[int], _Item], first: int) -> Iterator[tuple[int, _Item]]:
    """(index, make(index)) for index = first, first + 1, …

    The next is made in a thread while one is used: two are in memory, if the user lets go of one
    before asking for the next.
    """
    with ThreadPoolExecutor(1) as thread:
        index, future = first, thread.submit(make, first)
        while True:
            item = future.result()
            future = thread.submit(make, index + 1)
            yield index, item
            del item
            index += 1


class Windows(NamedTuple):
    """A batch of windows for M, b windows of t steps.

    `weight` [b, t] is 0 in padding and burn-in; else 1, or more around the road's losses.

    z [b, t + 1, z]: the latents before and after each step; log_sigma the same, V's uncertainty of
    them. track_tiles [b]: how many tiles the window's track has. tiles and off_field [b, t], and
    motion [b, t + 1, 7], which is 0 of tasks without a car: those of `EpisodeLatents`.
    """

    z: np.ndarray
    log_sigma: np.ndarray
    actions: np.ndarray
    tiles: np.ndarray
    off_field: np.ndarray
    weight: np.ndarray
    track_tiles: np.ndarray
    motion: np.ndarray


class WindowStream:
    """Windows of training episodes (or held-out ones), half of them mirrored if they can be.

    An episode is cut every `length` steps from a random offset, so windows cover it evenly and its
    end, with its terminal, always belongs to one. A window that does not begin the episode is
    preceded by `burn_in` steps whose loss does not count, because h starts at 0 there, which no
    driver ever felt. `whole` episodes instead, of at most `length` steps, are never cut.
    Steps around the road's losses (`training.trouble`) weigh `trouble`.
    """

    def __init__(
        self,
        shards: list[LatentShard],
        *,
        batch: int,
        length: int,
        burn_in: int,
        seed: int,
        held_out: bool = False,
        whole: bool = False,
        trouble: float = 1.0,
        group: int = 12,
    ):
        self._shards, self._batch, self._length, self._burn_in = shards, batch, length, burn_in
        self._whole, self._trouble, self._seed = whole, trouble, seed
        self._held_out, self._group = held_out, min(group, len(shards))
        self._groups = -(-len(shards) // self._group)
        self._kind = "held-out" if held_out else "training"

    def batches(self, start_step: int = 0) -> Iterator[Windows]:
        """Batches for ever, from that of `start_step` on.

        Shards are read in groups, in random order.

        Raises:
            StoreError: a file is damaged, or no group has enough windows for a batch.
        """
        step = full = 0
        for group, episodes in _prefetched(self._load_group, 0):
            for windows in self._group_batches(group, episodes):
                if step >= start_step:
                    yield self._stack(windows)
                step, full = step + 1, group
                del windows
            del episodes  # before the group after the next is begun
            if group - full >= self._groups:
                raise StoreError(
                    f"no {self._group} latent shards hold enough {self._kind} windows of "
                    f"{self._length} steps for one batch of {self._batch}; collect more, or ask "
                    "for a smaller batch."
                )

    def _group_batches(self, group: int, episodes: list[EpisodeLatents]) -> Iterator[list[_Window]]:
        random = np.random.default_rng([self._seed, 3, group])
        windows = [window for episode in episodes for window in self._cut(episode, random)]
        order = random.permutation(len(windows))
        for start in range(0, len(order) - self._batch + 1, self._batch):
            yield [windows[index] for index in order[start : start + self._batch]]

    def _load_group(self, group: int) -> list[EpisodeLatents]:
        epoch, position = divmod(group, self._groups)
        random = np.random.default_rng([self._seed, 2, epoch])
        order = random.permutation(len(self._shards))
        flips = np.random.default_rng([self._seed, 4, group])
        return [
            episode
            for index in order[position :: self._groups]
            for episode in self._shards[index].episodes(
                held_out=self._held_out, mirrored=lambda: bool(flips.random() < 0.5)
            )
        ]

    def _cut(self, episode: EpisodeLatents, random: np.random.Generator) -> list[_Window]:
        steps = len(episode.actions)
        offset = 0 if self._whole else int(random.integers(self._length))
        return [
            (episode, max(0, start), min(start + self._length, steps))
            for start in range(-offset, steps, self._length)
        ]

    def _stack(self, windows: list[_Window]) -> Windows:
        total, batch = self._length + self._burn_in, len(windows)
        size = windows[0][0].mu.shape[1]
        out = Windows(
            z=np.zeros((batch, total + 1, size), np.float32),
            log_sigma=np.zeros((batch, total + 1, size), np.float32),
            actions=np.zeros((batch, total, windows[0][0].actions.shape[1]), np.float32),
            tiles=np.zeros((batch, total), np.float32),
            off_field=np.zeros((batch, total), np.float32),
            weight=np.zeros((batch, total), np.float32),
            track_tiles=np.array([episode.row.track_tiles for episode, *_ in windows], np.float32),
            motion=np.zeros((batch, total + 1, MOTION_SIZE), np.float32),
        )
        for row, (episode, start, stop) in enumerate(windows):
            begin = max(0, start - self._burn_in)
            steps = stop - begin
            out.z[row, : steps + 1] = episode.mu[begin : stop + 1]
            out.log_sigma[row, : steps + 1] = episode.log_sigma[begin : stop + 1]
            out.actions[row, :steps] = episode.actions[begin:stop]
            out.tiles[row, :steps] = episode.tiles[begin:stop]
            out.off_field[row, :steps] = episode.off_field[begin:stop]
            out.weight[row, start - begin : steps] = 1.0
            if self._trouble != 1.0:
                near = around_losses(episode.tiles)[begin:stop]
                out.weight[row, :steps] *= np.where(near, self._trouble, 1.0)
            if episode.motion is not None:
                out.motion[row, : steps + 1] = episode.motion[begin : stop + 1]
        return out
