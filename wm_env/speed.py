"""How fast this machine multiplies, dreams and simulates, each as a rate.

A rate is the best of a few timed runs after one that compiles, so that other work on the machine
disturbs it little.
"""

import functools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import registrations
from wm_env.car_racing import make_car_racing, make_car_racing_vector
from wm_env.cores import usable_cores
from wm_env.dream import DreamCarRacing, DreamParams, DreamState
from wm_env.evaluation import evaluate
from wm_env.gymnax_parts import environment
from wm_env.jobs import Done
from wm_env.judge import CARS
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.preprocess import IMAGE_SHAPE
from wm_env.simulator import default_backend
from wm_env.task import CAR_RACING
from wm_env.vae import VAE, VAEConfig
from wm_env.weights import world_for
from wm_env.weights_file import shipped_names
from wm_env.workers import run_jobs
from wm_env.world_model import StartStates, WorldModel

_MATMUL_SIZES = (256, 512, 1024, 2048, 4096)
_MATMUL_PATIENCE = 0.6  # seconds; a matmul that would take longer is not tried

_GENTLE = np.array([0.0, 0.1, 0.0], np.float32)  # a little gas, straight on


def best_rate(work: Callable[[], Any], amount: float, *, repeats: int = 3) -> float:
    """`amount` over the shortest of `repeats` timed calls of `work`, after an untimed one."""
    jax.block_until_ready(work())
    shortest = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        shortest = min(shortest, time.perf_counter() - begin)
    return amount / shortest


def matmul_rate(
    largest: int = 4096, *, dtype: Any = jnp.float32, repeats: int = 3
) -> tuple[float, int]:
    """FLOP/s of a square matmul at JAX's default precision, and the size that was timed.

    Sums are float32 whatever is multiplied, as in M (V's are not). The size is `largest`, or on a
    slow machine the largest that takes no more than half a second.
    """
    rate, size = 0.0, 0
    for following in (size for size in _MATMUL_SIZES if size <= largest):
        flops = 2.0 * following**3
        if rate and flops / rate > _MATMUL_PATIENCE:
            break
        x = jax.random.normal(jax.random.key(0), (following, following)).astype(dtype)
        multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
        rate, size = best_rate(lambda: multiply(x, x), flops, repeats=repeats), following  # noqa: B023
    return rate, size


def copy_rate(*, size: int = 2**27, repeats: int = 3) -> float:
    """Bytes/s, read and written, of a float32 array of `size` numbers that no cache holds."""
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)  # in place, for fresh memory is slow
    x = jnp.zeros(size, jnp.float32)

    def work() -> jax.Array:
        nonlocal x
        x = add(x)
        return x

    return best_rate(work, 8.0 * size, repeats=repeats)


def dream_step_bytes(params: DreamParams, batch: int) -> float | None:
    """Bytes that a dreamt step of `env.step` moves, as XLA counts them; None where it does not.

    The sum over what each fused operation reads and writes, a loop's once, caches not considered.
    """
    env = DreamCarRacing()
    keys, actions = jax.random.split(jax.random.key(0), batch), jnp.zeros((batch, env.num_actions))
    _, state = jax.eval_shape(jax.vmap(env.reset, in_axes=(0, None)), keys, params)
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    counted = step.lower(keys, state, actions, params).compile().cost_analysis() or {}
    return counted["bytes accessed"] / batch if "bytes accessed" in counted else None


def dream_step_flops(mdn_rnn: MDNRNN) -> float:
    """Floating-point operations of M's matmuls in one dreamt step; the rest is small beside."""
    return 2.0 * (mdn_rnn.gate_weight.size + mdn_rnn.head_weight.size)


def encoder_flops(vae: VAE) -> float:
    """Floating-point operations of V's matmuls from an image to its posterior."""
    total, side = 2.0 * vae.to_posterior.weight.size, IMAGE_SHAPE[0]
    for layer in vae.encoder:
        side = (side - layer.kernel.shape[0]) // 2 + 1
        total += 2.0 * side * side * layer.kernel.size
    return total


def decoder_flops(vae: VAE, *, packed: bool = False) -> float:
    """Floating-point operations of V's matmuls from a latent to its image, see `VAE.packed`."""
    dense, (first, *others) = vae.from_latent.weight, vae.decoder
    pixels = first.kernel.size // first.kernel.shape[2]
    total = 2.0 * (dense.shape[1] * pixels if packed else dense.size + first.kernel.size)
    side = first.kernel.shape[0]
    for layer in others:
        total += 2.0 * side * side * layer.kernel.size
        side = 2 * side + layer.kernel.shape[0] - 2
    return total


