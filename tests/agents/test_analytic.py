"""Ascent of the dreamt return: its gradient is right, it climbs, and a training resumes."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import analytic
from agents.analytic import AnalyticConfig, run
from agents.ascent import ascend, begin, expected_return
from agents.controllers import load_controller_policy, policy_of, save_any
from agents.linear import LinearController, linear_policy
from agents.mlp import MLPController
from wm_env.checkpoint import CheckpointError
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.rollouts import rollout
from wm_env.weights import save_world

pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers

KEY = jax.random.key(3)
FEATURES = 24
# One component: a choice among several is a jump of the return, and no slope.
SIZES = {"latent_size": 8, "hidden_size": 16, "mixtures": 1}


@pytest.fixture(scope="module")
def tiny(random_world):
    """A world where what the driver does moves tiles and falls, both likely."""
    world = random_world(1, mdn_rnn=SIZES)
    bias = world.mdn_rnn.head_bias.at[-1].set(-3.0)
    weight = world.mdn_rnn.head_weight.at[:, -2:].multiply(4.0)
    where = lambda w: (w.mdn_rnn.head_weight, w.mdn_rnn.head_bias)  # noqa: E731
    return eqx.tree_at(where, world, (weight, bias))


def controller_of(hidden):
    """Away from the brake's corner at 0."""
    if hidden:
        controller = MLPController.init(FEATURES, hidden, key=jax.random.key(0))
        where = lambda c: (c.weights[-1], c.biases[-1])  # noqa: E731
    else:
        controller = LinearController.zeros(FEATURES)
        where = lambda c: (c.weight, c.bias)  # noqa: E731
    weight = 0.05 * jax.random.normal(jax.random.key(2), where(controller)[0].shape)
    return eqx.tree_at(where, controller, (weight, jnp.array([0.1, 0.2, 0.5])))


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_the_slope_of_the_return_is_that_of_finite_differences(tiny, hidden):
    params, controller = DreamParams(world_model=tiny), controller_of(hidden)
    leaves, structure = jax.tree.flatten(controller)
    sizes = np.cumsum([leaf.size for leaf in leaves])

    @jax.jit
    @jax.value_and_grad
    def ret(flat):
        parts = jnp.split(flat, sizes[:-1])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        candidate = jax.tree.unflatten(structure, shaped)
        return expected_return(params, policy_of(controller), candidate, KEY, steps=12)

    at = jnp.concatenate([leaf.ravel() for leaf in leaves])
    slope = np.asarray(ret(at)[1], np.float64)
    length = np.linalg.norm(slope)
    directions = np.random.default_rng(0).normal(size=(3, len(at)))
    directions = np.stack([slope, *directions])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for way in directions.astype(np.float32):
        difference = float(ret(at + 0.02 * way)[0] - ret(at - 0.02 * way)[0]) / 0.04
        assert difference == pytest.approx(slope @ way, rel=2e-2, abs=2e-3 * length)
    assert length > 1.0


def test_without_falls_it_is_the_return_of_a_rollout(tiny, with_outcomes):
    params = DreamParams(world_model=with_outcomes(tiny, log_tiles=-1.0), start_middle=0.5)
    controller = controller_of(())
    expected = rollout(DreamCarRacing(), params, linear_policy, controller, KEY, steps=20).ret
    found = expected_return(params, linear_policy, controller, KEY, steps=20)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_fall_counts_by_its_probability_and_ends_the_episode(tiny, with_outcomes):
    params = DreamParams(world_model=with_outcomes(tiny, log_tiles=0.0, off_field=-2.0))
    found = expected_return(params, linear_policy, controller_of(()), KEY, steps=9)
    fall, paid = 1.0 / (1.0 + math.exp(2.0)), 1000.0 / 281.0 - 0.1
    frame = (1.0 - fall) * paid - 100.0 * fall
    expected = sum((1.0 - fall) ** t * frame for t in range(9))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_lap_ends_the_episode(tiny, with_outcomes):
    world = with_outcomes(tiny, log_tiles=math.log(4.0))
    params = DreamParams(world_model=world, track_tiles=8.0)
    found = expected_return(params, linear_policy, controller_of(()), KEY, steps=9)
    assert float(found) == pytest.approx(1000.0 - 0.2, rel=1e-5)


