"""`python -m agents evolve`: what is kept, when it stops, and that it goes on where it was."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import evolve
from agents.__main__ import main
from agents.cma_es import CMAESConfig, Generation
from agents.evolve import EvolveConfig
from agents.history import EvolutionHistory
from agents.linear import LinearController, load_linear
from wm_env.checkpoint import CheckpointError
from wm_env.weights import save_world


class State(NamedTuple):
    number: Any
    std: Any


class CountingSearch:
    """In place of CMA-ES: the controller of generation n has the bias n."""

    def __init__(self, controller, policy, config, axes):
        self.config, Asked.axes = config, axes

    def init(self, key):
        return State(jnp.float32(0.0), jnp.float32(0.1))

    def controller(self, state):
        return dataclasses.replace(LinearController.zeros(), bias=jnp.full(3, state.number))

    def advance(self, state, mix, key, *, number):
        Asked.generations.append(number)
        Asked.mix = mix
        if number == Asked.stop_in_generation:
            raise KeyboardInterrupt
        noise = float(jax.random.uniform(key))
        return State(state.number + 1.0, state.std), Generation(*jnp.float32([noise, 2, number]))


class Asked:
    """What the search and reality were asked, and when somebody presses Ctrl-C."""

    generations: list[int]
    seeds: list[range]
    mix: Any
    axes: Any
    real: dict[int, float]  # what reality says of a generation; else 0
    stop_in_generation: int | None
    stop_in_validation: int | None


@pytest.fixture
def asked(monkeypatch):
    Asked.generations, Asked.seeds, Asked.real = [], [], {}
    Asked.stop_in_generation = Asked.stop_in_validation = None

    def validate(policy, controller, *, seeds, **options):
        number = int(controller.bias[0])
        if number == Asked.stop_in_validation:
            raise KeyboardInterrupt
        Asked.seeds.append(seeds)
        return SimpleNamespace(mean=Asked.real.get(number, 0.0), std=1.0)

    monkeypatch.setattr(evolve, "Evolution", CountingSearch)
    monkeypatch.setattr(evolve, "evaluate", validate)
    return Asked


@pytest.fixture
def config(world, tmp_path):
    save_world(world, tmp_path / "world.safetensors")
    return EvolveConfig(
        world=str(tmp_path / "world.safetensors"),
        out=tmp_path / "out",
        generations=6,
        validate_every=2,
        validation_episodes=3,
        validation_first_seed=5,
    )


def told(config):
    """The lines of the history, without what the clock says."""
    lines = (config.out / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{name: row[name] for name in row if name not in ("seconds", "at")} for row in rows]


def kept(config):
    controller, facts = load_linear(config.out / "controller.safetensors")
    return float(controller.bias[0]), facts


def test_the_controller_that_reality_preferred_is_kept_with_how_it_was_chosen(asked, config):
    asked.real.update({2: 100.0, 4: 300.0, 6: 200.0})
    assert evolve.run(config) == config.out / "controller.safetensors"
    bias, facts = kept(config)
    assert bias == 4.0 and facts["generation"] == 4 and facts["chosen_among"] == 3
    assert facts["validation"] == {"real_mean": 300.0, "real_std": 1.0, "real_episodes": 3}
    assert asked.seeds == [range(5, 8)] * 3
    assert [row["generation"] for row in told(config)] == [1, 2, 3, 4, 5, 6]
    assert [row.get("real_mean") for row in told(config)] == [None, 100, None, 300, None, 200]


@pytest.mark.parametrize("moment", ["stop_in_generation", "stop_in_validation"])
def test_after_ctrl_c_the_next_run_tells_what_one_run_would_have(asked, config, moment):
    asked.real.update({2: 100.0, 4: 50.0, 6: 200.0})
    whole = dataclasses.replace(config, out=config.out / "whole")
    evolve.run(whole)
    asked.generations.clear()
    setattr(asked, moment, 4)
    with pytest.raises(KeyboardInterrupt):
        evolve.run(config)
    assert kept(config)[0] == 2.0 and (config.out / "evolution.png").stat().st_size > 10_000
    setattr(asked, moment, None)
    evolve.run(config)
    assert told(config) == told(whole) and kept(config)[0] == kept(whole)[0] == 6.0
    again = [4] if moment == "stop_in_generation" else []
    assert asked.generations == sorted([1, 2, 3, 4, 5, 6, *again])


def test_a_finished_run_asks_nothing_again_and_a_longer_one_goes_on(asked, config):
    evolve.run(config)
    asked.generations.clear()
    asked.seeds.clear()
    evolve.run(config)
    assert asked.generations == [] and asked.seeds == []
    evolve.run(dataclasses.replace(config, generations=8))
    assert asked.generations == [7, 8] and len(asked.seeds) == 1


def test_another_dream_is_refused_by_name_and_more_generations_are_not(asked, config):
    evolve.run(config)
    for changes, name in (
        ({"dropout_range": (0.0, 0.1)}, "dropout_range was None and is"),
        ({"worlds": (config.world,)}, "worlds was None and is"),
        ({"search": CMAESConfig(fitness="tiles")}, "search was .* and is .*'fitness': 'tiles'"),
        ({"temperature": 1.2}, "temperature was 1.0 and is 1.2"),
    ):
        with pytest.raises(CheckpointError, match=name):
            evolve.run(dataclasses.replace(config, **changes))


def test_options_that_are_not_used_leave_checkpoints_as_they_were(config):
    names = {"search", "temperature", "dropout", "start_middle", "seed", "world", "controller"}
    dream = evolve._dream_of(config)
    assert set(dream) == {*names, "checksums"} and len(dream["checksums"]) == 1
    assert set(dream["search"]) == {"population", "dreams", "steps", "sigma"}


def test_a_history_that_lacks_generations_of_the_checkpoint_is_refused(asked, config):
    evolve.run(config)
    (config.out / "history.jsonl").unlink()
    with pytest.raises(ValueError, match="tells of 0 generations; expected the 6"):
        evolve.run(config)


def test_patience_ends_a_search_that_gets_no_better_for_real(asked, config, capsys):
    asked.real.update({2: 100.0, 4: 90.0, 6: 100.0, 8: 500.0})
    patient = dataclasses.replace(config, generations=8, patience=2)
    evolve.run(patient)
    assert asked.generations == [1, 2, 3, 4, 5, 6] and kept(config)[0] == 2.0
    assert "stopped: no better for real in 2 validations" in capsys.readouterr().err
    evolve.run(patient)
    assert len(asked.generations) == 6
    evolve.run(dataclasses.replace(patient, patience=3))
    assert asked.generations[6:] == [7, 8] and kept(config)[0] == 8.0


def test_the_dreams_are_those_of_the_configuration(asked, config, world, random_world, tmp_path):
    other = dataclasses.replace(random_world(1), vae=world.vae)
    save_world(other, tmp_path / "other.safetensors")
    evolve.run(
        dataclasses.replace(
            config,
            generations=1,
            worlds=(str(tmp_path / "other.safetensors"),),
            temperature=0.9,
            temperature_range=(0.5, 1.5),
            dropout=0.05,
            start_middle=0.4,
            persistence=0.5,
            search=CMAESConfig(steps=70, axes=3),
        )
    )
    mix = asked.mix
    assert asked.axes.axes.shape == (288, 3)
    assert mix.worlds == 2
    np.testing.assert_allclose(mix.temperature, [0.5, 1.5])
    np.testing.assert_allclose(mix.dropout, [0.05, 0.05])
    plain = mix.plain
    assert float(plain.temperature) == pytest.approx(0.9)
    assert float(plain.persistence) == pytest.approx(0.5)
    assert float(plain.start_middle) == pytest.approx(0.4)
    assert int(plain.max_steps_in_episode) == 70


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"search": CMAESConfig(population=2)}, "population is 2; expected 4 or more"),
        ({"generations": 0}, "generations is 0; expected 1 or more"),
        ({"validate_every": 0}, "validate_every is 0; expected 1 or more"),
        ({"validation_episodes": 0}, "validation_episodes is 0; expected 1 or more"),
        ({"patience": 0}, "patience is 0; expected 1 or more"),
        ({"start_middle": 1.1}, "start_middle is 1.1; expected a share from 0 to 1"),
        ({"temperature": -0.1}, "temperature is -0.1; expected 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan; expected 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0; expected 0 or more and less than 1"),
        ({"temperature_range": (1.2, 0.8)}, r"temperature_range is \(1.2, 0.8\); expected least"),
        ({"dropout_range": (0.0, 1.0)}, r"dropout_range is \(0.0, 1.0\); expected least"),
        ({"validation_first_seed": 98}, r"seeds 98..100; expected some of 0..99"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_read(
    config, changes, message
):
    with pytest.raises(ValueError, match=message):
        evolve.run(dataclasses.replace(config, world="nowhere", **changes))
    assert not config.out.exists()


def test_a_price_on_missed_tiles_is_refused_where_no_speed_is_known(tmp_path):
    config = EvolveConfig(out=tmp_path / "out", search=CMAESConfig(missing=30.0))
    with pytest.raises(ValueError, match=r"missing is 30.0.*carracing_motion"):
        evolve.run(config)
    assert not config.out.exists()


def test_the_figure_shows_the_horizon_where_it_grows(tmp_path):
    sizes = {}
    for name, growth in (("flat", 0), ("grown", 100)):
        history = EvolutionHistory(tmp_path / f"{name}.jsonl")
        for number in range(5):
            dream = {"mean_return": 1.0 * number, "fixed_return": 2.0 * number, "best_return": 9.0}
            history.add(**dream, sigma=0.1, horizon=200.0 + growth * number)
        history.amend(real_mean=5.0, real_std=1.0, real_episodes=2)
        history.draw(tmp_path / f"{name}.png")
        sizes[name] = (tmp_path / f"{name}.png").stat().st_size
    assert sizes["grown"] > sizes["flat"] > 10_000


@pytest.mark.usefixtures("lenient_dtypes")
def test_the_command_evolves_in_an_ensemble_of_random_wildness(config, monkeypatch, capsys):
    monkeypatch.setattr(evolve, "evaluate", lambda *_, **__: SimpleNamespace(mean=7.0, std=1.0))
    sizes = {"population": 4, "dreams": 2, "steps": 4, "steps-from": 2, "steps-generations": 2}
    options = [word for name, size in sizes.items() for word in (f"--search.{name}", str(size))]
    options += ["--world", config.world, "--worlds", config.world, "--out", str(config.out)]
    options += ["--temperature-range", "0.5", "1.5", "--generations", "2"]
    assert main(["evolve", *options]) == 0
    assert [row["horizon"] for row in told(config)] == [2, 4]
    assert all(np.isfinite(row["fixed_return"]) for row in told(config))
    assert "real 7 (best 7)" in capsys.readouterr().err
