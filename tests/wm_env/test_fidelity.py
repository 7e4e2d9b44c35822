"""Fidelity: each figure is what it says, shown on worlds and drives whose truth is known."""

import json
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agents.linear import LinearController
from wm_env import __main__
from wm_env.dream import ACTION_HIGH, ACTION_LOW
from wm_env.evaluation import evaluate
from wm_env.fidelity import dreams, drives, kept_drives, moments
from wm_env.fidelity import report as fidelity
from wm_env.fidelity.calibration import Foreseen, calibration, foresee, reliability
from wm_env.fidelity.dreams import dream_returns
from wm_env.fidelity.driven_dream import DrivenDream, driven_by
from wm_env.fidelity.drives import Drive, record_drives
from wm_env.fidelity.estimates import Estimate, pearson, spearman
from wm_env.fidelity.moments import Moment, burned_in
from wm_env.fidelity.open_loop import (
    LIKELIEST,
    SAMPLED,
    STILL,
    V_ALONE,
    OpenLoop,
    OpenLoopConfig,
    open_loop,
)
from wm_env.fidelity.policy_suite import Variant, drive_variant, load_variants, policy_suite
from wm_env.fidelity.replay import ReplayConfig, find_failures, find_ordinary, replay
from wm_env.rollouts import rollout
from wm_env.simulator import default_backend
from wm_env.storage import StoreError
from wm_env.weights import WeightsError, save_controller

FEATURES = 288
TRACK_TILES = 250


@pytest.fixture(scope="module")
def controller():
    weight = 0.05 * jax.random.normal(jax.random.key(1), (3, FEATURES))
    bias = jnp.array([0.0, 0.5, -1.0])
    gain, offset, idle = jnp.ones(3), jnp.zeros(3), jnp.float32(0.0)
    return Variant(weight=weight, bias=bias, gain=gain, offset=offset, idle=idle)


@pytest.fixture(scope="module")
def suite(controller):
    return policy_suite(controller)


def a_drive(hits, length, *, off_field=False, z=None, policy="controller", images=None):
    """A drive that hit one tile in each of the steps `hits`."""
    rewards = np.full(length, -0.1)
    rewards[list(hits)] += 1000.0 / TRACK_TILES
    if off_field:
        rewards[-1] = -100.0
    z = np.zeros((length + 1, 32), np.float32) if z is None else z
    actions = np.tile(np.float32([0.1, 0.5, 0.0]), (length, 1))
    return Drive(policy, 0, z, actions, rewards, images or {})


def dreamt_drive(world, length, moments):
    """What the world itself dreams at temperature 0, as if it had been real."""
    z, carry = world.starts.first_z[0], world.mdn_rnn.initial_carry()
    latents, action = [z], jnp.array([0.1, 0.5, 0.0])
    advance = jax.jit(lambda w, z, c: w.advance(z, action, c, key=jax.random.key(0), temperature=0))
    for _ in range(length):
        step = advance(world, z, carry)
        z, carry = step.z, step.carry
        latents.append(z)
    decode = jax.jit(lambda w, z: w.decode(z))
    images = {time: np.asarray(decode(world, latents[time])) for time in moments}
    return a_drive((), length, z=np.stack(latents), images=images)


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 20).tolist(), rng.normal(size=20).round(1).tolist()  # with ties
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)


def test_nothing_correlates_with_what_never_changes():
    assert np.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_an_estimate_has_the_standard_error_of_its_mean():
    estimate = Estimate.of([1.0, 2.0, 6.0])
    assert estimate.mean == 3.0
    assert estimate.error == pytest.approx(scipy.stats.sem([1.0, 2.0, 6.0]))
    assert np.isnan(Estimate.of([]).mean) and np.isnan(Estimate.of([4.0]).error)


