"""From LunarLander's pixels to a dream of it, by the stages that make CarRacing's."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import gymnasium as gym
import gymnax
import jax
import numpy as np
import pytest

import wm_env
from agents.drivers import drivers_of, make_driver
from agents.linear import LinearController, linear_policy, load_linear, save_linear
from training.__main__ import main
from training.collect import collect
from training.latents import encode_store, open_latents
from training.overview import run_data
from training.plan import CollectConfig
from training.presets import LAPTOP, PRESETS, preset_of
from training.starts import start_states
from training.store import open_store
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.storage import StoreError
from wm_env.task import CAR_RACING, LUNAR_LANDER
from wm_env.vae import VAE, VAEConfig
from wm_env.weights import WeightsError, load_world

SMALL = VAEConfig(latent_size=4, encoder_channels=(2,) * 4, decoder_channels=(2,) * 3)
SIZES = MDNRNNConfig(latent_size=4, hidden_size=8, action_size=2, tiles="signed")
CONFIG = CollectConfig(
    env="LunarLander-v3",
    episodes={"random": 2},
    cars=2,
    max_steps=90,
    backend="gymnasium",
    workers=1,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    collect(folder, CONFIG)
    return folder


def test_a_shard_has_rewards_and_ends_but_no_tiles(store):
    (shard,) = open_store(store)
    assert shard.task == LUNAR_LANDER
    assert shard.manifest["provenance"]["environment"] == "LunarLander-v3"
    shard.verify()
    assert shard.read("actions").shape == (sum(row.length for row in shard.episodes), 2)
    with pytest.raises(StoreError, match="tiles"):
        shard.read("tiles")
    for row, _, steps in shard.bounds():
        assert row.track_tiles == 0
        assert row.off_field == row.terminated == shard.read("terminated", steps).any()
        assert row.ret == pytest.approx(shard.read("rewards", steps).sum(), abs=1e-2)


def test_a_stored_episode_is_what_gymnasium_shows(store):
    (shard,) = open_store(store)
    row, images, steps = next(iter(shard.bounds()))
    env = gym.make("LunarLander-v3", continuous=True, render_mode="rgb_array")
    env.reset(seed=row.seed)
    frames, rewards = [env.render()], []
    for action in shard.read("actions", steps):
        rewards.append(env.step(action)[1])
        frames.append(env.render())
    shown = LUNAR_LANDER.preprocess(np.stack(frames))
    np.testing.assert_array_equal(shard.read("images", images), shown)
    np.testing.assert_allclose(shard.read("rewards", steps), rewards, atol=1e-4)


def test_the_overview_of_a_task_without_a_road_tells_of_none(store, capsys):
    run_data(store)
    told = capsys.readouterr().out
    rows = open_store(store)[0].episodes
    line = next(line for line in told.splitlines() if line.split()[:1] == ["random"]).split()
    assert line[1] == "2" and line[-1] == str(sum(row.terminated for row in rows))
    assert "main" in told and "laps" not in told and "field" not in told


def test_latents_hold_rewards_in_the_tasks_unit_and_nothing_mirrored(store, tmp_path):
    shards = open_store(store)
    encode_store(shards, VAE(SMALL, key=jax.random.key(0)), tmp_path)
    (latents,) = open_latents(tmp_path)
    assert latents.task == LUNAR_LANDER
    (plain,), (flipped,) = (latents.episodes(mirrored=lambda flip=flip: flip) for flip in (0, 1))
    np.testing.assert_array_equal(plain.mu, flipped.mu)
    np.testing.assert_array_equal(plain.actions, flipped.actions)
    _, _, steps = next(iter(shards[0].bounds()))
    np.testing.assert_allclose(plain.tiles, shards[0].read("rewards", steps) / 10.0, rtol=1e-6)
    np.testing.assert_array_equal(plain.off_field, shards[0].read("terminated", steps))

    starts = start_states(MDNRNN(SIZES, key=jax.random.key(1)), [latents])
    assert np.any(starts.h != 0.0)  # short episodes have middles too


def test_a_store_of_another_task_is_refused(store, tmp_path, capsys):
    with pytest.raises(StoreError, match=r"is of LunarLander-v3; expected CarRacing-v3\. Give --"):
        collect(store, CollectConfig(**vars(CONFIG) | {"env": "CarRacing-v3"}))
    assert main(["vision", "--out", str(tmp_path), "--store", str(store)]) == 1
    assert "is of LunarLander-v3; expected CarRacing-v3. Give --env" in capsys.readouterr().err


def test_an_unknown_environment_is_named_with_what_is_expected(tmp_path, capsys):
    assert main(["all", "--env", "MoonRacing-v0", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "env is 'MoonRacing-v0'; expected one of CarRacing-v3, LunarLander-v3" in told


def test_a_driver_that_reads_the_road_is_refused(tmp_path):
    config = CollectConfig(**vars(CONFIG) | {"episodes": {"heuristic": 2}})
    with pytest.raises(ValueError, match=r"unknown drivers \['heuristic'\].*'brownian'.*'random'"):
        collect(tmp_path, config)


@pytest.mark.parametrize("name", sorted(set(drivers_of(LUNAR_LANDER)) - {"on_policy"}))
def test_chance_reaches_both_ends_of_every_range_and_not_beyond(name):
    driver = make_driver(name, 8, 0, task=LUNAR_LANDER)
    actions = np.stack([driver.act(np.zeros(0, np.uint8)) for _ in range(300)])
    assert actions.shape == (300, 8, 2)
    assert actions.dtype == np.float32
    assert np.all(actions.min(axis=(0, 1)) < -0.9)
    assert np.all(actions.max(axis=(0, 1)) > 0.9)
    assert np.abs(actions).max() <= 1.0


def test_a_controller_of_another_task_is_refused(tmp_path):
    path = tmp_path / "controller.safetensors"
    save_linear(LinearController.zeros(12, LUNAR_LANDER), path)
    assert load_linear(path)[0].task == LUNAR_LANDER
    with pytest.raises(WeightsError, match=r"is of LunarLander-v3; expected one of CarRacing-v3"):
        load_linear(path, task=CAR_RACING)
    with pytest.raises(WeightsError, match=r"no controller of LunarLander-v3 is shipped"):
        load_linear(task=LUNAR_LANDER)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_for_another_task_drives_as_much_and_carracings_stays(name):
    assert preset_of(name) is PRESETS[name]
    mine, plain = preset_of(name, LUNAR_LANDER), PRESETS[name]
    assert sum(mine.collect.episodes.values()) == sum(plain.collect.episodes.values())
    assert set(mine.collect.episodes) | set(mine.loop.episodes) <= set(drivers_of(LUNAR_LANDER))
    assert mine.vision == plain.vision
    assert (mine.memory.mdn_rnn.action_size, mine.memory.mdn_rnn.tiles) == (2, "signed")
    assert mine.memory.asymmetry == 1.0
    mine.evolve.search.check_task(LUNAR_LANDER)
    mine.loop.search.check_task(LUNAR_LANDER)
    assert mine.hard_starts == 0.0
    assert LAPTOP.collect.task == CAR_RACING


@pytest.mark.slow
def test_all_stages_lead_from_landers_pixels_to_a_dream_of_it(
    tmp_path, lenient_dtypes, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")  # so that no cell of the table is broken into lines
    out, err = io.StringIO(), io.StringIO()
    few = ["--vision.steps", "4", "--memory.steps", "4", "--evolve.generations", "1"]
    few += ["--loop.vision-steps", "4", "--loop.memory-steps", "4", "--loop.generations", "1"]
    few += ["--evolve.validate-every", "1", "--collect.max-steps", "60"]
    few += ["--evolve.validation-steps", "20", "--evaluation.max-steps", "20"]
    arguments = ["all", "--env", "LunarLander-v3", "--preset", "smoke", "--out", str(tmp_path)]
    with redirect_stdout(out), redirect_stderr(err):
        assert main([*arguments, *few]) == 0, err.getvalue()
    assert "16 episodes (brownian 8, random 8)" in " ".join(out.getvalue().split())
    for path in ("memory/dreams.png", "memory/returns.png", "round-01/evolve/evolution.png"):
        assert (tmp_path / path).stat().st_size > 1000
    report = json.loads((tmp_path / "round-01" / "report.json").read_text())
    assert report["data"]["on_policy, actions + 0.5 noise"]["episodes"] == 8

    path = tmp_path / "world.safetensors"
    world = load_world(path)
    assert world.task == LUNAR_LANDER
    assert world.metadata["environment"] == "LunarLander-v3"
    env = gym.make("DreamLunarLander-v0", world_model=path, render_mode="rgb_array")
    env.reset(seed=0)
    seen, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(seen)
    assert env.render().shape == (400, 600, 3)
    envs = gym.make_vec("DreamLunarLander-v0", num_envs=2, world_model=path)
    assert envs.reset(seed=0)[0].shape == (2, 288)
    core, params = gymnax.make("DreamLunarLander-v0", world_model=path)
    assert core.reset(jax.random.key(0), params)[0].shape == (288,)

    controller, _ = load_linear(tmp_path / "evolve" / "controller.safetensors")
    for where in ("real", "dream"):
        told = wm_env.evaluate(
            linear_policy,
            controller,
            env=where,
            seeds=[0],
            world_model=world,
            max_episode_steps=20,
            progress=False,
        )
        assert told.task == "LunarLander-v3"
        # An M of a few updates may end its dream at any moment.
        assert told.lengths == (20,) or (where == "dream" and 1 <= told.lengths[0] < 20)
