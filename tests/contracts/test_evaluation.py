"""Evaluation: what a seed scores depends on the seed alone, and nothing goes missing unsaid."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.linear import LinearController, linear_policy
from wm_env import judge
from wm_env.evaluation import Evaluation, EvaluationError, evaluate
from wm_env.judge import CARS, drive_gymnasium
from wm_env.real import make_real
from wm_env.task import CAR_RACING

OPTIONS = {
    "observation": "features",
    "continuous": True,
    "max_episode_steps": 12,
    "task": CAR_RACING,
}


@pytest.fixture(scope="module")
def controller():
    weight = 0.05 * jax.random.normal(jax.random.key(1), (3, 288))
    return LinearController(weight=weight, bias=jnp.array([0.0, 0.5, -1.0]))


@pytest.fixture
def drive(world, controller):
    def drive(seeds, **options):
        fixed = {"world_model": world, "max_episode_steps": 12, "progress": False}
        return evaluate(linear_policy, controller, seeds=seeds, **{**fixed, **options})

    return drive


def calm(world):
    """The world with a car that stays on the field, so that episodes have a length."""
    bias = world.mdn_rnn.head_bias.at[-1].set(-20.0)
    return eqx.tree_at(lambda one: one.mdn_rnn.head_bias, world, bias)


def some_evaluation(returns=(900.0, 700.0, 800.0)):
    count = len(returns)
    return Evaluation(
        env="real",
        backend="gymnasium",
        seeds=tuple(range(1000, 1000 + count)),
        returns=returns,
        lengths=(1000,) * count,
        laps_finished=(True,) + (False,) * (count - 1),
        off_field=(False,) * count,
    )


def test_progress_goes_to_stderr_and_only_where_it_is_wanted(drive, capsys):
    drive([0, 1], env="dream", progress=True)
    shown = capsys.readouterr()
    assert "driving dream" in shown.err and "2/2 episodes" in shown.err and shown.out == ""
    drive([0, 1], env="dream", progress=False)
    assert capsys.readouterr() == ("", "")


def test_figures_are_those_of_the_returns():
    evaluation = some_evaluation()
    assert evaluation.mean == pytest.approx(800.0)
    assert evaluation.std == pytest.approx(np.std([900, 700, 800]))
    assert evaluation.ci95 == pytest.approx(1.96 * 100.0 / math.sqrt(3))
    summary = evaluation.summary()
    assert "1000..1002" in summary and "1 of 3" in summary and "800.0" in summary


def test_json_holds_what_scripts_rely_on():
    told = json.loads(some_evaluation().to_json())
    assert {"env", "backend", "seeds", "returns", "lengths", "mean", "std", "ci95"} <= set(told)
    assert told["seeds"] == [1000, 1001, 1002] and told["returns"] == [900.0, 700.0, 800.0]


def test_one_episode_has_no_confidence_interval():
    evaluation = some_evaluation((5.0,))
    assert math.isnan(evaluation.ci95)
    assert json.loads(evaluation.to_json())["ci95"] is None


def test_a_dream_scores_the_same_alone_and_among_others(drive, world):
    calmed = calm(world)
    among = drive(range(18), env="dream", world_model=calmed)
    alone = drive([17], env="dream", world_model=calmed)
    assert among.returns[17] == alone.returns[0]
    assert len(set(among.returns)) > 9
    assert among.env == "dream" and among.seeds == tuple(range(18))
    assert max(among.lengths) <= 12


def test_dream_options_reach_the_dream(drive, world):
    few = drive([0], env="dream", world_model=calm(world), dream={"track_tiles": 1.0})
    assert few.laps_finished == (True,)


def test_a_real_track_scores_the_same_alone_and_among_others(drive):
    among = drive([7, 3, 5, 2, 9], processes=2)  # the last of a group of three, and one of two
    alone = drive([5])
    assert among.seeds == (7, 3, 5, 2, 9)
    assert among.returns[2] == alone.returns[0]
    assert len(set(among.returns)) == 5
    assert among.lengths == (12,) * 5
    assert multiprocessing.active_children() == []


def test_an_episode_does_not_notice_when_those_beside_it_end(random_world):
    world = random_world(mdn_rnn={"action_size": 2, "tiles": "signed"}, task="LunarLander-v3")

    def climb(observation):
        sideways = np.sign(np.sin(100.0 * observation[0]))  # 0.5 and more fires an engine
        return np.array([0.6, 0.7 * sideways], np.float32)

    options = {"world_model": world, "progress": False, "max_episode_steps": 120}
    among = evaluate(climb, seeds=range(CARS), processes=1, **options)
    lane = 1 + int(np.argmax(among.lengths[1:]))
    assert among.lengths[lane] > min(among.lengths)
    alone = evaluate(climb, seeds=[lane], **options)
    assert (alone.returns[0], alone.lengths[0]) == (among.returns[lane], among.lengths[lane])


def test_a_policy_sees_what_make_real_shows(world, tmp_path):
    def drive(observation):
        return np.array([np.tanh(observation[0]), 0.5, 0.0], np.float32)

    def watched(observation):
        np.save(tmp_path / f"{len(list(tmp_path.iterdir())):02}.npy", observation)
        return drive(observation)

    evaluate(watched, seeds=[3], world_model=world, max_episode_steps=12, progress=False)
    with closing(make_real(world)) as env:
        seen = [env.reset(seed=3)[0]]
        while len(seen) < 12:
            seen.append(env.step(drive(seen[-1]))[0])
    watched_frames = [np.load(path) for path in sorted(tmp_path.iterdir())]
    np.testing.assert_allclose(watched_frames, seen, atol=1e-3)


@pytest.mark.parametrize("count", [1, 5, 16, 100])
@pytest.mark.parametrize("workers", [1, 2, 16, 200])
def test_every_worker_drives_as_many_groups(count, workers):
    groups = judge._groups(count, workers)
    assert sum(groups, []) == list(range(count))
    assert max(map(len, groups)) <= CARS
    assert len(groups) == count or len(groups) % workers == 0
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@pytest.mark.slow
def test_a_ray_cluster_scores_as_this_machine_does(drive, ray_of_two_nodes):
    here = drive(range(9))
    there = drive(range(9), ray=ray_of_two_nodes.address)
    assert there.returns == here.returns and there.lengths == (12,) * 9


def test_a_cluster_drives_only_gymnasium(drive):
    with pytest.raises(ValueError, match="ray is 'auto' with env='dream'"):
        drive([0], env="dream", ray="auto")


def test_envpool_scores_the_same_alone_and_among_others(drive):
    pytest.importorskip("envpool")
    among = drive([7, 3, 5], backend="envpool")
    alone = drive([5], backend="envpool")
    assert among.returns[2] == alone.returns[0]
    assert len(set(among.returns)) == 3 and among.lengths == (12, 12, 12)


def test_a_policy_that_fails_is_told_with_its_seed(world):
    options = {"world_model": world, "progress": False, "processes": 1}
    with pytest.raises(EvaluationError, match="episodes of seeds 9, 8 failed: ZeroDivisionError"):
        evaluate(lambda *_: 1 / 0, 1.0, seeds=[9, 8], **options)
    with pytest.raises(EvaluationError, match=r"of seed 9 failed: InvalidAction: .* \(1, 3\)"):
        evaluate(lambda _: np.zeros((1, 3)), seeds=[9, 8], **options)


@pytest.mark.parametrize("params", [(), (1.0,)])
def test_a_policy_of_other_arguments_is_refused_at_once(world, params):
    policy = (lambda observation: None) if params else linear_policy
    with pytest.raises(ValueError, match=r"expected policy\(policy_params, observation, key\)"):
        evaluate(policy, *params, seeds=[9], world_model=world, progress=False)


def test_a_script_need_not_guard_itself_against_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "import wm_env\n"
        "print('begun')\n"
        "drive = lambda seen: np.array([0.0, 1.0, 0.0])\n"
        "told = wm_env.evaluate(drive, seeds=[0, 1], max_episode_steps=5, progress=False)\n"
        "print(told.lengths)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    told = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert told.stdout == "begun\n(5, 5)\n", told.stderr


class Deadly:
    """Parameters whose arrival ends the process, as a lack of memory would."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_is_told_with_its_seed(world):
    with pytest.raises(EvaluationError, match=r"of seed 9 .* lost 3 times .*exit code 3"):
        evaluate(linear_policy, Deadly(), seeds=[9], world_model=world, progress=False)