def test_the_suite_holds_two_dozen_policies_that_all_act_differently(suite):
    seen = jax.random.normal(jax.random.key(3), (100, FEATURES))
    keys = jax.random.split(jax.random.key(4), 100)
    acted = [
        np.asarray(jax.vmap(drive_variant, (None, 0, 0))(v, seen, keys)) for v in suite.values()
    ]
    assert len({actions.tobytes() for actions in acted}) == len(suite) >= 24


def test_the_unaltered_controller_acts_as_the_linear_one(suite):
    plain = suite["controller"]
    seen = jax.random.normal(jax.random.key(3), (FEATURES,))
    expected = LinearController(weight=plain.weight, bias=plain.bias)(seen)
    np.testing.assert_allclose(drive_variant(plain, seen, jax.random.key(0)), expected, rtol=1e-6)


def test_an_idle_policy_does_nothing_in_its_share_of_frames(suite):
    keys = jax.random.split(jax.random.key(0), 2000)
    seen = jnp.ones(FEATURES)
    actions = jax.vmap(lambda key: drive_variant(suite["idle 30%"], seen, key))(keys)
    assert np.mean(np.all(actions == 0.0, axis=1)) == pytest.approx(0.3, abs=0.04)


def test_controllers_of_files_join_by_folder_and_name(tmp_path, controller):
    path = tmp_path / "evolved" / "controller-0005.safetensors"
    arrays = {name: np.asarray(getattr(controller, name)) for name in ("weight", "bias")}
    save_controller(arrays, path)
    assert list(load_variants([path], features=FEATURES)) == ["evolved/controller-0005"]
    with pytest.raises(WeightsError, match=r"\(3, 288\).*expected.*\(3, 99\)"):
        load_variants([path], features=99)
    with pytest.raises(WeightsError, match="two controllers are called"):
        load_variants([path, path], features=FEATURES)


def test_recorded_drives_score_what_an_evaluation_scores(world, suite):
    pytest.importorskip("envpool")
    policy = suite["gas x 0.6"]
    recorded = record_drives(
        world, {"gas x 0.6": policy}, [3, 4], backend="envpool", steps=30, show=False
    )
    options = {"backend": "envpool", "max_episode_steps": 30, "progress": False}
    told = evaluate(drive_variant, policy, seeds=[3, 4], world_model=world, **options)
    assert [drive.ret for drive in recorded] == pytest.approx(told.returns, abs=1e-3)
    assert [drive.length for drive in recorded] == [30, 30]


def test_a_drive_holds_what_the_agent_saw_and_did(world, suite, monkeypatch):
    monkeypatch.setattr(drives, "LANES", 2)
    chosen = {name: suite[name] for name in ("straight, gas 1", "full brake")}
    fast, braked = record_drives(
        world, chosen, [5], backend=default_backend(), steps=40, moments=[0, 7], show=False
    )
    assert (fast.policy, braked.policy) == ("straight, gas 1", "full brake")
    np.testing.assert_array_equal(fast.actions, np.tile(np.float32([0, 1, 0]), (40, 1)))
    for time in (0, 7):
        seen = world.encode(jnp.asarray(fast.images[time]))
        np.testing.assert_allclose(fast.z[time], seen, atol=1e-4)
    assert fast.z.shape == (41, 32) and fast.tiles.sum() > braked.tiles.sum() == 2


def test_a_carry_is_burned_in_up_to_its_moment_only(world):
    rng = np.random.default_rng(0)
    drive = a_drive((), 20, z=rng.normal(size=(21, 32)).astype(np.float32))
    carries = burned_in(world.mdn_rnn, [Moment(drive, 0), Moment(drive, 13)], steps=25)
    expected = world.burn_in(jnp.asarray(drive.z[:14]), jnp.asarray(drive.actions[:13]))
    np.testing.assert_array_equal(carries.h[0], 0.0)
    np.testing.assert_allclose(carries.h[1], expected.h, atol=1e-5)
    np.testing.assert_allclose(carries.c[1], expected.c, atol=1e-5)


