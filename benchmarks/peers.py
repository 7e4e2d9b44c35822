"""The dream beside what one would write or take instead, in turns, on the same machine.

    uv run --extra envpool python benchmarks/peers.py [--quick] [--json FILE]

`limit` is the dream's own rate at the same batch, so that `ratio` says how the peer compares. The
two loops that one would write by hand draw what they need with `jax.random`, have no auto-reset, no
time limit and no information beside the reward. Where there are several devices, as which the
cores of a CPU count here, the dream is timed split over them too, as CMA-ES splits its dreams: the
last row is one generation of it, whose limit is the rate of the same dreams without the search.
"""

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from wm_env.cores import make_cores_devices  # noqa: E402

make_cores_devices()

import gymnax  # noqa: E402

from agents.cma_es import CMAESConfig, Evolution  # noqa: E402
from agents.dream_mix import DreamMix  # noqa: E402
from agents.linear import LinearController, linear_policy  # noqa: E402
from wm_env import load_world, rollout, speed  # noqa: E402
from wm_env.bench import Row, Timing, report  # noqa: E402
from wm_env.dream import DreamCarRacing, DreamParams  # noqa: E402

Z, H, K = 32, 256, 5  # sizes of the paper's M
OWN = (256, 1024)  # batches of the dream
GYMNAX = ("CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Breakout-MinAtar")


@dataclass(frozen=True)
class Config:
    """Time the dream and its peers."""

    json: Path | None = None  # write the rows here too
    quick: bool = False  # short runs, whose figures are rough
    horizon: int = 1000  # of the dreams of a generation


class PlainMemory(eqx.Module):
    """The paper's M of a library's layers: a mixture a latent dimension, or one shared by all."""

    cell: eqx.nn.LSTMCell
    heads: eqx.nn.Linear
    choices: int = eqx.field(static=True)

    def __init__(self, choices: int, key: jax.Array):
        key_cell, key_heads = jax.random.split(key)
        self.choices = choices
        self.cell = eqx.nn.LSTMCell(Z + 3, H, key=key_cell)
        self.heads = eqx.nn.Linear(H, K * (choices + 2 * Z) + 2, key=key_heads)

    def __call__(self, z: jax.Array, a: jax.Array, carry: Any, key: jax.Array, tau: float) -> Any:
        """The next latent, reward, whether it is over, and the carry."""
        key_choice, key_normal, key_over = jax.random.split(key, 3)
        carry = self.cell(jnp.concatenate([z, a]), carry)
        heads = self.heads(carry[0])
        logits, mu, log_sigma = jnp.split(heads[:-2], [K * self.choices, K * (self.choices + Z)])
        chosen = jax.random.categorical(key_choice, logits.reshape(self.choices, K) / tau)
        index = jnp.broadcast_to(chosen, (Z,))[:, None]
        mu, log_sigma = (
            jnp.take_along_axis(part.reshape(Z, K), index, axis=1)[:, 0] for part in (mu, log_sigma)
        )
        z = mu + jnp.exp(log_sigma) * jnp.sqrt(tau) * jax.random.normal(key_normal, (Z,))
        over = jax.random.uniform(key_over) < jax.nn.sigmoid(heads[-1])
        return z, heads[-2], over, carry


def plain_rate(batch: int, timing: dict[str, int]) -> float:
    """Steps/s of a plain scan of the paper's M, driven by one linear controller."""
    controller = 0.1 * jax.random.normal(jax.random.key(1), (3, Z + H))
    return _loop_rate(PlainMemory(Z, jax.random.key(0)), controller, None, batch, 1.0, **timing)


def seed_rate(timing: dict[str, int]) -> float:
    """Steps/s of the seed project's loop: 256 controllers, one dream of each, tau 1.25."""
    controllers = 0.1 * jax.random.normal(jax.random.key(1), (256, 3, Z + H))
    return _loop_rate(PlainMemory(1, jax.random.key(0)), controllers, 0, 256, 1.25, **timing)


