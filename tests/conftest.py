"""Strict numerics, run-time shape checks, and a world that needs no training."""

import os
import signal
import tempfile

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import equinox as eqx
import jax
import pytest
from jaxtyping import install_import_hook

# A job in the background is started with Ctrl-C ignored, and so would be what tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any module of ours is imported: every annotated shape is checked while the tests run.
# The tower: where a float is asked for an int will do (PEP 484).
install_import_hook("wm_env", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# What one test has compiled, others and the processes that they start need not compile again.
_programs = tempfile.TemporaryDirectory(prefix="wm_env-programs-", ignore_cleanup_errors=True)
for _name, _value in {
    "jax_compilation_cache_dir": _programs.name,
    "jax_persistent_cache_min_compile_time_secs": 0.02,  # others take as long to read back
}.items():
    os.environ.setdefault(_name.upper(), str(_value))
    jax.config.update(_name, type(_value)(os.environ[_name.upper()]))


def pytest_configure(config):
    """Time goes to compiling, but for long tests, which run long in what they compile."""
    if config.getoption("markexpr") != "long":
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def _random_world(seed=0, *, mdn_rnn=None, first=6, middle=10, task="CarRacing-v3"):
    """An untrained WorldModel of the paper's sizes with random start states.

    `mdn_rnn` replaces fields of MDNRNNConfig; `first` and `middle` are the numbers of start states.
    """
    from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
    from wm_env.motion import MOTION_SIZE
    from wm_env.task import task_named
    from wm_env.vae import VAE, VAEConfig
    from wm_env.world_model import Metadata, StartStates, WorldModel

    keys = jax.random.split(jax.random.key(seed), 6)
    config = MDNRNNConfig(**(mdn_rnn or {}))
    latent, hidden = config.latent_size, config.hidden_size
    starts = StartStates(
        first_z=jax.random.normal(keys[2], (first, latent)),
        z=jax.random.normal(keys[3], (middle, latent)),
        h=0.5 * jax.random.normal(keys[4], (middle, hidden)).clip(-1.0, 1.0),
        c=jax.random.normal(keys[5], (middle, hidden)),
        motion=jax.random.normal(keys[1], (middle, MOTION_SIZE)) if config.motion else None,
    )
    return WorldModel(
        vae=VAE(VAEConfig(latent_size=latent), key=keys[0]),
        mdn_rnn=MDNRNN(config, key=keys[1]),
        starts=starts,
        metadata=Metadata({"data": f"none: random weights of seed {seed}"}),
        task=task_named(task),
    )


@pytest.fixture(scope="session")
def random_world():
    """Makes untrained worlds: `random_world(seed, mdn_rnn={...}, first=6, middle=10)`."""
    return _random_world


def _with_outcomes(world, *, log_tiles=-30.0, off_field=-30.0):
    """The world with a fixed rate of tiles and logit of a fall, whatever the car does."""
    m = world.mdn_rnn
    weight = m.head_weight.at[:, -2:].set(0.0)
    bias = m.head_bias.at[-2].set(log_tiles).at[-1].set(off_field)
    where = lambda w: (w.mdn_rnn.head_weight, w.mdn_rnn.head_bias)  # noqa: E731
    return eqx.tree_at(where, world, (weight, bias))


@pytest.fixture(scope="session")
def with_outcomes():
    """Fixes what a world pays: `with_outcomes(world, log_tiles=..., off_field=...)`."""
    return _with_outcomes


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Frees the programs of a module: all that a run compiles need more memory maps than Linux
    grants a process (65,530), and the next one then ends it with a segmentation fault."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def world(random_world):
    """One random world that tests share; modules are immutable."""
    return random_world()


@pytest.fixture
def lenient_dtypes():
    """For what calls libraries that promote dtypes and ranks, which our own code may not."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def ray_of_two_nodes(monkeypatch):
    """A Ray cluster on this machine, a core a node: `.address` and `.kill_second_node()`."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 starves on a machine that is busy
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.kill_second_node = lambda: cluster.remove_node(second, allow_graceful=False)
    yield cluster
    cluster.shutdown()
