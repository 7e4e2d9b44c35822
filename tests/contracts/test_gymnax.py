"""What a user of gymnax relies on: registration, six values, auto-reset, any transformation."""

import functools
import subprocess
import sys
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_env
from wm_env import dream, weights, weights_file
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.gymnax_parts import environment
from wm_env.task import CAR_RACING
from wm_env.weights import WeightsError

ROOT = Path(weights.__file__).parents[1]


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """An empty folder of shipped weights."""
    monkeypatch.setattr(weights_file, "ASSETS", tmp_path)
    dream._shipped_world.cache_clear()
    yield tmp_path
    dream._shipped_world.cache_clear()


def run(script):
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ["import gymnax, wm_env", "import wm_env, gymnax"])
def test_the_id_is_registered_in_either_order_of_imports(order):
    script = f"{order}\nprint(gymnax.registered_envs.count('DreamCarRacing-v0'))"
    assert run(script).split() == ["1"]


def test_a_dream_leaves_gymnaxs_own_environments_and_plots_alone():
    """They take longer to import than all that it needs; gymnax is whole where it is asked for."""
    script = """
import sys
from wm_env import DreamCarRacing
print([name for name in ("gymnax", "gymnax.environments", "matplotlib") if name in sys.modules])
import gymnax.environments.environment, gymnax.environments.spaces
print(issubclass(DreamCarRacing, gymnax.environments.environment.Environment))
print(isinstance(DreamCarRacing().action_space(), gymnax.environments.spaces.Box))
print(gymnax.registered_envs.count("DreamCarRacing-v0"), gymnax.make("CartPole-v1")[0].name)
"""
    assert run(script).splitlines() == ["[]", "True", "True", "1 CartPole-v1"]


def test_registering_again_changes_nothing():
    import registrations

    before = list(gymnax.registered_envs)
    registrations.register_gymnax()
    registrations.register_gymnasium()
    assert gymnax.registered_envs == before


def test_make_gives_the_shipped_world_loaded_once(world, assets):
    wm_env.save_world(world, assets / "carracing.safetensors", dtype="float32")
    env, params = gymnax.make("DreamCarRacing-v0", observation="latent")
    assert isinstance(env, DreamCarRacing) and env.observation == "latent"
    np.testing.assert_array_equal(params.world_model.starts.z, world.starts.z)
    assert gymnax.make("DreamCarRacing-v0")[1].world_model is params.world_model


def test_make_without_shipped_weights_says_so(assets):
    with pytest.raises(WeightsError, match="no weights at 'carracing'"):
        gymnax.make("DreamCarRacing-v0")


def test_default_params_may_be_left_out_under_jit(world, assets):
    wm_env.save_world(world, assets / "carracing.safetensors", dtype="float32")
    obs, state = DreamCarRacing().reset(jax.random.key(0))
    DreamCarRacing().step(jax.random.key(0), state, jnp.zeros(3))
    assert isinstance(DreamCarRacing().default_params.world_model.starts.z, jax.Array)
    assert not isinstance(dream._shipped_world(CAR_RACING, "float32").starts.z, jax.core.Tracer)


def test_step_gives_gymnaxs_six_values_and_resets_by_itself(world, with_outcomes):
    env = DreamCarRacing()
    params = DreamParams(world_model=with_outcomes(world), max_steps_in_episode=2)
    _, state = env.reset(jax.random.key(0), params)
    action = jnp.zeros(3)
    _, state, *_ = env.step(jax.random.key(1), state, action, params)
    obs, after, reward, terminated, truncated, info = env.step(
        jax.random.key(2), state, action, params
    )
    assert truncated and not terminated and info["truncated"] and not info["terminated"]
    assert after.time == 0 and after.tiles == 0
    key_step, key_reset = jax.random.split(jax.random.key(2))
    np.testing.assert_allclose(obs, env.reset_env(key_reset, params)[0], atol=1e-6)
    final = env.step_env(key_step, state, action, params)[0]
    np.testing.assert_allclose(info["final_observation"], final, atol=1e-5)


@pytest.mark.parametrize(
    "told", [{}, {"start_middle": 0.5}, {"dropout": 0.3}, {"start_middle": jnp.linspace(0, 1, 6)}]
)
def test_auto_reset_chooses_what_gymnaxs_own_would(world, with_outcomes, told):
    """Ours makes what is seen after choosing the state, and has a branch for plain beginnings."""
    env = DreamCarRacing()
    params = DreamParams(world_model=with_outcomes(world), max_steps_in_episode=2, **told)
    keys = jax.random.split(jax.random.key(0), 6)
    own = jnp.ndim(params.start_middle) > 0  # a share of each lane's
    axes = jax.tree.map(lambda _: None, params).replace(start_middle=0 if own else None)
    begun = jax.vmap(env.reset, in_axes=(0, axes))(keys, params)[1]
    state = begun.replace(time=jnp.arange(6, dtype=jnp.int32) % 2)  # every other lane is to end
    ours, theirs = (
        jax.jit(jax.vmap(functools.partial(step, env), in_axes=(0, 0, None, axes)))(
            keys, state, jnp.zeros(3), params
        )
        for step in (DreamCarRacing.step, environment.Environment.step)
    )
    assert ours[4].tolist() == [False, True] * 3
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), ours, theirs)


def test_pixels_after_auto_reset_are_those_of_the_chosen_state(world, with_outcomes):
    env = DreamCarRacing("pixels")
    params = DreamParams(world_model=with_outcomes(world), max_steps_in_episode=1)
    _, state = env.reset(jax.random.key(0), params)
    obs, after, *_, info = env.step(jax.random.key(1), state, jnp.zeros(3), params)
    np.testing.assert_allclose(obs.astype(int), np.asarray(world.decode(after.z), int), atol=1)
    key_step, _ = jax.random.split(jax.random.key(1))
    final = env.step_env(key_step, state, jnp.zeros(3), params)[0]
    np.testing.assert_allclose(
        info["final_observation"].astype(int), np.asarray(final, int), atol=1
    )


def test_vmap_scan_and_jit_compose(world):
    env, params = DreamCarRacing(), DreamParams(world_model=world)

    @jax.jit
    def play(params, keys):
        _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)

        def body(state, keys):
            actions = jax.vmap(env.action_space(params).sample)(keys)
            step = jax.vmap(env.step, in_axes=(0, 0, 0, None))
            _, state, reward, *_ = step(keys, state, actions, params)
            return state, reward

        return jax.lax.scan(body, state, jax.vmap(lambda k: jax.random.split(k, 5))(keys).T)[1]

    rewards = play(params, jax.random.split(jax.random.key(0), 4))
    assert rewards.shape == (5, 4) and np.all(np.isfinite(rewards))


def test_transition_gradients_are_supported():
    env = DreamCarRacing()
    assert env.supports_transition_gradients and not env.transition_gradients_enabled
    assert env.with_transition_gradients().transition_gradients_enabled