def _loop_rate(
    memory: PlainMemory,
    controllers: jax.Array,
    axis: int | None,  # of the controllers, one a dream; None is one for all
    batch: int,
    tau: float,
    *,
    steps: int,
    repeats: int,
) -> float:
    def dream(controller: jax.Array, key: jax.Array) -> jax.Array:
        def frame(now: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            z, carry, alive = now
            action = jnp.tanh(controller @ jnp.concatenate([z, carry[0]]))
            z, reward, over, carry = memory(z, action, carry, key, tau)
            return (z, carry, alive & ~over), jnp.where(alive, reward, 0.0)

        begin = jnp.zeros(Z), (jnp.zeros(H), jnp.zeros(H)), jnp.bool_(True)
        return jax.lax.scan(frame, begin, jax.random.split(key, steps))[1].sum()

    drive = jax.jit(jax.vmap(dream, in_axes=(axis, 0)))
    keys = jax.random.split(jax.random.key(2), batch)
    return speed.best_rate(lambda: drive(controllers, keys), float(batch * steps), repeats=repeats)


def gymnax_rate(name: str, batch: int, timing: dict[str, int]) -> float:
    """Steps/s of an environment of gymnax, with auto-reset and random actions."""
    env, params = gymnax.make(name)
    sample = jax.vmap(env.action_space(params).sample)

    def act(state: Any, key: jax.Array) -> jax.Array:
        return sample(jax.random.split(key, batch))

    return speed.gymnax_rate(env, params, act, batch, **timing)


def own_rate(params: DreamParams, batch: int, timing: Timing, devices: int = 1) -> float:
    """Steps/s of the dream through gymnax's step, its lanes split over so many devices."""
    return speed.dream_rate(params, batch, devices=devices, **timing.of(100_000 // batch))


def generation_rates(config: CMAESConfig, params: DreamParams, repeats: int) -> tuple[float, float]:
    """Dream steps/s of a generation of CMA-ES, and of as many dreams without the search."""
    frames = float(config.population * config.dreams * config.steps)
    search = Evolution(LinearController.zeros(), linear_policy, config)
    state, mix = search.init(jax.random.key(0)), DreamMix(params)
    generation = speed.best_rate(
        lambda: search.advance(state, mix, jax.random.key(1)), frames, repeats=repeats
    )
    env, controller = DreamCarRacing(), LinearController.zeros()

    @jax.jit
    def dreams(params: DreamParams, keys: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return rollout(env, params, linear_policy, controller, key, steps=config.steps).ret

        return search.map(jax.vmap(one), keys, config.dreams)

    keys = jax.random.split(jax.random.key(1), (config.population, config.dreams))
    return generation, speed.best_rate(lambda: dreams(params, keys), frames, repeats=repeats)


def main(config: Config) -> None:
    """Time all of it and print a table."""
    timing = Timing(0.1, 1) if config.quick else Timing(1.0, 3)
    params = DreamParams(world_model=load_world())
    coarse = DreamParams(world_model=params.world_model.with_precision("bfloat16"))
    devices = math.gcd(len(jax.devices()), *OWN)
    kinds = [("in bfloat16", coarse, 1)]
    if devices > 1:
        split = f"split over {devices} devices"
        kinds += [(split, params, devices), (f"in bfloat16, {split}", coarse, devices)]
    jobs: list[tuple[str, int, Callable[[], float]]] = [
        *(
            (f"the dream {kind}", batch, functools.partial(own_rate, used, batch, timing, count))
            for kind, used, count in kinds
            for batch in OWN
        ),
        ("a plain lax.scan of the paper's M", 256, lambda: plain_rate(256, timing.of(400))),
        ("the seed's dream loop", 256, lambda: seed_rate(timing.of(1000))),
        *(
            (f"gymnax {name}", 1024, lambda name=name: gymnax_rate(name, 1024, timing.of(500)))
            for name in GYMNAX
        ),
    ]
    own = {batch: own_rate(params, batch, timing) for batch in OWN}
    rows = [
        Row(f"dream, gymnax env.step, batch {batch}", rate, "steps/s")
        for batch, rate in own.items()
    ]
    for name, batch, rate in jobs:
        rows.append(Row(f"{name}, batch {batch}", rate(), "steps/s", own[batch]))
        print(f"{rows[-1].name}: {rows[-1].value:,.0f} steps/s", file=sys.stderr)
    search = CMAESConfig(population=256, dreams=16, steps=50 if config.quick else config.horizon)
    generation, pure = generation_rates(search, params, timing.repeats)
    rows.append(
        Row(f"a generation of CMA-ES, 256 x 16 x {search.steps}", generation, "steps/s", pure)
    )
    report(rows, config.json)


if __name__ == "__main__":
    main(tyro.cli(Config))