def test_a_perfect_copy_of_a_drive_has_no_open_loop_error(world):
    config = OpenLoopConfig(horizons=(1, 5, 20), first=10, every=30, samples=2)
    drive = dreamt_drive(world, 60, config.moments(60))
    errors = open_loop(world, [drive], config, steps=60, show=False)
    for column in range(3):
        assert errors.z[LIKELIEST][column].mean == pytest.approx(0.0, abs=1e-4)
        assert errors.pixels[LIKELIEST][column].mean == pytest.approx(0.0, abs=0.05)
        assert errors.pixels[V_ALONE][column].mean == 0.0
        assert errors.z[SAMPLED][column].mean > 0.1
        assert errors.z[LIKELIEST][column].count == 2
    assert errors.z[STILL][0].mean > 0.0


def test_standing_still_errs_by_how_far_the_drive_went(world):
    config = OpenLoopConfig(horizons=(1, 4), first=2, every=100, samples=1)
    z = np.tile(np.arange(13, dtype=np.float32)[:, None], (1, 32))
    images = {time: np.zeros((64, 64, 3), np.uint8) for time in config.moments(12)}
    errors = open_loop(world, [a_drive((), 12, z=z, images=images)], config, steps=12, show=False)
    assert [one.mean for one in errors.z[STILL]] == [1.0, 4.0]


def test_a_world_of_fixed_outcomes_is_calibrated_as_it_foretells(world, with_outcomes):
    fixed = with_outcomes(world, log_tiles=np.log(0.3), off_field=np.log(0.05 / 0.95))
    right = a_drive(range(0, 20, 2), 20, off_field=True), a_drive((2, 3), 20)
    told = foresee(fixed, right, steps=25, show=False).reliabilities()
    (tiles,), (falls,) = told["tiles"].bins, told["off_field"].bins
    assert (tiles.count, tiles.predicted) == (40, pytest.approx(0.3, rel=1e-4))
    assert tiles.observed == pytest.approx(12 / 40) and told["tiles"].error < 1e-4
    assert falls.predicted == pytest.approx(0.05, rel=1e-4)
    assert told["off_field"].error == pytest.approx(0.05 - 1 / 40, rel=1e-3)


def test_reliability_weighs_bins_by_their_steps():
    told = reliability([0.1, 0.1, 0.1, 0.9], [0.0, 0.0, 0.0, 1.0], (0.0, 0.5, np.inf))
    assert [part.count for part in told.bins] == [3, 1]
    assert told.error == pytest.approx((3 * 0.1 + 0.1) / 4)
    assert (told.predicted, told.observed) == (pytest.approx(0.3), 0.25)


def test_a_planted_failure_is_found_where_the_last_tile_was():
    config = ReplayConfig()
    early = list(range(0, 200, 10))
    assert find_failures(a_drive(early, 400), config) == [190]
    assert find_failures(a_drive([*early, 290], 390), config) == []
    assert find_failures(a_drive([*early, 291], 391), config) == [190]
    assert find_failures(a_drive([*early], 220), config) == []
    assert find_failures(a_drive([*early], 220, off_field=True), config) == [190]
    assert find_failures(a_drive([0, 3], 400), config) == []
    assert find_failures(a_drive([], 400), config) == []


def test_ordinary_moments_are_those_that_no_failure_touches():
    config = ReplayConfig()
    assert find_ordinary(a_drive(range(0, 500, 10), 500), config) == [100, 200, 300, 400]
    assert find_ordinary(a_drive(range(0, 300, 10), 500), config) == [100]
    assert find_ordinary(a_drive([], 500), config) == []