def dream_rate(
    params: DreamParams,
    batch: int,
    *,
    steps: int,
    repeats: int = 3,
    devices: int = 1,
    observation: str = "features",
) -> float:
    """Dream steps/s through gymnax's public `env.step`, as `gymnax_rate` times it.

    A random linear policy acts on the features, whatever is observed.
    """
    size = params.world_model.latent_size + params.world_model.hidden_size
    weight = 0.1 * jax.random.normal(jax.random.key(1), (3, size))

    def act(state: DreamState, key: jax.Array) -> jax.Array:
        features = jnp.concatenate([state.z, state.carry.h], axis=1)
        return jnp.tanh(features @ weight.T)

    env = DreamCarRacing(observation)
    timing = {"steps": steps, "repeats": repeats}
    return gymnax_rate(env, params, act, batch, devices=devices, **timing)


def split_dream_rate(
    world: WorldModel, batch: int, *, steps: int, repeats: int = 3
) -> float | None:
    """Dream steps/s as of `dream_rate`, lanes split over a CPU's cores (`make_cores_devices`).

    In a process of its own, for JAX makes its devices once. None where there is nothing to split.

    Raises:
        subprocess.CalledProcessError: that process failed, and has told why.
    """
    if jax.default_backend() != "cpu" or usable_cores() == 1:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.safetensors"
        world.save(path)
        command = [sys.executable, "-c", _ON_ALL_CORES, path, *map(str, (batch, steps, repeats))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


_ON_ALL_CORES = """
import sys
from wm_env.cores import make_cores_devices
make_cores_devices()
from wm_env.speed import rate_on_all_devices
print(rate_on_all_devices(sys.argv[1], *map(int, sys.argv[2:])))
"""


def rate_on_all_devices(path: str | os.PathLike, batch: int, steps: int, repeats: int) -> float:
    """`dream_rate` of a world's file, lanes split over as many devices as divide the batch."""
    params = DreamParams(world_model=WorldModel.load(path))
    devices = math.gcd(batch, jax.device_count())
    return dream_rate(params, batch, steps=steps, repeats=repeats, devices=devices)


def gymnax_rate(
    env: environment.Environment,
    params: Any,
    act: Callable[[Any, jax.Array], jax.Array],
    batch: int,
    *,
    steps: int,
    repeats: int = 3,
    devices: int = 1,
) -> float:
    """Steps/s of any environment of gymnax: vmapped, auto-resetting, scanned in time.

    `act(state, key)` gives the actions of all lanes, which are split over so many `devices`. Every
    observation is added up lane by lane, so that none of it can be left out.
    """
    mesh = Mesh(np.array(jax.devices()[:devices]), ("lanes",))
    split = NamedSharding(mesh, PartitionSpec("lanes"))
    reset = jax.vmap(env.reset, in_axes=(0, None))
    step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    @jax.jit
    def drive(params: Any, key: jax.Array) -> tuple[Any, Any]:
        key_reset, key_steps = jax.random.split(key)
        keys = jax.lax.with_sharding_constraint(jax.random.split(key_reset, batch), split)
        _, state = reset(keys, params)

        def frame(state: Any, key: jax.Array) -> tuple[Any, tuple]:
            key_act, key_step = jax.random.split(key)
            keys = jax.random.split(key_step, batch)
            seen, state, reward, terminated, truncated, _ = step(
                keys, state, act(state, key_act), params
            )
            return state, (seen.reshape(batch, -1).sum(axis=1), reward, terminated, truncated)

        return jax.lax.scan(frame, state, jax.random.split(key_steps, steps))

    return best_rate(
        lambda: drive(params, jax.random.key(0)), float(batch * steps), repeats=repeats
    )


def gym_vector_rate(world: WorldModel, lanes: int, *, steps: int, repeats: int = 3) -> float:
    """Dream steps/s through `gym.make_vec`, numpy in and numpy out."""
    env = gymnasium.make_vec(registrations.DREAM_ID, num_envs=lanes, world_model=world)
    rate = _vector_rate(env, steps, repeats)
    env.close()
    return rate


def gym_rate(world: WorldModel, *, steps: int, repeats: int = 3, **options: Any) -> float:
    """Dream steps/s of one environment through `gym.make`, made with the `options`."""
    env = gymnasium.make(registrations.DREAM_ID, world_model=world, **options)
    rate = _single_rate(env, steps, repeats)
    env.close()
    return rate


def real_rate(*, steps: int, repeats: int = 3) -> float:
    """Steps/s of Gymnasium's CarRacing-v3, one environment on one core."""
    env = make_car_racing()
    rate = _single_rate(env, steps, repeats)
    env.close()
    return rate


def real_rate_of_all_cores(*, steps: int, repeats: int = 3) -> float:
    """Steps/s of Gymnasium's CarRacing-v3, one environment in a process of its own a core."""
    timing = {"steps": steps, "repeats": repeats}
    events = run_jobs(_time_real, timing, range(usable_cores()))
    return sum(event.result for event in events if isinstance(event, Done))


def _time_real(timing: dict[str, int], core: int) -> Generator[int, None, float]:
    yield core
    return real_rate(**timing)


def evaluation_rate(world: WorldModel, *, steps: int, repeats: int = 3) -> float:
    """Frames/s of `evaluate` on Gymnasium's CarRacing-v3, all cores, V and M at work.

    Starting and compiling, which do not grow with the episodes, are left out: the last three
    quarters of the episodes of a process on each core are timed, all on the track of `real_rate`.
    They have `steps` frames, 400 at most, or the cars leave it.
    """
    return max(_evaluation_rate(world, steps) for _ in range(repeats))


def _evaluation_rate(world: WorldModel, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        driver = _TimedDriver(Path(folder), CARS * (steps // 4), CARS * (steps - 1))
        evaluate(
            driver,
            seeds=[0] * (CARS * usable_cores()),
            world_model=world,
            max_episode_steps=steps,
            progress=False,
        )
        times = [float(file.read_text()) for file in Path(folder).iterdir()]
    return sum((driver.last - driver.first) / seconds for seconds in times)


class _TimedDriver:
    """Drives a process's cars gently, and writes down how long it took from call to call."""

    def __init__(self, folder: Path, first: int, last: int):
        self.folder, self.first, self.last = folder, first, last
        self.frame, self.begin = 0, 0.0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        if self.frame == self.first:
            self.begin = time.perf_counter()
        if self.frame == self.last:
            took = time.perf_counter() - self.begin
            (self.folder / str(os.getpid())).write_text(str(took))
        self.frame += 1
        return _GENTLE


def envpool_rate(*, steps: int, lanes: int = 16, repeats: int = 3) -> float | None:
    """Steps/s of EnvPool's CarRacing-v3 on all cores, or None where EnvPool is not installed."""
    if default_backend() != "envpool":
        return None
    env = make_car_racing_vector(lanes, backend="envpool", threads=usable_cores())
    rate = _vector_rate(env, steps, repeats)
    env.close()
    return rate


def _vector_rate(env: gymnasium.vector.VectorEnv, steps: int, repeats: int) -> float:
    env.reset(seed=0)
    actions = np.tile(_GENTLE, (env.num_envs, 1))

    def work() -> None:
        for _ in range(steps):
            env.step(actions)

    return best_rate(work, float(env.num_envs * steps), repeats=repeats)


def _single_rate(env: gymnasium.Env, steps: int, repeats: int) -> float:
    env.reset(seed=0)

    def work() -> None:
        for _ in range(steps):
            _, _, terminated, truncated, _ = env.step(_GENTLE)
            if terminated or truncated:
                env.reset()

    return best_rate(work, float(steps), repeats=repeats)


def world_or_untrained(path_or_shipped_name: str | None = None) -> WorldModel:
    """A world by its name, else the shipped one, else one of random weights."""
    if path_or_shipped_name is None and "carracing" not in shipped_names():
        return untrained_world()
    return world_for(CAR_RACING, path_or_shipped_name)


def untrained_world(seed: int = 0) -> WorldModel:
    """Random weights of the paper's sizes: as fast as a trained world, and as slow."""
    key_vae, key_mdn_rnn, key_starts = jax.random.split(jax.random.key(seed), 3)
    config = MDNRNNConfig()
    first_z = jax.random.normal(key_starts, (4, config.latent_size))
    rest = jnp.zeros((4, config.hidden_size))
    return WorldModel(
        vae=VAE(VAEConfig(latent_size=config.latent_size), key=key_vae),
        mdn_rnn=MDNRNN(config, key=key_mdn_rnn),
        starts=StartStates(first_z=first_z, z=first_z, h=rest, c=rest),
    )
