"""Evolution in the dream: returns rise, and worlds can be swapped without compiling."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_env
from agents import cma_es
from agents.cma_es import CMAESConfig, Evolution, fitness, restlessness
from agents.dream_mix import DreamMix
from agents.laps import lap_return, missing, straying
from agents.linear import LinearController, linear_policy
from agents.principal_axes import PrincipalAxes
from tests.contracts.test_compilation import compilations
from wm_env.dream import DreamCarRacing, DreamParams
from wm_env.motion import MOTION_SIZE, MOTION_UNITS, TILE_LENGTH
from wm_env.rollouts import Rollout, Trajectory, rollout

pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # evosax multiplies floats by booleans

HIDDEN = 16
FEATURES = 32 + HIDDEN
ROOT = Path(wm_env.__file__).parents[1]


@pytest.fixture(scope="module")
def small(random_world):
    return random_world(0, mdn_rnn={"hidden_size": HIDDEN})


def search(controller=None, **changes):
    config = CMAESConfig(**{"population": 8, "dreams": 2, "steps": 20, **changes})
    controller = LinearController.zeros(FEATURES) if controller is None else controller
    return Evolution(controller, linear_policy, config)


def mixed(world, *more, **ranges):
    return DreamMix(DreamParams(world_model=world), more, **ranges)


def generation(evolution, mix, **options):
    """The state before and after one generation, and how it went."""
    state = evolution.init(jax.random.key(0))
    return state, *evolution.advance(state, mix, jax.random.key(1), **options)


def test_a_generation_moves_the_mean_and_reports_finite_returns(small):
    evolution = search()
    state, after, outcome = generation(evolution, mixed(small))
    assert float(state.std) == pytest.approx(0.1)
    assert jnp.isfinite(outcome.mean_return) and outcome.best_return >= outcome.mean_return
    assert not jnp.array_equal(
        evolution.controller(after).weight, evolution.controller(state).weight
    )


def test_the_same_key_gives_the_same_generation(small):
    evolution, mix = search(), mixed(small, temperature=(0.5, 1.5), dropout=(0.0, 0.2))
    assert jnp.array_equal(generation(evolution, mix)[1].mean, generation(evolution, mix)[1].mean)


def test_alike_searches_share_programs_that_are_compiled_once(small, random_world):
    other = random_world(1, mdn_rnn={"hidden_size": HIDDEN})

    def evolve(gain, mix, **changes):
        controller = jax.tree.map(lambda leaf: leaf + gain, LinearController.zeros(FEATURES))
        evolution = search(controller, steps=21, **changes)
        state = evolution.init(jax.random.key(0))
        for _ in range(2):
            state, _ = evolution.advance(state, mix, jax.random.key(1))
        return evolution

    with compilations() as first:
        one = evolve(0.0, mixed(small))
    with compilations() as later:
        two = evolve(0.5, mixed(other, temperature=(0.5, 1.5)))
        three = evolve(0.0, mixed(small), sigma=0.2)
    for program in ("_ask", "_driven", "_tell"):
        assert sum(program in name for name in first) == 1
        assert sum(program in name for name in later) == 1  # sigma is part of the config
    assert one == two and hash(one) == hash(two) and one != three


def test_the_horizon_grows_in_five_equal_stages():
    config = CMAESConfig(steps=1000, steps_from=200, steps_generations=41)
    horizons = [config.horizon(number) for number in range(1, 60)]
    assert horizons == [200] * 10 + [400] * 10 + [600] * 10 + [800] * 10 + [1000] * 19
    assert CMAESConfig(steps=700).horizon(1) == 700
    assert CMAESConfig(steps=700, steps_from=100, steps_generations=1).horizon(1) == 700


def test_dreams_end_at_the_horizon_and_fixed_ones_at_the_last(small, with_outcomes):
    evolution = search(steps=20, steps_from=4, steps_generations=9)
    mix = mixed(with_outcomes(small, log_tiles=-3.0))
    with compilations() as compiled:
        for number, steps in ((1, 4), (2, 4), (3, 8), (9, 20), (10, 20)):
            _, _, outcome = generation(evolution, mix, number=number)
            assert float(outcome.mean_return / outcome.fixed_return) == pytest.approx(
                steps / 20, rel=1e-4
            )
    assert sum("_driven" in name for name in compiled) == 3  # one a horizon


def test_an_ensemble_earns_the_mean_of_its_worlds_and_the_fixed_dreams_are_of_the_first(
    small, with_outcomes
):
    worlds = [with_outcomes(small, log_tiles=rate) for rate in (-3.0, -2.0)]
    alone = [generation(search(), mixed(world))[2] for world in worlds]
    together = generation(search(), mixed(*worlds))[2]
    expected = (alone[0].mean_return + alone[1].mean_return) / 2
    assert float(alone[1].mean_return) > 1.5 * float(alone[0].mean_return)
    assert float(together.mean_return) == pytest.approx(float(expected), rel=1e-4)
    assert float(together.fixed_return) == pytest.approx(float(alone[0].fixed_return), rel=1e-4)


def test_dreams_that_cannot_be_spread_evenly_are_refused(small):
    evolution = search(dreams=3)
    with pytest.raises(ValueError, match="dreams is 3; expected a multiple of the 2 worlds"):
        generation(evolution, mixed(small, small))


def driven(actions, alive, **facts):
    actions, frames = jnp.asarray(actions, jnp.float32), len(alive)
    trajectory = Trajectory(
        observation=jnp.zeros((frames, 2)),
        action=actions,
        z=jnp.zeros((frames, 2)),
        reward=jnp.zeros(frames),
        alive=jnp.asarray(alive),
    )
    told = {"ret": jnp.float32(50.0), "tiles": jnp.float32(20.0), **facts}
    no = jnp.bool_(False)
    return Rollout(**told, length=jnp.int32(frames), lap_finished=no, off_field=no), trajectory


def test_restlessness_is_the_mean_change_of_the_clipped_inputs_while_the_episode_lasts():
    steer = [[-5.0, 0.5, 0.0], [5.0, 0.5, 0.0], [-1.0, 0.5, 0.0], [-1.0, 0.5, 1.0]]
    _, whole = driven(steer, [True] * 4)
    assert float(restlessness(whole)) == pytest.approx((2 + 2 + 1) / 3 / 3)
    _, ended = driven(steer, [True, True, False, False])
    assert float(restlessness(ended)) == pytest.approx(2 / 3)
    _, still = driven(steer[:1] * 3, [True] * 3)
    assert float(restlessness(still)) == 0.0


def test_fitness_is_the_return_or_the_tiles_less_what_restlessness_costs(world):
    episode, trajectory = driven([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [True, True])
    recorded = Rollout(**{**vars(episode), "trajectory": trajectory})
    params = DreamParams(world_model=world, track_tiles=250.0)
    assert float(fitness(episode, params, CMAESConfig())) == 50.0
    assert float(fitness(episode, params, CMAESConfig(fitness="tiles"))) == 80.0
    costly = CMAESConfig(fitness="tiles", restlessness=30.0)
    assert float(fitness(recorded, params, costly)) == pytest.approx(80.0 - 30.0 * 2 / 3)


def paid(tiles, *, track=100.0, fall=None):
    """A trajectory with so many tiles in each frame, until the lap or a fall."""
    tiles = np.asarray(tiles, np.float64)
    alive = np.cumsum(tiles) - tiles < track - 1e-6
    reward = np.where(alive, 1000.0 / track * tiles - 0.1, 0.0)
    if fall is not None:
        alive &= np.arange(len(tiles)) <= fall
        reward[fall] = -100.0
    _, trajectory = driven(np.zeros((len(tiles), 3)), alive)
    return dataclasses.replace(trajectory, reward=jnp.asarray(reward * alive, jnp.float32))


def lap(tiles, *, track=100.0, fall=None):
    """What `lap_return` pays for that."""
    return float(lap_return(paid(tiles, track=track, fall=fall), track))


def test_a_lap_without_a_gap_pays_its_return():
    assert lap([0.5] * 300) == pytest.approx(1000.0 - 0.1 * 200, abs=0.5)
    assert lap([0.2] * 300) == pytest.approx(600.0 - 0.1 * 300, abs=0.5)  # the time is up


def test_tiles_that_a_lost_driver_passes_never_pay():
    whole = [0.5] * 100 + [0.0] * 45 + [0.5] * 155
    assert sum(whole) > 100.0  # a dream pays for a lap
    lost = 45 - 24  # half a second goes by before he counts as lost
    # Half a tile each is missed; the time runs on to its end.
    assert lap(whole) == pytest.approx(1000.0 - 10.0 * 0.5 * lost - 0.1 * 300, abs=6.0)


def test_a_car_that_gathers_way_is_not_lost():
    assert lap([0.0] * 20 + [0.5] * 200) == pytest.approx(1000.0 - 0.1 * 220, abs=0.5)


def test_a_fall_costs_a_hundred():
    assert lap([0.2] * 300, fall=100) == pytest.approx(10.0 * 20.0 - 10.1 - 100.0, abs=0.5)


def test_straying_counts_the_frames_lost_and_after_a_fall_all_to_the_horizon(world):
    def thousands(tiles, **options):
        return float(straying(paid(tiles, **options), 100.0))

    assert thousands([0.2] * 300) == 0.0
    assert thousands([0.5] * 300) == 0.0  # the lap is finished after 200
    lost = 45 - 24  # half a second goes by before he counts as lost
    gap = [0.2] * 100 + [0.0] * 45 + [0.2] * 155
    assert thousands(gap) == pytest.approx((lost + 2) / 1000, abs=0.003)
    assert thousands([0.2] * 300, fall=99) == pytest.approx(0.2)
    trajectory = paid([0.2] * 300, fall=99)
    episode, _ = driven(np.zeros((300, 3)), np.ones(300, bool))
    recorded = Rollout(**{**vars(episode), "trajectory": trajectory})
    params = DreamParams(world_model=world, track_tiles=100.0)
    costly = CMAESConfig(straying=1000.0)
    assert float(fitness(recorded, params, costly)) == pytest.approx(50.0 - 200.0)


def at_speed(trajectory, speed):
    """The trajectory of a car that goes at so many units a second."""
    motion = jnp.zeros((len(trajectory.reward), MOTION_SIZE))
    forward = motion.at[:, 0].set(speed / MOTION_UNITS["forward"])
    return dataclasses.replace(trajectory, motion=forward)


def test_a_tile_that_a_car_passes_without_a_hit_is_missing(world):
    def likely(tiles, *, speed, **options):
        return float(missing(at_speed(paid(tiles, **options), speed), 100.0))

    rate = 52.5 / 50 / TILE_LENGTH  # tiles a frame on the road
    whole = [rate] * 200
    assert likely(whole, speed=52.5) < 1e-3
    corner = [rate] * 100 + [0.0] * 4 + [rate] * 96
    assert likely(corner, speed=52.5) > 0.99
    assert likely(corner, speed=20.0) < 0.2  # a slow one hits the next tile only now
    assert likely([0.0] * 40 + whole, speed=52.5) < 1e-3  # a car that gathers way
    assert likely([rate] * 400 + [0.0] * 50, speed=52.5) < 1e-3  # the lap was finished before
    half = [rate] * 100 + [0.43 * rate] * 5 + [rate] * 95
    assert likely(half, speed=52.5) == pytest.approx(0.5, abs=0.05)
    assert float(missing(paid(corner), 100.0)) == 0.0  # where no speed is known

    episode, _ = driven(np.zeros((200, 3)), np.ones(200, bool))
    recorded = Rollout(**{**vars(episode), "trajectory": at_speed(paid(corner), 52.5)})
    params = DreamParams(world_model=world, track_tiles=100.0)
    assert float(fitness(recorded, params, CMAESConfig(missing=30.0))) == pytest.approx(20.0, abs=1)


def test_parts_of_a_population_give_what_the_whole_does(monkeypatch):
    monkeypatch.setattr(cma_es, "_AT_ONCE", 2)
    population = jnp.arange(8.0)
    squares, opposites = search().map(lambda one: (one**2, -one), population, 2)
    assert squares.tolist() == (population**2).tolist()
    assert opposites.tolist() == (-population).tolist()


@pytest.mark.parametrize(
    ("population", "dreams", "part"),
    [(256, 16, 64), (64, 16, 64), (48, 24, 48), (48, 256, 4), (251, 16, 251), (8, 4096, 1)],
)
def test_a_part_of_the_population_has_about_five_hundred_dreams_a_core(
    population, dreams, part, monkeypatch
):
    sizes = []
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(cma_es, "usable_cores", lambda: 2)
    monkeypatch.setattr(jax.lax, "map", lambda drive, over, *, batch_size: sizes.append(batch_size))
    search(population=population).map(lambda candidate: candidate, None, dreams)
    assert sizes == [part]


def test_along_principal_axes_a_search_stays_in_their_span_and_keeps_its_programs(small):
    origin = jax.tree.map(lambda leaf: leaf + 0.1, LinearController.zeros(FEATURES))
    axes = PrincipalAxes.of(origin, small, 4)
    evolution = Evolution(
        origin, linear_policy, CMAESConfig(population=8, dreams=2, steps=20, axes=4), axes
    )
    state, after, outcome = generation(evolution, mixed(small))
    assert jnp.isfinite(outcome.fixed_return)
    first = evolution.controller(state)
    np.testing.assert_allclose(first.weight, origin.weight, atol=1e-6)
    moved = evolution.controller(after).weight - first.weight
    assert float(jnp.abs(moved).max()) > 1e-3
    along = moved @ jnp.linalg.pinv(axes.axes.T)
    np.testing.assert_allclose(along @ axes.axes.T, moved, atol=1e-4)


def test_moments_count_beside_episodes_by_their_weight(small, with_outcomes):
    """Tiles at one rate: 22 frames of an episode, and 11 of a moment at twice their worth."""
    mix = mixed(with_outcomes(small, log_tiles=-3.0))
    sizes = {"population": 8, "dreams": 2, "steps": 22}  # nobody else's, for programs are shared

    def worth(**changes):
        evolution = search(**changes)
        evolution._strategy.tell = lambda key, population, costs, state, params: (costs, None)
        evolution._strategy.get_mean = lambda state: evolution._template
        state = evolution.init(jax.random.key(0))
        return -np.asarray(evolution.advance(state, mix, jax.random.key(1))[0])

    alone = worth(**sizes)
    beside = worth(**sizes, moments=4, moment_steps=11, moment_weight=2.0)
    np.testing.assert_allclose(beside, 2.0 * alone, rtol=1e-4)


def test_a_price_on_restlessness_calms_the_driver(small):
    weight = jax.random.normal(jax.random.key(5), (3, FEATURES))

    def policy(gain, observation, key):  # as restless as its three gains are large
        return jnp.tanh(gain * (weight @ observation))

    config = CMAESConfig(population=8, dreams=2, steps=20, restlessness=1e5, sigma=0.3)
    evolution, mix = Evolution(jnp.ones(3), policy, config), mixed(small)
    state = evolution.init(jax.random.key(0))
    for number in range(15):
        state, _ = evolution.advance(state, mix, jax.random.key(number))

    @jax.jit
    def unrest(gain):
        drive = lambda key: rollout(  # noqa: E731
            DreamCarRacing(), mix.plain, policy, gain, key, steps=20, record=True
        )
        keys = jax.random.split(jax.random.key(9), 16)
        return jax.vmap(lambda key: restlessness(drive(key).trajectory))(keys).mean()

    assert float(unrest(evolution.controller(state))) < 0.8 * float(unrest(jnp.ones(3)))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"population": 3}, "population is 3; expected 4 or more"),
        ({"dreams": 0}, "dreams is 0; expected 1 or more"),
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"sigma": 0.0}, "sigma is 0.0; expected a number above 0"),
        ({"restlessness": -1.0}, "restlessness is -1.0; expected 0 or more"),
        ({"steps_from": 30}, "steps_from is 30; expected 1 to steps, 20"),
        ({"steps_generations": 0}, "steps_generations is 0; expected 1 or more"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        search(**changes)


SCRIPT = """
import os
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["JAX_PLATFORMS"] = "cpu"
import functools, importlib.util, json, jax, numpy as np
spec = importlib.util.spec_from_file_location("fixtures", "tests/conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
jax.config.update("jax_numpy_rank_promotion", "allow")
jax.config.update("jax_numpy_dtype_promotion", "standard")
from agents import cma_es
from agents.cma_es import CMAESConfig, Evolution
from agents.dream_mix import DreamMix
from agents.linear import LinearController, linear_policy
from wm_env.dream import DreamParams

cma_es._AT_ONCE, cma_es.usable_cores = 6, lambda: 4
world = fixtures._random_world(0, mdn_rnn={"hidden_size": 16})
mix = DreamMix(DreamParams(world_model=world), [world], temperature=(0.5, 1.5))
everywhere, facts = jax.local_devices, {}
for name, devices in (("alone", everywhere()[:1]), ("split", everywhere())):
    jax.local_devices = lambda: devices
    config = CMAESConfig(population=8, dreams=6, steps=5)
    evolution = Evolution(LinearController.zeros(48), linear_policy, config)
    state = evolution.init(jax.random.key(0))
    shares = jax.device_put(evolution._ask(jax.random.key(1), state)[0], evolution._split)
    where = jax.device_put((mix, (jax.random.key(1), jax.random.key(2)), None), evolution._whole)
    program = Evolution._driven.lower(evolution, shares, *where, 5).compile()
    text = program.compiled.as_text()
    evolution._driven = functools.partial(program, evolution)  # or it would be compiled again
    words = "all-gather", "all-reduce", "all-to-all", "collective"
    facts[name + " talk"] = sum(text.count(word) for word in words)
    facts[name + " flops"] = program.compiled.cost_analysis()["flops"]
    outcomes = []
    for number in range(3):
        state, outcome = evolution.advance(state, mix, jax.random.key(number))
        outcomes += [float(value) for value in outcome]
    facts[name] = outcomes
    facts[name + " mean"] = np.asarray(state.mean).tolist()
    returns, _ = evolution._driven(shares, *where, 5)
    kept = state.mean, jax.tree.leaves(evolution.controller(state))[0]
    facts[name + " devices"] = [len(x.sharding.device_set) for x in (returns, *kept)]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    """Three generations on one simulated device and on four, and their programs."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_four_devices_evolve_what_one_does(facts):
    np.testing.assert_allclose(facts["split"], facts["alone"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(facts["split mean"], facts["alone mean"], rtol=1e-3, atol=1e-4)
    assert (facts["alone devices"], facts["split devices"]) == ([1, 1, 1], [4, 1, 1])


def test_each_of_four_devices_dreams_a_part_and_waits_for_none_while_it_does(facts):
    assert facts["split flops"] < 0.6 * facts["alone flops"]
    assert facts["split talk"] == 0