def test_replay_tells_what_was_hit_from_what_is_dreamt(world, with_outcomes, suite):
    members = driven_by(world, [with_outcomes(world, log_tiles=np.log(0.2))])
    driven = [a_drive(range(0, 200, 10), 400), a_drive(range(0, 400, 10), 400)]
    config = ReplayConfig(leads=(10, 40), dreams=2)
    told = replay(members, suite, driven, config, steps=400, show=False)
    assert [one.name for one in told] == ["10 steps before", "40 steps before", "ordinary driving"]
    assert [one.real.mean for one in told] == [2.0, 5.0, 10.0]
    assert [one.real.count for one in told] == [1, 1, 3]
    assert [one.dreamt.mean for one in told] == pytest.approx([20.0] * 3, rel=1e-3)


@pytest.fixture(scope="module")
def other_world(world, random_world):
    """One of the same V, with another M of another size."""
    other = random_world(5, mdn_rnn={"hidden_size": 24, "mixtures": 2})
    return eqx.tree_at(lambda w: w.vae, other, world.vae)


def dreamt_by_evaluation(world, variant, seeds, steps):
    options = {"env": "dream", "max_episode_steps": steps, "progress": False}
    return evaluate(drive_variant, variant, seeds=seeds, world_model=world, **options).returns


def test_a_driver_at_home_dreams_what_an_evaluation_dreams(world, suite, monkeypatch):
    monkeypatch.setattr(dreams, "LANES", 4)  # so that there is a second group, not full
    bias = world.mdn_rnn.head_bias.at[-1].set(-30.0)  # nobody falls
    world = eqx.tree_at(lambda w: w.mdn_rnn.head_bias, world, bias)
    chosen = {name: suite[name] for name in ("controller", "gas x 0.4")}
    told = dream_returns(driven_by(world, [world], steps=30), chosen, 3, steps=30, show=False)
    for name, variant in chosen.items():
        expected = dreamt_by_evaluation(world, variant, range(3), 30)
        assert told[name] == pytest.approx(expected, abs=1e-3)
    assert len({*told["controller"], *told["gas x 0.4"]}) == 6


def test_a_driver_remembers_with_its_own_m_in_a_dream_of_another(world, other_world, suite):
    (params,) = driven_by(world, [other_world])
    play = eqx.filter_jit(
        lambda p, v, key: rollout(DrivenDream(), p, *v, key, steps=8, record=True)
    )
    policy = drive_variant, suite["gas x 1.25"]
    seen = play(params, policy, jax.random.key(4)).trajectory
    actions = jnp.asarray(np.clip(seen.action, ACTION_LOW, ACTION_HIGH))
    carry = world.burn_in(seen.z, actions[:-1])
    assert seen.observation.shape == (8, FEATURES)
    np.testing.assert_allclose(seen.observation[-1], world.features(seen.z[-1], carry.h), atol=1e-5)
    dream = other_world.burn_in(seen.z, actions[:-1])
    assert dream.h.shape == (24,)


def test_a_driven_dream_that_ends_begins_as_its_own_reset_does(world, other_world):
    (params,) = driven_by(world, [other_world], steps=1)
    env = DrivenDream()
    _, state = env.reset(jax.random.key(0), params)
    seen, after, *_, info = env.step(jax.random.key(1), state, jnp.zeros(3), params)
    assert info["truncated"] and not np.any(after.memory.h)
    _, key_reset = jax.random.split(jax.random.key(1))
    np.testing.assert_allclose(seen, env.reset_env(key_reset, params)[0], atol=1e-6)


def test_a_replay_begins_with_what_each_m_remembers(world, other_world, suite, monkeypatch):
    begun = []
    keep = lambda params, variants, z, carries, memories, keys, steps: (  # noqa: E731
        begun.append((carries.h.shape, memories.h.shape)) or np.zeros(keys.shape)
    )
    monkeypatch.setattr("wm_env.fidelity.replay._dream_on", keep)
    members = driven_by(world, [other_world])
    config = ReplayConfig(leads=(10,), dreams=2)
    replay(members, suite, [a_drive(range(0, 200, 10), 400)], config, steps=400, show=False)
    assert set(begun) == {((32, 24), (32, 256))}


