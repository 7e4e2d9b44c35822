"""Presets: how much of everything. `--preset` names one; options change single numbers of it."""

from dataclasses import dataclass, field, replace
from typing import Literal

from agents.cma_es import CMAESConfig
from agents.evolve import EvolveConfig
from training.memory_loss import MemoryConfig
from training.plan import CollectConfig
from training.starts import check_hard
from training.vision import VisionConfig
from wm_env.mdn_rnn import MDNRNNConfig
from wm_env.seeds import check_choosing
from wm_env.simulator import default_backend
from wm_env.task import CAR_RACING, Task
from wm_env.vae import VAEConfig


@dataclass(frozen=True)
class LoopConfig:
    """Rounds of Sim2Real2Sim: drive the real car, fit V and M on with that, evolve on.

    Without action noise the driver's actions tell M the road, and the dream obeys the driver. An M
    that follows the car's motion sees that in their place, and can do without.
    """

    rounds: int = 4  # at most
    patience: int = 2  # rounds in a row that validated no better than the best before: then it ends

    # The data of a round. `on_policy` is the best controller so far, with noise shard by shard by
    # turns: on its actions, and on its weights, in root mean squares of these.
    episodes: dict[str, int] = field(default_factory=lambda: {"on_policy": 64, "failures": 16})
    cars: int = 8  # episodes in a shard, which have the same noise on actions and weights
    noise: tuple[float, ...] = (0.5,)
    weight_noise: tuple[float, ...] = (0.0, 0.1, 0.0, 0.2, 0.0, 0.4)

    # V is fitted on where its squared error on the new frames is larger by this share.
    vision_tolerance: float = 0.1
    vision_steps: int = 500
    memory_steps: int = 500
    generations: int = 20
    # Of evolving on from the best controller: one that drives well strays with a sigma of 0.05
    # (docs/results.md).
    search: CMAESConfig = CMAESConfig(sigma=0.03)

    # The report's measure of how true the dream is; 0 episodes of each policy leave it out.
    fidelity_episodes: int = 4
    fidelity_dreams: int = 16
    fidelity_steps: int = 600


@dataclass(frozen=True)
class EvaluationConfig:
    """The real tracks that tell at the end how well the best controller drives.

    They are those after the ones of validation, among the seeds 0 to 99; 1000 to 1099 stay unseen.
    """

    episodes: int = 32
    max_steps: int = 1000


@dataclass(frozen=True)
class BeginConfig:
    """What a run takes over instead of fitting and evolving it; its own work is the loop then."""

    world: str | None = None  # file or shipped name: its V and M, and their sizes
    controller: str | None = None  # file or shipped name: who drives in it


