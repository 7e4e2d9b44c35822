"""Streams over a store: shuffled images for V, windows of latents for M.

Memory does not grow with the set. The last episode of every shard is held out, so that no frame
crosses from training to validation and every driver is in both. An order is a function of
(seed, step): a run that goes on at step n sees what it would have.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from training.latents import EpisodeLatents, LatentShard
from wm_env.shard import CHUNK_FRAMES, Shard, StoreError

POOL_CHUNKS = 96  # 96 * 64 images = 75 MB in memory at a time, and as much being prefetched

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Chunk:
    shard: int
    start: int
    stop: int


class ImageStream:
    """Shuffled training images of a store, as uint8 [batch, 64, 64, 3].

    Chunks are visited in random order each epoch; images are shuffled among the chunks of a pool.
    """

    def __init__(self, shards: list[Shard], *, batch: int, seed: int):
        self._shards, self._batch, self._seed = shards, batch, seed
        self._chunks = [
            _Chunk(index, start, min(start + CHUNK_FRAMES, stop))
            for index, shard in enumerate(shards)
            for stop in [_first_held_out_frame(shard)]
            for start in range(0, stop, CHUNK_FRAMES)
        ]
        pool_images = min(POOL_CHUNKS, len(self._chunks)) * CHUNK_FRAMES
        self._pool_batches = max(1, int(0.9 * pool_images) // batch)
        if sum(chunk.stop - chunk.start for chunk in self._chunks) < batch:
            raise StoreError(
                f"the store holds fewer training images than one batch of {batch}; collect more, "
                "or ask for a smaller batch."
            )

    def batches(self, start_step: int = 0) -> Iterator[np.ndarray]:
        """Batches for ever, from that of `start_step` on."""
        first_pool, skip = divmod(start_step, self._pool_batches)
        for pool, images in _prefetched(self._pool, first_pool):
            order = np.random.default_rng([self._seed, 1, pool])
            for index in range(self._pool_batches):
                # With replacement between batches, without within one: every pool gives equally
                # many batches.
                chosen = order.choice(len(images), self._batch, replace=len(images) < self._batch)
                if pool > first_pool or index >= skip:
                    yield images[chosen]

    def _pool(self, pool: int) -> np.ndarray:
        pools = max(1, len(self._chunks) // POOL_CHUNKS)
        epoch, position = divmod(pool, pools)
        order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._chunks))
        mine = [self._chunks[index] for index in order[position::pools][:POOL_CHUNKS]]
        return np.concatenate(
            [
                self._shards[chunk.shard].read("images", slice(chunk.start, chunk.stop))
                for chunk in mine
            ]
        )


def held_out_images(
    shards: list[Shard], count: int, *, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """A fixed sample of held-out images, spread over shards.

    Returns the images, uint8 [count, 64, 64, 3], and the driver of each.
    """
    random = np.random.default_rng(seed)
    images, drivers = [], []
    for index in range(count):
        shard = shards[index * len(shards) // count]
        frame = int(random.integers(_first_held_out_frame(shard), shard.frames))
        images.append(shard.read("images", slice(frame, frame + 1))[0])
        drivers.append(shard.episodes[-1].driver)
    return np.stack(images), drivers


def _first_held_out_frame(shard: Shard) -> int:
    *_, (_, frames, _) = shard.bounds()
    return frames.start if len(shard.episodes) > 1 else frames.stop


def _prefetched(make: Callable[[int], _Item], first: int) -> Iterator[tuple[int, _Item]]:
    """(index, make(index)) for index = first, first + 1, …

    The next is made in a thread while one is used.
    """
    with ThreadPoolExecutor(1) as thread:
        index, future = first, thread.submit(make, first)
        while True:
            item = future.result()
            future = thread.submit(make, index + 1)
            yield index, item
            index += 1


class Windows(NamedTuple):
    """A batch of windows for M, b windows of t steps; `weight` is 0 in padding and burn-in, else 1.

    z [b, t + 1, z]: the latents before and after each step; log_sigma the same, V's uncertainty of
    them.
    """

    z: np.ndarray
    log_sigma: np.ndarray
    actions: np.ndarray
    tiles: np.ndarray
    off_field: np.ndarray
    weight: np.ndarray


class WindowStream:
    """Windows of training episodes (or held-out ones), half of them mirrored.

    An episode is cut every `length` steps from a random offset, so windows cover it evenly and its
    end, with its terminal, always belongs to one. A window that does not begin the episode is
    preceded by `burn_in` steps whose loss does not count, because h starts at 0 there, which no
    driver ever felt.
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
        group: int = 12,
    ):
        self._shards, self._batch, self._length, self._burn_in = shards, batch, length, burn_in
        self._seed, self._held_out, self._group = seed, held_out, min(group, len(shards))

    def batches(self, start_step: int = 0) -> Iterator[Windows]:
        """Batches for ever, from that of `start_step` on.

        Shards are read in groups, in random order.
        """
        step = 0
        for group, episodes in _prefetched(self._load_group, 0):
            random = np.random.default_rng([self._seed, 3, group])
            windows = [window for episode in episodes for window in self._cut(episode, random)]
            order = random.permutation(len(windows))
            for start in range(0, len(order) - self._batch + 1, self._batch):
                if step >= start_step:
                    yield self._stack(
                        [windows[index] for index in order[start : start + self._batch]]
                    )
                step += 1

    def _load_group(self, group: int) -> list[EpisodeLatents]:
        groups = len(self._shards) // self._group
        epoch, position = divmod(group, groups)
        random = np.random.default_rng([self._seed, 2, epoch])
        order = random.permutation(len(self._shards))
        flips = np.random.default_rng([self._seed, 4, group])
        return [
            episode
            for index in order[position::groups]
            for episode in self._shards[index].episodes(
                held_out=self._held_out, mirrored=lambda: bool(flips.random() < 0.5)
            )
        ]

    def _cut(
        self, episode: EpisodeLatents, random: np.random.Generator
    ) -> list[tuple[EpisodeLatents, int, int]]:
        steps = len(episode.actions)
        offset = int(random.integers(self._length))
        return [
            (episode, max(0, start), min(start + self._length, steps))
            for start in range(-offset, steps, self._length)
        ]

    def _stack(self, windows: list[tuple[EpisodeLatents, int, int]]) -> Windows:
        total, batch = self._length + self._burn_in, len(windows)
        size = windows[0][0].mu.shape[1]
        out = Windows(
            z=np.zeros((batch, total + 1, size), np.float32),
            log_sigma=np.zeros((batch, total + 1, size), np.float32),
            actions=np.zeros((batch, total, 3), np.float32),
            tiles=np.zeros((batch, total), np.float32),
            off_field=np.zeros((batch, total), np.float32),
            weight=np.zeros((batch, total), np.float32),
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
        return out
