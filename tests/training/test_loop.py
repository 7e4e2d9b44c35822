"""Rounds of the loop: what each goes on from, when they end, and what a kill leaves of one."""

import hashlib
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.linear import LinearController, load_linear, save_linear
from tests.training.episodes import made_up_episode
from tests.training.fits import MEMORY, VISION
from training import loop, pipeline, round_report, run, vision
from training.contender import Contender, RoundCollect, SpoiltPlan
from training.latents import open_latents, vae_fingerprint
from training.loop import reconstruction_error, run_loop
from training.plan import CollectConfig
from training.presets import SMOKE, LoopConfig, Preset
from training.round_report import as_text, data_by_driver, write_report
from training.run import Run
from training.store import open_store, shard_path
from training.vision import load_vision
from wm_env.linear import spoil
from wm_env.shard import EpisodeRow, Shard, write_shard
from wm_env.storage import StoreError
from wm_env.weights import load_world, save_world

FEATURES = 12  # [z, h] of the tiny sizes


def _contender(folder, mean, world, *, features=288):
    contender = Contender(folder)
    facts = {"generation": 2, "validation": {"real_mean": mean, "real_std": 1.0}}
    save_linear(LinearController.zeros(features), contender.controller, facts)
    line = json.dumps({"generation": 2, "fixed_return": 2.0 * mean})
    (folder / "evolve" / "history.jsonl").write_text(line + "\n")
    if world is not None:
        save_world(world, contender.world)
    return contender


@pytest.fixture
def rounds(tmp_path, world, monkeypatch):
    """`rounds(means, loop=...)`: a loop whose rounds are only their means; returns what it did."""
    _contender(tmp_path, 10.0, world)

    def play(*means, **numbers):
        did = []

        def run_round(run, index, best):
            did.append(f"{index} from {best.folder.name.removeprefix(tmp_path.name) or 'the run'}")
            write_shard(
                shard_path(run.round(index) / "data", 0), [made_up_episode(1, plain=True)], {}
            )
            _contender(run.round(index), means[index - 1], world)

        monkeypatch.setattr(loop, "_run_round", run_round)
        monkeypatch.setattr(loop, "write_report", lambda _, one, *__: did.append(one.folder.name))
        run_loop(Preset(loop=LoopConfig(**numbers)), tmp_path)
        return did

    return play


def test_the_loop_ends_after_rounds_in_a_row_without_gain(rounds):
    did = rounds(20.0, 15.0, 20.0, 99.0, rounds=9, patience=2)
    assert [one for one in did if "from" in one] == [
        "1 from the run",
        "2 from round-01",
        "3 from round-01",
    ]


def test_a_gain_gives_the_loop_its_patience_back(rounds):
    did = rounds(5.0, 20.0, 15.0, 30.0, 1.0, rounds=5, patience=2)
    assert [one for one in did if "from" in one][-2:] == ["4 from round-02", "5 from round-04"]


def test_rounds_that_are_there_count_and_are_not_run_again(rounds):
    assert rounds(20.0, 15.0, rounds=2, patience=2)[-1] == "round-02"
    assert rounds(0.0, 0.0, 14.0, 99.0, rounds=9, patience=2) == [
        "round-01",
        "round-02",
        "3 from round-01",
        "round-03",
    ]


TINY = Preset(vision=VISION, memory=MEMORY)