@dataclass(frozen=True)
class Preset:
    """One size of the whole path."""

    store: str | None = None  # where its shards are, a folder or a URL; OUT/data unless told
    damaged: Literal["refuse", "skip"] = "refuse"  # what to do about a damaged shard

    begin: BeginConfig = field(default_factory=BeginConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    evolve: EvolveConfig = field(default_factory=EvolveConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    # Of a world's moments in mid-drive, the share from shortly before a hairpin or the road's loss.
    hard_starts: float = 0.0

    def evaluation_seeds(self) -> range:
        """The real tracks of the evaluation: those after the ones of validation."""
        first = self.evolve.validation_seeds().stop
        return range(first, first + self.evaluation.episodes)

    def check(self) -> None:
        """Look whether all of it can be: that would show after an hour.

        Raises:
            ValueError: a number is out of its range, a search is after tiles that the task has not
                or after a motion that M does not know, V's latents are not of M's size, rounds
                drive shards of a single car, or the evaluation has not enough tracks.
        """
        check_hard(self.hard_starts, self.collect.task)
        sizes = self.vision.vae.latent_size, self.memory.mdn_rnn.latent_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"V's latents are of size {sizes[0]} and M is of {sizes[1]}; expected the same. "
                "Set vision.vae.latent-size and memory.mdn-rnn.latent-size alike."
            )
        if self.vision.emphasis <= 0.0:
            raise ValueError(
                f"vision.emphasis is {self.vision.emphasis}; expected more than 0. 1 has all "
                "pixels count alike, 3 road, kerbs and car three times what grass does."
            )
        later = replace(self.evolve, search=self.loop.search, generations=self.loop.generations)
        for evolving in (self.evolve, later):
            evolving.check()
            evolving.search.check_task(self.collect.task)
            evolving.search.check_memory(self.memory.mdn_rnn)
        check_choosing(self.evaluation_seeds())
        if self.loop.cars < 2:
            raise ValueError(
                f"loop.cars is {self.loop.cars}; expected 2 or more: of each shard the last car's "
                "episode is held out, and tells whether V sees the new frames as well. The default "
                "is 8."
            )


# M as the shipped world's: it follows the car's motion, draws latents together, and need not
# foretell what came where it saw its own sample.
_MOVING = MemoryConfig(
    mdn_rnn=MDNRNNConfig(motion=True, correlated=True, dropout=0.05), own_foretold=False
)

# A search along what drivers see, by what laps would pay, in dreams whose noise lasts. Trouble is
# rare, so that fewer dreams would choose by luck.
_LAPS = EvolveConfig(
    search=CMAESConfig(
        population=48,
        dreams=24,
        steps=1000,
        fitness="lap",
        straying=3000.0,
        missing=60.0,
        moments=256,
        axes=60,
    ),
    temperature=0.8,
    persistence=0.5,
    start_middle=0.0,
)

# From nothing to a controller that drives: an hour or two on two cores. M sees samples of V's
# posterior and never its own: only so did drivers from nothing transfer after so little fitting
# (docs/results.md). At first the return ranks, since a price on being lost teaches whoever
# cannot drive to stand still.
LAPTOP = Preset(
    collect=CollectConfig(
        episodes={
            "heuristic": 64,
            "aggressive": 48,
            "swapped": 48,
            "recovery": 32,
            "explore": 32,
            "blind": 32,
            "failures": 16,
            "held": 16,
            "brownian": 16,
        }
    ),
    vision=VisionConfig(steps=1000),
    memory=MemoryConfig(
        mdn_rnn=MDNRNNConfig(motion=True),
        latent_noise=0.0,
        posterior_noise=1.0,
        own_shares=(0.0,),
        burn_in=40,
        steps=800,
    ),
    evolve=EvolveConfig(generations=10, search=CMAESConfig(dreams=8)),
    loop=LoopConfig(
        episodes={"on_policy": 64, "blind": 16, "swapped": 16, "failures": 8, "held": 8},
        noise=(0.1, 0.6),
        weight_noise=(0.0, 0.0, 0.1, 0.2),
        memory_steps=400,
        generations=12,
        # A beginner has far to go.
        search=CMAESConfig(dreams=8, steps=1000, sigma=0.05, fitness="lap", straying=2000.0),
        fidelity_episodes=0,
    ),
    hard_starts=0.25,
)

_TINY = replace(
    _LAPS.search, population=8, dreams=2, steps=50, moments=2, moment_steps=20, axes=None
)

# The whole path in minutes, to see that it works: nothing that it makes can drive.
SMOKE = Preset(
    collect=CollectConfig(episodes={"heuristic": 8, "brownian": 8}, cars=8, max_steps=120),
    vision=VisionConfig(batch=32, steps=20),
    memory=replace(_MOVING, batch=4, length=40, burn_in=8, steps=10),
    evolve=replace(
        _LAPS,
        generations=2,
        search=_TINY,
        validate_every=2,
        validation_episodes=2,
        validation_steps=100,
    ),
    loop=LoopConfig(
        rounds=1,
        episodes={"on_policy": 8},
        memory_steps=10,
        vision_steps=10,
        generations=2,
        search=_TINY,
        fidelity_episodes=1,
        fidelity_dreams=1,
        fidelity_steps=260,
    ),
    evaluation=EvaluationConfig(episodes=2, max_steps=100),
    hard_starts=0.25,
)

# The seed project's recipe where it can be said in these terms: its data (what its own controller
# drove, the shipped one drives here), one mixture for all of z, a plain reward of which too much
# costs five times as much, tau 1.25, one dream a candidate.
SEED = Preset(
    collect=CollectConfig(
        episodes={"brownian": 2000, "recovery": 500, "aggressive": 500, "on_policy": 500}
    ),
    vision=VisionConfig(beta=1.0, steps=700_000, learning_rate=1e-4),
    memory=MemoryConfig(
        mdn_rnn=MDNRNNConfig(shared_mixture=True, tiles="reward"),
        latent_noise=0.0,
        own_shares=(0.0,),
        asymmetry=5.0,
        length=250,
        batch=64,
        steps=5_000,
        learning_rate=1e-3,
    ),
    evolve=EvolveConfig(search=CMAESConfig(population=256, dreams=1, steps=1000), temperature=1.25),
    loop=LoopConfig(search=CMAESConfig(population=256, dreams=1, steps=1000, sigma=0.03)),
)

# Ha & Schmidhuber (2018), A.1 to A.4, evolved in the dream instead of the real environment.
PAPER = Preset(
    collect=CollectConfig(episodes={"random": 10_000}),
    vision=VisionConfig(
        vae=VAEConfig(sampled=True),
        beta=1.0,
        tolerance=0.5,
        batch=100,
        steps=1_000_000,
        learning_rate=1e-4,
    ),
    memory=MemoryConfig(
        latent_noise=0.0,
        own_shares=(0.0,),
        batch=100,
        length=None,
        steps=2_000,
        learning_rate=1e-3,
    ),
    evolve=EvolveConfig(generations=1800, search=CMAESConfig(population=64, dreams=16, steps=1000)),
    loop=LoopConfig(search=CMAESConfig(population=64, dreams=16, steps=1000, sigma=0.03)),
)

# Rounds from the shipped world and its controller on.
ONWARD = Preset(
    begin=BeginConfig("carracing_motion", "carracing_motion_controller"),
    collect=CollectConfig(
        episodes={
            "on_policy": 192,
            "heuristic": 32,
            "aggressive": 32,
            "swapped": 32,
            "held": 32,
            "recovery": 16,
            "explore": 16,
            "blind": 16,
            "failures": 16,
            "brownian": 16,
        },
        noise=0.1,
    ),
    memory=replace(_MOVING, burn_in=60, learning_rate=7e-4),
    evolve=replace(_LAPS, validation_episodes=32),
    loop=LoopConfig(
        rounds=2,
        patience=1,
        episodes={"on_policy": 96, "held": 8, "failures": 8},
        noise=(0.0, 0.05, 0.3),
        weight_noise=(0.0, 0.0, 0.05, 0.1),
        memory_steps=300,
        generations=10,
        search=replace(_LAPS.search, sigma=0.015),
    ),
    hard_starts=0.5,
)

PRESETS = {"smoke": SMOKE, "laptop": LAPTOP, "onward": ONWARD, "seed": SEED, "paper": PAPER}


def preset_of(name: str, task: Task = CAR_RACING) -> Preset:
    """The preset of that name, for a task.

    Of another task than CarRacing chance drives as many episodes as there are, since nobody else
    can as yet; in rounds of the loop the controller does. M has its actions and foretells the
    reward itself, too much of it at the price of too little; controllers are ranked by that. The
    reports of rounds do without what is made for CarRacing.
    """
    preset = PRESETS[name]
    if task == CAR_RACING:
        return preset
    episodes = sum(preset.collect.episodes.values())
    driven = {"random": episodes // 2, "brownian": episodes - episodes // 2}
    backend = default_backend(task)
    mdn_rnn = replace(
        preset.memory.mdn_rnn, action_size=task.action_size, tiles="signed", motion=False
    )
    rounds = {"on_policy": sum(preset.loop.episodes.values())}
    plain = {"fitness": "return", "straying": 0.0, "missing": 0.0}
    search, of_rounds = (replace(one.search, **plain) for one in (preset.evolve, preset.loop))
    return replace(
        preset,
        collect=replace(preset.collect, env=task.id, episodes=driven, backend=backend),
        memory=replace(preset.memory, mdn_rnn=mdn_rnn, asymmetry=1.0),
        evolve=replace(preset.evolve, search=search),
        hard_starts=0.0,
        loop=replace(
            preset.loop,
            episodes=rounds,
            noise=LoopConfig().noise,
            search=of_rounds,
            fidelity_episodes=0,
        ),
    )