def test_drivers_of_another_v_are_refused(world, random_world):
    with pytest.raises(
        ValueError, match=r"world 2 of 2 has weights of V that differ .* expected the"
    ):
        driven_by(world, [world, random_world(3)])
    with pytest.raises(ValueError, match=r"world 1 of 1 has V VAEConfig.* expected the same V"):
        driven_by(world, [random_world(3, mdn_rnn={"latent_size": 8})])


def test_dreams_are_shared_out_among_the_worlds_of_an_ensemble(
    world, other_world, suite, with_outcomes
):
    worlds = [with_outcomes(world, log_tiles=np.log(0.2)), with_outcomes(other_world)]
    members = driven_by(world, worlds, steps=10)
    (told,) = dream_returns(
        members, {"controller": suite["controller"]}, 5, steps=10, show=False
    ).values()
    paid = 1000.0 / 281.0 * 0.2 * 10 - 1.0
    assert told == pytest.approx([paid, -1.0, paid, -1.0, paid], abs=1e-2)


def test_replays_of_an_ensemble_are_the_mean_of_its_dreams(world, suite, with_outcomes):
    worlds = [with_outcomes(world, log_tiles=np.log(0.2)), with_outcomes(world)]
    driven, config = [a_drive(range(0, 400, 10), 400)], ReplayConfig(leads=(), dreams=4)
    (told,) = replay(driven_by(world, worlds), suite, driven, config, steps=400, show=False)
    assert told.dreamt.mean == pytest.approx(10.0, rel=1e-3)


def test_an_ensemble_errs_as_its_members_do_on_average():
    low, high = Estimate(1.0, 0.25, 7), Estimate(3.0, 0.75, 7)
    loops = [OpenLoop((1,), {SAMPLED: (one,)}, {V_ALONE: (one,)}) for one in (low, high)]
    mean = OpenLoop.across(loops)
    assert mean.z[SAMPLED][0] == Estimate(2.0, 0.5, 7) == mean.pixels[V_ALONE][0]
    never = np.zeros(4)
    members = [Foreseen(np.full(4, rate), np.full(4, 0.5), never, never) for rate in (0.2, 0.8)]
    told = calibration(members)["tiles"]  # too low and too high do not make it right
    assert (told.error, told.predicted) == (pytest.approx(0.3), pytest.approx(0.5))


@pytest.fixture
def kept(world, suite, tmp_path, monkeypatch):
    """Asks for drives that are kept, of two policies on two tracks; `.driven` counts them."""
    images = {0: np.full((64, 64, 3), 7, np.uint8)}

    def record(world, suite, seeds, *, backend, steps, moments, show):
        ask.driven += 1
        return [
            replace(a_drive((2, 5), 9 + seed, policy=name, images=images), seed=seed)
            for name in suite
            for seed in seeds
        ]

    def ask(*, world=world, names=("controller", "no brake"), steps=50):
        chosen = {name: suite[name] for name in names}
        asked = {"backend": "gymnasium", "steps": steps, "moments": {0}, "show": False}
        return kept_drives.kept_drives(tmp_path, world, chosen, range(2), **asked)

    ask.driven, ask.folder = 0, tmp_path
    monkeypatch.setattr(kept_drives, "record_drives", record)
    return ask


def test_kept_drives_are_read_as_they_were_driven(kept):
    driven, read = kept(), kept()
    assert kept.driven == 1 and len(read) == 4
    for one, other in zip(driven, read, strict=True):
        assert (one.policy, one.seed, one.length) == (other.policy, other.seed, other.length)
        for name in ("z", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(other.images[0], one.images[0])


def test_another_question_is_driven_anew(kept, other_world):
    for asked in ({}, {"world": other_world}, {"steps": 60}, {"names": ("no brake", "controller")}):
        kept(**asked)
    assert kept.driven == 4 and len(list(kept.folder.iterdir())) == 4


def test_a_file_of_drives_that_is_damaged_or_of_others_is_refused(kept):
    kept()
    (path,) = kept.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="not a whole file of drives.*Delete it"):
        kept()
    path.write_bytes(whole)
    kept(steps=60)
    (other,) = set(kept.folder.iterdir()) - {path}
    other.replace(path)
    with pytest.raises(StoreError, match=r"holds drives of .*60.* expected those of .*50"):
        kept()