def test_a_policy_that_cannot_travel_is_refused_before_any_process_begins(world):
    lock = threading.Lock()

    def locked(observation):
        with lock:
            return np.zeros(3)

    with pytest.raises(EvaluationError, match="cannot be sent to other processes"):
        evaluate(locked, seeds=[0], world_model=world, progress=False)


@pytest.mark.parametrize(
    "where",
    [
        {"env": "real"},
        {"env": "real", "observation": "pixels"},
        {"env": "real", "continuous": False},
        {"env": "dream"},
        {"env": "dream", "observation": "pixels"},
    ],
)
def test_any_callable_of_an_observation_is_a_policy(world, where):
    gas = np.array([0.1, 0.7, 0.0], np.float32)
    shape = (64, 64, 3) if where.get("observation") == "pixels" else (288,)

    def plain(observation):
        assert observation.shape == shape
        return gas if where.get("continuous", True) else 3

    options = {"world_model": calm(world), "max_episode_steps": 12, "progress": False, **where}
    if where["env"] == "real":
        options["processes"] = 1  # another would drive less than it takes to begin
    told = evaluate(plain, seeds=[3, 4], **options)
    assert told.lengths == (12, 12) and told.seeds == (3, 4)
    if where["env"] == "dream":
        alone = evaluate(plain, seeds=[4], **options)
        assert alone.returns == told.returns[1:]
    else:
        action = gas if where.get("continuous", True) else np.int32(3)
        traced = evaluate(lambda action, *_: jnp.asarray(action), action, seeds=[3, 4], **options)
        assert traced == told