def _draw_nothing(monkeypatch):
    for module, name in (
        (run, "memory_pictures"),
        (vision, "vision_pictures"),
        (loop, "write_report"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a run of tiny models on made-up driving, as it is before the loop."""
    out = tmp_path_factory.mktemp("fitted")
    _drive(out / "data", 0)
    lenient = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with pytest.MonkeyPatch.context() as patch, lenient[0], lenient[1]:
        _draw_nothing(patch)
        for stage in ("vision", "latents", "memory"):
            getattr(pipeline, f"run_{stage}")(TINY, out)
    _contender(out, 10.0, None, features=FEATURES)
    return out


@pytest.fixture
def tiny(fitted, tmp_path, monkeypatch, lenient_dtypes):
    """That run, in a folder of the test; `tiny.play(...)` is its loop, `.did` what it did."""
    _draw_nothing(monkeypatch)
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    return _Tiny(tmp_path, monkeypatch)


class _Tiny:
    def __init__(self, out, monkeypatch):
        self.out, self.did, self.stop_at = out, [], None
        self.preset = TINY
        for stage, work in (("collect", self._collect), ("fit_memory", run.fit_memory)):
            monkeypatch.setattr(run, stage, self._noting(stage, work))
        monkeypatch.setattr(loop, "fit_vision", self._noting("fit_V", loop.fit_vision))
        monkeypatch.setattr(run.evolve, "run", self._noting("evolve", self._evolve))

    def play(self, *, tolerance, stop_at=None, rounds=1):
        self.did, self.stop_at = [], stop_at
        sizes = {"rounds": rounds, "patience": 9, "vision_tolerance": tolerance}
        steps = {"vision_steps": 3, "memory_steps": 3}
        run_loop(replace(self.preset, loop=LoopConfig(**sizes, **steps)), self.out)

    def _noting(self, stage, work):
        def noted(*arguments, **options):
            if stage == self.stop_at:
                raise KeyboardInterrupt
            self.did.append(stage)
            return work(*arguments, **options)

        return noted

    def _collect(self, store, config, **_):
        self.driving = config
        if not store.exists():
            _drive(store, config.first_seed)

    def _evolve(self, config):
        self.evolving = config
        _contender(config.out.parent, 20.0, None, features=FEATURES)


def _drive(store, first_seed):
    for index in range(2):
        seeds = range(first_seed + 10 * index, first_seed + 10 * index + 4)
        episodes = [made_up_episode(seed % 251, plain=True) for seed in seeds]
        write_shard(shard_path(store, index), episodes, {"backend": "made up"})


def _contents(folder):
    """A checksum of every file: finished fits write what they have once more."""
    return {path: _checksum(path) for path in folder.rglob("*") if path.is_file()}


def _checksum(path):
    content = path.read_bytes()
    if path.suffix == ".safetensors":  # writes what its header holds in an order of chance
        length = 8 + int.from_bytes(content[:8], "little")
        header = json.dumps(json.loads(content[8:length]), sort_keys=True)
        content = header.encode() + content[length:]
    return hashlib.sha256(content).hexdigest()


def _eyes(latents):
    """The fingerprints of the V's in the metadata of latent files."""
    from safetensors import safe_open

    return {safe_open(one.path, framework="numpy").metadata()["vae"] for one in latents}


def test_a_v_that_is_worse_on_new_frames_is_fitted_on_and_sees_all_data_anew(tiny):
    old = vae_fingerprint(load_vision(VISION, tiny.out / "vision"))
    tiny.play(tolerance=-1.0)
    assert tiny.did == ["collect", "fit_V", "fit_memory", "evolve"]
    new = vae_fingerprint(load_vision(VISION, tiny.out / "round-01" / "vision"))
    assert new != old
    for folder in (tiny.out, tiny.out / "round-01"):
        assert _eyes(open_latents(folder / "latents-round-01")) == {new}
    assert _eyes(open_latents(tiny.out / "latents")) == {old}
    world = load_world(tiny.out / "round-01" / "world.safetensors")
    refitted = load_vision(VISION, tiny.out / "round-01" / "vision")
    for got, expected in zip(*map(jax.tree.leaves, (world.vae, refitted)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)  # worlds hold float16
    assert tiny.evolving.controller == str(Contender(tiny.out).controller)
    facts = json.loads(Contender(tiny.out / "round-01").reconstruction.read_text())
    assert set(facts["after"]) == set(facts["before"]) == {"old", "new"}


def test_a_v_that_is_good_enough_is_kept_with_its_latents(tiny):
    tiny.play(tolerance=1e9)
    assert tiny.did == ["collect", "fit_memory", "evolve"]
    assert Contender(tiny.out / "round-01").vision == tiny.out / "vision"
    assert {path.name for path in tiny.out.glob("round-01/*")} >= {"data", "latents", "memory"}
    assert not (tiny.out / "round-01" / "vision").exists()


def test_the_round_after_goes_on_from_the_v_that_was_fitted_on(tiny):
    tiny.play(tolerance=-1.0)
    tiny.play(tolerance=1e9, rounds=2)
    best = Contender(tiny.out / "round-01")
    assert (tiny.driving.world, tiny.driving.controller) == (str(best.world), str(best.controller))
    assert Contender(tiny.out / "round-02").vision == tiny.out / "round-01" / "vision"
    assert len(open_latents(tiny.out / "round-02" / "latents-round-01")) == 2


@pytest.mark.parametrize("stage", ["fit_V", "fit_memory", "evolve"])
def test_a_round_that_was_killed_goes_on_where_it_was(tiny, stage):
    with pytest.raises(KeyboardInterrupt):
        tiny.play(tolerance=-1.0, stop_at=stage)
    files = _contents(tiny.out)
    if stage == "fit_V":
        files.pop(Contender(tiny.out / "round-01").reconstruction)  # will tell of the new V too
    tiny.play(tolerance=-1.0)
    assert tiny.did[-1] == "evolve"
    after = _contents(tiny.out)
    assert {path: after[path] for path in files} == files
    tiny.play(tolerance=-1.0)
    assert tiny.did == []


def test_the_stages_before_the_loop_are_still_done_after_a_v_was_fitted_on(tiny):
    tiny.play(tolerance=-1.0)
    files = _contents(tiny.out)
    for stage in ("vision", "latents", "memory"):
        getattr(pipeline, f"run_{stage}")(tiny.preset, tiny.out)
    assert _contents(tiny.out) == files


def test_the_reconstruction_error_is_of_held_out_images_alone(tmp_path, world):
    episodes = [made_up_episode(seed, steps=2, plain=True) for seed in (1, 2)]
    write_shard(shard_path(tmp_path, 0), episodes, {})
    seen = episodes[1].images
    shown = jax.vmap(lambda image: world.vae.decode(world.vae.latent(image)))(jnp.asarray(seen))
    errors = np.square(np.asarray(shown) - seen / 255.0).sum(axis=(1, 2, 3))
    found = reconstruction_error(world.vae, open_store(tmp_path), images=64)
    assert errors.min() <= found <= errors.max()


def test_shards_of_the_controller_take_turns_in_how_spoilt_it_is():
    config = RoundCollect(
        episodes={"on_policy": 6, "failures": 2},
        cars=2,
        weight_noise=(0.0, 0.5),
        noises=(0.1, 0.0, 0.3),
    )
    plan = config.plan()
    spoilt = [(one.noise, one.weight_noise) for one in plan if isinstance(one, SpoiltPlan)]
    assert [one.driver for one in plan if not isinstance(one, SpoiltPlan)] == ["failures"]
    assert spoilt == [(0.1, 0.0), (0.0, 0.5), (0.3, 0.0)]
    assert [one.seeds for one in plan] == [
        one.seeds for one in CollectConfig(episodes=config.episodes, cars=2).plan()
    ]
    settings = [one.settings(config).get("weight_noise") for one in plan]
    assert settings.count(0.5) == 1 and settings.count(None) == 3
    assert [one.settings(config).get("noise") for one in plan if one.driver == "on_policy"] == [
        0.1,
        0.0,
        0.3,
    ]
    assert [one.driver_options(config)["noise"] for one in plan if one.driver == "on_policy"] == [
        0.1,
        0.0,
        0.3,
    ]


def test_a_spoilt_shard_drives_with_weights_of_its_own():
    config = RoundCollect(episodes={"on_policy": 4}, cars=2, weight_noise=(0.5,))
    clean, _ = load_linear("carracing_controller")
    first, second = [one.driver_options(config)["controller"] for one in config.plan()]
    for spoilt in (first, second):
        change = np.asarray(spoilt.weight) - np.asarray(clean.weight)
        size = np.sqrt(np.mean(np.asarray(clean.weight) ** 2))
        assert np.std(change) == pytest.approx(0.5 * size, rel=0.1)
    assert not np.array_equal(first.weight, second.weight)
    again = spoil(clean, 0.5, seed=config.plan()[0].seeds[0])
    np.testing.assert_array_equal(again.weight, first.weight)


def _shard(driver, returns, **plan):
    rows = tuple(EpisodeRow(driver, 7, 100, ret, 280, False, False) for ret in returns)
    return Shard(None, rows, {"provenance": {"plan": {"driver": driver, **plan}}})


SHARDS = [
    _shard("on_policy", [800.0, 900.0]),
    _shard("on_policy", [300.0], noise=0.1, weight_noise=0.2),
    _shard("on_policy", [400.0]),
]


def test_data_are_counted_by_driver_and_by_how_spoilt_it_was():
    assert data_by_driver(SHARDS) == {
        "on_policy": {"episodes": 3, "frames": 300, "mean_return": 700.0},
        "on_policy, actions + 0.1 noise, weights + 0.2 noise": {
            "episodes": 1,
            "frames": 100,
            "mean_return": 300.0,
        },
    }


@pytest.fixture
def reported(tmp_path, world, monkeypatch):
    """`reported(vision=...)`: report and text of a round on faked drives, of that folder of V."""

    def measure(worlds, suite, config, *, driver):
        found = round_report.load_world(Contender(tmp_path).world) is worlds[0]
        return _Row({"spearman": 0.5 if found else 0.75, "bias": None})

    def drive(preset, contender):
        return {"mean": 25.0, "std": 5.0, "seeds": [0, 1], "returns": [20.0, 30.0]}

    def worst_of(preset, contender, real):
        worst = {"seed": 0, "ret": 20.0, "length": 99, "end": "off the field", "tiles": 4}
        worst |= {"expected_return": 50.0, "expected_tiles": 9.0, "surprises": 2, "delusions": 3}
        return {**worst, "files": ["worst/seed-0000.mp4", "worst/seed-0000.png"]}

    loaded = {}
    monkeypatch.setattr(
        round_report, "load_world", lambda path: loaded.setdefault(path, load_world(path))
    )
    monkeypatch.setattr(round_report, "measure", measure)
    monkeypatch.setattr(round_report, "_drive", drive)
    monkeypatch.setattr(round_report, "_worst", worst_of)
    base = _contender(tmp_path, 10.0, world)
    after = _contender(tmp_path / "round-01", 30.0, world)

    def report(vision):
        facts = {"vision": vision, "before": {"old": 40.0, "new": 60.0}}
        after.reconstruction.write_text(json.dumps(facts | {"after": {"old": 39.0, "new": 41.0}}))
        (tmp_path / "vision").mkdir(exist_ok=True)
        write_report(SMOKE, after, base, SHARDS)
        folder = after.folder
        return json.loads((folder / "report.json").read_text()), (folder / "report.md").read_text()

    return report


class _Row(dict):
    def as_dict(self):
        return {"row": self}


def test_a_report_tells_scores_fidelity_and_gain(reported):
    facts, text = reported("vision")
    assert facts["fidelity"]["before"]["spearman"] == 0.5
    assert facts["fidelity"]["after"]["spearman"] == 0.75
    assert facts["controllers"]["this round"]["dream"] == 60.0
    assert facts["controllers"]["best before"]["real_mean"] == 10.0
    assert facts["gain"]
    assert "It went on from the run itself" in text
    assert "| on_policy, actions + 0.1 noise, weights + 0.2 noise | 1 | 100 | 300 |" in text
    assert "Track 0: return 20.0 in 99 frames (off the field)" in text
    assert "deluded 3 times" in text
    assert "![worst/seed-0000.png](worst/seed-0000.png)" in text


def test_worlds_of_different_v_are_not_compared(reported):
    facts, text = reported("round-01/vision")
    assert facts["fidelity"]["before"] is None
    assert facts["fidelity"]["after"]["spearman"] == 0.75
    assert "V has changed: the world before cannot see these drives." in text
    assert "| fitted on | 39 | 41 |" in text


def test_a_report_that_is_there_is_kept(reported, tmp_path):
    facts, text = reported("vision")
    monkey = tmp_path / "round-01" / "report.json"
    monkey.write_text(json.dumps({**facts, "round": "another"}))
    assert reported("vision") == ({**facts, "round": "another"}, text)


def test_a_report_without_fidelity_says_so(reported):
    facts, _ = reported("vision")
    text = as_text({**facts, "fidelity": {"before": None, "after": None}})
    assert "Not measured (`--loop.fidelity-episodes 0`)" in text


def test_a_controller_of_an_evolution_that_goes_on_is_no_contenders(tmp_path, world):
    one = _contender(tmp_path / "round-01", 10.0, world)
    assert one.finished
    controller, facts = load_linear(one.controller)
    save_linear(controller, one.controller, {**facts, "finished": False})
    assert not one.finished
    with pytest.raises(StoreError, match="still evolving"):
        one.check()


def test_only_finished_rounds_are_contenders(tmp_path, world):
    _contender(tmp_path, 10.0, world)
    _contender(tmp_path / "round-01", 20.0, world)
    save_world(world, tmp_path / "round-02" / "world.safetensors")
    folders = [one.folder.name for one in Run(Preset(), tmp_path).contenders()]
    assert folders == [tmp_path.name, "round-01"]