@pytest.fixture(scope="module")
def measured(world, suite, tmp_path_factory):
    """A random world, measured thrice: drives that are kept, found again, and a driver named."""
    config = fidelity.FidelityConfig(episodes=1, dreams=2, steps=261)
    chosen = {name: suite[name] for name in ("controller", "full brake", "straight, gas 1")}
    config = replace(config, drives=tmp_path_factory.mktemp("drives"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drives, "LANES", 3)
        patch.setattr(dreams, "LANES", 6)
        patch.setattr(moments, "GROUP", 2)
        first = fidelity.measure([world], chosen, config)
        patch.delattr(kept_drives, "record_drives")
        named = fidelity.measure([world], chosen, config, driver=world)
        return [first, fidelity.measure([world], chosen, config), named]


def test_drives_that_were_kept_give_the_same_figures_without_driving(measured):
    first, again, _ = (json.dumps(one.as_dict(), allow_nan=False) for one in measured)
    assert first == again


def test_the_world_itself_as_driver_changes_nothing(measured):
    first, _, named = (json.dumps(one.as_dict(), allow_nan=False) for one in measured)
    assert first == named


def test_the_json_holds_every_policy_and_every_figure(measured):
    told = measured[0].as_dict()
    assert [row["policy"] for row in told["policies"]] == [
        "controller",
        "full brake",
        "straight, gas 1",
    ]
    means = [[row[name]["mean"] for row in told["policies"]] for name in ("real", "dream")]
    assert told["spearman"] == pytest.approx(scipy.stats.spearmanr(*means).statistic)
    assert told["bias"] == pytest.approx(np.mean(means[1]) - np.mean(means[0]))
    assert told["open_loop"]["horizons"] == [1, 10, 50, 200]
    assert len(told["open_loop"]["policies"]) == 2
    assert set(told["calibration"]) == {"tiles", "off_field"} and len(told["replays"]) == 4


def test_the_row_has_the_figures_of_the_report(measured):
    told, row = measured[0].as_dict(), measured[0].row()
    assert row["bias"] == told["bias"] and row["spearman"] == told["spearman"]
    z = told["open_loop"]["z"][SAMPLED]
    assert (row["z_error_10"], row["z_error_50"]) == (z[1]["mean"], z[2]["mean"])
    assert row["tiles_calibration_error"] == told["calibration"]["tiles"]["error"]
    before = next(one for one in told["replays"] if one["name"] == "20 steps before")
    excess = before["dreamt"]["mean"] - before["real"]["mean"]
    assert row["excess_20_before_failures"] == excess and np.isfinite(excess)
    assert len(row) == 9


def test_figure_and_tables_show_it(measured, tmp_path, capsys, lenient_dtypes):
    from wm_env.fidelity.figure import draw

    draw(measured[0], tmp_path / "figure.png", title="A random world")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    fidelity.print_fidelity(measured[0])
    shown = capsys.readouterr().out
    assert "full brake" in shown and "spearman" in shown and "200 steps" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--first-seed", "1000"], "0..99"),
        (["--first-seed", "90", "--episodes", "11"], "0..99"),
        (["--steps", "200"], "expected 260 or more"),
        (["--dreams", "1", "--world", "carracing", "carracing"], "dreams is 1 and worlds are 2"),
        (["--driver", "nowhere"], "nowhere"),
        (["--world", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(arguments, complaint, capsys):
    assert __main__.main(["fidelity", *arguments]) == 1
    assert complaint in capsys.readouterr().err