def test_a_callable_drives_envpool_too(world):
    pytest.importorskip("envpool")
    options = {"world_model": world, "max_episode_steps": 12, "progress": False, "seeds": [3, 4]}
    on_gymnasium = evaluate(lambda _: np.array([0.0, 1.0, 0.0]), **options)
    on_envpool = evaluate(lambda _: np.array([0.0, 1.0, 0.0]), backend="envpool", **options)
    assert on_envpool.lengths == on_gymnasium.lengths


def test_a_dream_of_a_callable_ends_as_any_other(world, with_outcomes):
    falling = with_outcomes(world, log_tiles=-20.0, off_field=20.0)
    told = evaluate(
        lambda _: np.zeros(3), env="dream", seeds=range(3), world_model=falling, progress=False
    )
    assert told.off_field == (True,) * 3 and told.lengths == (1,) * 3
    assert told.laps_finished == (False,) * 3


def test_leaving_early_stops_the_processes(world, controller):
    with closing(
        drive_gymnasium(linear_policy, controller, world, OPTIONS, (0, 1, 2, 3), processes=2)
    ) as episodes:
        next(episodes)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "seeds are none"),
        ({"seeds": [-1]}, "seeds are -1"),
        ({"seeds": [0], "env": "moon"}, "env is 'moon'"),
        ({"seeds": [0], "backend": "torcs"}, "backend is 'torcs'"),
        ({"seeds": [0], "max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"seeds": [0], "processes": 0}, "processes is 0"),
        ({"seeds": [0], "dream": {"temperature": 1.0}}, "env='real'"),
        ({"seeds": [0], "env": "dream", "dream": {"weather": 1}}, "weather"),
    ],
)
def test_impossible_arguments_are_named(drive, options, message):
    with pytest.raises(ValueError, match=message):
        drive(**options)
