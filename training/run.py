"""A run: a preset, where its stages put what they make, and how a world is made of that."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents import evolve
from training.collect import collect
from training.contender import Contender
from training.devices import is_first, wait_for_all
from training.latents import LatentShard, check_encoded_by, encode_store, open_latents
from training.memory import MemoryConfig, fit_memory
from training.pictures import memory_pictures
from training.plan import CollectConfig
from training.presets import Preset
from training.provenance import write_worlds
from training.store import check_task, open_store
from training.vision import load_vision
from wm_env.mdn_rnn import MDNRNN
from wm_env.shard import Shard
from wm_env.storage import StorePath, to_path


@dataclass(frozen=True)
class Run:
    """A preset and the folder of what its stages make."""

    preset: Preset
    out: Path

    @property
    def store(self) -> StorePath:
        """What the run itself drove."""
        return to_path(self.preset.store or self.out / "data")

    def round(self, index: int) -> Path:
        """The folder of a round, of which the first is 1."""
        return self.out / f"round-{index:02d}"

    def contenders(self) -> list[Contender]:
        """Of the run itself, and of its finished rounds."""
        rounds = (Contender(self.round(index)) for index in itertools.count(1))
        return [Contender(self.out), *itertools.takewhile(lambda one: one.finished, rounds)]

    def shards(self, rounds: int = 0) -> list[Shard]:
        """The driving of the run and of its first rounds."""
        return [shard for store, _ in self._stores(rounds) for shard in self.open(store)]

    def open(self, store: StorePath) -> list[Shard]:
        """The shards of one of the stores.

        Raises:
            StoreError: one is damaged, or of another task.
        """
        shards = open_store(store, damaged=self.preset.damaged)
        for shard in shards:
            check_task(shard, self.preset.collect.task)
        return shards

    def collect(self, store: StorePath, config: CollectConfig) -> None:
        """Fill a store."""
        if is_first():
            collect(store, config, damaged=self.preset.damaged)
        wait_for_all("the driving is stored")

    def encode(self, vision: Path, rounds: int) -> list[LatentShard]:
        """The data of the run and of its first rounds, as the V in that folder sees it.

        Each V has latents of its own, so that what was made of those of another V stays whole.
        """
        home = vision.parent
        name = "latents" if home == self.out else f"latents-{home.name}"
        stores = self._stores(rounds)
        if is_first():
            vae = load_vision(self.preset.vision, vision)
            for store, folder in stores:
                encode_store(self.open(store), vae, folder / name)
        wait_for_all("the latents are written")
        return [latents for _, folder in stores for latents in open_latents(folder / name)]

    def encode_all(self) -> None:
        """The data as each V sees it, as far as M's were fitted on that."""
        visions = {self.out / "vision": 0}
        visions |= {one.vision: index for index, one in enumerate(self.contenders())}
        for vision, rounds in visions.items():
            self.encode(vision, rounds)

    def fit_world(
        self,
        folder: Path,
        vision: Path,
        shards: list[Shard],
        latents: list[LatentShard],
        config: MemoryConfig,
        begin_from: Sequence[MDNRNN] = (),
    ) -> None:
        """Fit M in `folder/memory`, and write the world of it."""
        vae = load_vision(self.preset.vision, vision)
        check_encoded_by(latents, vae)

        def draw(mdn_rnn: MDNRNN) -> None:
            memory_pictures(vae, mdn_rnn, shards, latents, folder / "memory")

        options = {"begin_from": begin_from, "pictures": draw}
        members = fit_memory(latents, config, folder / "memory", **options)
        if is_first():
            preset = replace(self.preset, memory=config)
            write_worlds(preset, folder, vae, members, shards, latents)
        wait_for_all("the world is written")

    def evolve(self, config: evolve.EvolveConfig) -> None:
        """Evolve a controller."""
        if is_first():
            evolve.run(config)
        wait_for_all("the controller is written")

    def _stores(self, rounds: int) -> list[tuple[StorePath, Path]]:
        """The stores of the run and its first rounds, each with the folder of what it leads to."""
        folders = [self.round(index) for index in range(1, rounds + 1)]
        driven = [folder for folder in folders if any((folder / "data").glob("shard-*.zip"))]
        return [(self.store, self.out), *((folder / "data", folder) for folder in driven)]