def climb(state, params, key, policy=linear_policy, **changes):
    sizes = {"batch": 16, "steps": 12, "learning_rate": 0.03, "clip": 100.0, **changes}
    return ascend(state, params, key, policy=policy, **sizes)


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_updates_raise_the_dreamt_return(tiny, hidden):
    params, controller = DreamParams(world_model=tiny), controller_of(hidden)
    state, policy = begin(controller), policy_of(controller)
    for update in range(20):
        key = jax.random.fold_in(jax.random.key(7), update)
        state, _ = climb(state, params, key, policy)
    keys = jax.random.split(jax.random.key(99), 64)
    before, after = (
        jax.vmap(lambda key, c=c: expected_return(params, policy, c, key, steps=12))(keys).mean()
        for c in (controller, state.controller)
    )
    assert after > before + 3.0


def test_no_dreams_gradient_is_longer_than_the_clip(tiny):
    params, state = DreamParams(world_model=tiny), begin(controller_of(()))
    _, free = climb(state, params, KEY, clip=1e9)
    _, short = climb(state, params, KEY, clip=0.5)
    assert free.clipped == 0.0 and short.clipped == 1.0
    assert free.gradient_norm > 1.0 and 0.0 < short.gradient_norm <= 0.5
    assert short.median_norm == free.median_norm > 0.5  # told as they were


def test_without_clipping_the_mean_returns_gradient_is_followed(tiny):
    params, controller = DreamParams(world_model=tiny), controller_of(())
    keys = jax.random.split(KEY, 16)

    def mean(candidate):
        one = lambda key: expected_return(params, linear_policy, candidate, key, steps=12)  # noqa: E731
        return jax.vmap(one)(keys).mean()

    value, gradient = jax.value_and_grad(mean)(controller)
    state, slope = climb(begin(controller), params, KEY, clip=1e9)
    assert float(slope.window_return) == pytest.approx(float(value), rel=1e-4)
    norm = jnp.sqrt(jnp.sum(gradient.weight**2) + jnp.sum(gradient.bias**2))
    assert float(slope.gradient_norm) == pytest.approx(float(norm), rel=1e-3)
    # Adam's first step is the sign of the gradient.
    moved = (state.controller.bias - controller.bias) / 0.03
    np.testing.assert_allclose(moved, np.sign(gradient.bias), atol=1e-2)


def test_a_dream_whose_gradient_overflows_has_no_say(tiny):
    def brittle(gas, observation, key):
        # Where this is infinite the action is clipped, and 0 times infinity is no number.
        return jnp.stack([0.0, gas * jnp.where(observation[0] > 0.0, 1.0, jnp.inf), 0.0])

    params, gas = DreamParams(world_model=tiny), jnp.float32(0.5)
    after, slope = climb(begin(gas), params, KEY, brittle, steps=1)
    assert jnp.isfinite(after.controller) and after.controller != gas
    assert jnp.isfinite(slope.gradient_norm) and slope.gradient_norm > 0.0


@pytest.fixture
def config(tiny, tmp_path):
    save_world(tiny, tmp_path / "world.safetensors", dtype="float32")
    return AnalyticConfig(
        world=str(tmp_path / "world.safetensors"),
        out=tmp_path / "out",
        updates=4,
        batch=4,
        steps=5,
        validate_every=2,
        validation_episodes=1,
        validation_steps=5,
    )


@pytest.fixture
def real_means(monkeypatch):
    """Stands in for episodes: real ones score what the test puts here, in turn; dreamt ones 1."""
    means = []

    def evaluate(policy, controller, *, env, **options):
        return SimpleNamespace(mean=means.pop(0) if env == "real" else 1.0, std=0.0)

    monkeypatch.setattr(analytic, "evaluate", evaluate)
    return means


def weights(path):
    return jax.tree.leaves(load_controller_policy(path)[1])


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_a_resumed_training_gives_the_weights_of_one_that_was_not_cut(
    config, real_means, tmp_path, hidden
):
    real_means += [1.0, 2.0, 3.0, 4.0]
    config = replace(config, hidden=hidden)
    whole = run(config)
    cut = replace(config, out=tmp_path / "cut")
    run(replace(cut, updates=2))
    resumed = run(cut)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    logs = [(out / "history.jsonl").read_text() for out in (config.out, cut.out)]
    assert [len(log.splitlines()) for log in logs] == [4, 4]


def test_fewer_updates_than_there_were_are_refused(config, real_means):
    real_means += [1.0, 2.0, 3.0, 4.0]
    run(config)
    with pytest.raises(ValueError, match="updates is 2, but .* has had 4"):
        run(replace(config, updates=2))


def test_the_controller_that_reality_preferred_is_kept(config, real_means):
    real_means += [5.0, 9.0, 7.0]
    path = run(replace(config, updates=5))
    assert path == config.out / "controller.safetensors"
    _, _, facts = load_controller_policy(path, features=FEATURES)
    assert facts["update"] == 4 and facts["chosen_among"] == 3
    assert facts["validation"]["real_mean"] == 9.0
    for one, other in zip(
        weights(path), weights(config.out / "controller-0004.safetensors"), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_history_tells_each_update_and_the_figure_is_drawn(config, real_means):
    real_means += [5.0, 9.0]
    run(config)
    rows = [json.loads(line) for line in (config.out / "history.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3, 4]
    assert all(row["gradient_norm"] > 0.0 and "window_return" in row for row in rows)
    assert [row.get("real_mean") for row in rows] == [None, 5.0, None, 9.0]
    assert (config.out / "analytic.png").stat().st_size > 1000


def test_a_training_goes_on_from_a_controller_of_either_kind(config, real_means, tmp_path):
    for hidden in ((), (6,)):
        controller = controller_of(hidden)
        save_any(controller, tmp_path / "begin.safetensors")
        real_means.append(1.0)
        out = tmp_path / f"from-{len(hidden)}"
        begin_there = replace(config, controller=str(tmp_path / "begin.safetensors"), out=out)
        path = run(replace(begin_there, updates=1, learning_rate=1e-6))
        for one, other in zip(weights(path), jax.tree.leaves(controller), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"updates": 0}, "updates is 0; expected more than 0"),
        ({"batch": -1}, "batch is -1"),
        ({"clip": math.nan}, "clip is nan"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number from 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"start_middle": 1.5}, "start is 1.5"),
        ({"hidden": (0,)}, "expected sizes of 1 or more"),
        ({"controller": "carracing_controller"}, "expected .*24"),
    ],
)
def test_wrong_numbers_are_refused(config, change, said):
    with pytest.raises(ValueError, match=said):
        run(replace(config, **change))
    assert not config.out.exists()


def test_layers_that_the_controller_has_not_are_refused(config, tmp_path):
    save_any(controller_of((6,)), tmp_path / "begin.safetensors")
    config = replace(config, controller=str(tmp_path / "begin.safetensors"), hidden=(7,))
    with pytest.raises(ValueError, match=r"hidden is \(7,\) but .* has \(6,\)"):
        run(config)


def test_another_configuration_does_not_take_up_a_checkpoint(config, real_means):
    real_means += [1.0]
    run(replace(config, updates=1))
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.003 and is 0\.1"):
        run(replace(config, learning_rate=0.1))


def test_validation_drives_whole_episodes_in_dreams_and_for_real(config):
    pytest.importorskip("envpool")
    run(replace(config, updates=1, backend="envpool"))
    row = json.loads((config.out / "history.jsonl").read_text())
    # The first frame of a real track pays for the two tiles under the car; then time costs.
    assert row["real_episodes"] == 1 and 3.0 < row["real_mean"] < 20.0
    assert math.isfinite(row["dream_mean"])
