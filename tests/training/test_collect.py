"""Collection writes what was driven, goes on where it stopped, and refuses to mix plans."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.collect import collect
from training.plan import CollectConfig
from wm_env.car_racing import make_car_racing_vector
from wm_env.jobs import Progress
from wm_env.preprocess import preprocess
from wm_env.storage import StoreError
from wm_env.workers import run_jobs

SMALL = CollectConfig(
    episodes={"heuristic": 3, "brownian": 2}, cars=2, max_steps=12, backend="gymnasium", workers=1
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    collect(folder, SMALL)
    return folder


def test_collection_fills_the_plan_with_every_driver(store):
    shards = collect(store, SMALL)
    assert [[row.driver for row in shard.episodes] for shard in shards] == [
        [one.driver] * len(one.seeds) for one in SMALL.plan()
    ]
    assert sum(len(shard.episodes) for shard in shards) == 5
    assert all(
        row.length == 12 and row.track_tiles > 200 for shard in shards for row in shard.episodes
    )
    for shard in shards:
        shard.verify()


def test_workers_that_collect_import_no_jax():
    program = (
        "import sys; from training.plan import CollectConfig, ShardPlan\n"
        "from training.collect import collect_shard, drive\n"
        "plan = ShardPlan(0, 'heuristic', range(100000, 100001))\n"
        "list(drive(plan, CollectConfig(max_steps=3, backend='gymnasium')))\n"
        "assert 'jax' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_finished_shards_are_never_rewritten(store):
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*")}
    collect(store, SMALL)
    assert {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*")} == before


def test_stored_images_and_rewards_are_those_of_the_simulator(store):
    shard = collect(store, SMALL)[0]
    env = make_car_racing_vector(2)
    frames, _ = env.reset(seed=[row.seed for row in shard.episodes])
    stored = {name: shard.read(name) for name in ("images", "actions", "rewards")}
    for step in range(12):
        for lane, (_, images, _) in enumerate(shard.bounds()):
            np.testing.assert_array_equal(stored["images"][images][step], preprocess(frames[lane]))
        actions = np.stack([stored["actions"][steps][step] for _, _, steps in shard.bounds()])
        frames, rewards, *_ = env.step(actions)
        paid = [stored["rewards"][steps][step] for _, _, steps in shard.bounds()]
        np.testing.assert_allclose(rewards, paid, atol=1e-4)
    env.close()


def test_another_plan_in_the_same_folder_is_refused(store):
    other = CollectConfig(
        episodes={"random": 4}, cars=2, max_steps=12, backend="gymnasium", workers=1
    )
    with pytest.raises(StoreError, match="use another --out"):
        collect(store, other)


def test_tracks_that_judge_controllers_stay_out_of_the_data(tmp_path):
    with pytest.raises(ValueError, match=r"seed 1000 is among 1000\.\.1099.*judging"):
        collect(tmp_path, replace(SMALL, first_seed=997))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"episodes": {"pilot": 2}}, r"unknown drivers \['pilot'\].*heuristic"),
        ({"episodes": {"random": -1}}, "0 or more for each driver"),
        ({"cars": 0}, "cars is 0; expected 1 or more"),
    ],
)
def test_a_bad_plan_is_refused_before_anything_starts(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        collect(tmp_path / "data", replace(SMALL, **change))
    assert not (tmp_path / "data").exists()


def test_an_unknown_backend_is_named(tmp_path):
    with pytest.raises(ValueError, match="backend is 'carla'"):
        collect(tmp_path, replace(SMALL, backend="carla"))


def checksums(shards):
    return [shard.manifest["checksums"] for shard in shards]


def test_what_a_lost_worker_had_in_hand_is_driven_again_and_alike(store, tmp_path, capfd):
    killed = []

    def kill_once(shard):
        if not killed:
            killed.extend(multiprocessing.active_children())
            for worker in killed:
                worker.kill()

    shards = collect(tmp_path, replace(SMALL, workers=2), on_shard=kill_once)
    told = capfd.readouterr().err
    assert killed and "taken over by another worker" in told
    assert "frames/s" in told and "return " in told and "left" in told
    assert checksums(shards) == checksums(collect(store, SMALL))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in store.glob("shard-*")
    )


def test_workers_that_die_at_once_end_the_run_with_the_name_of_the_shard(tmp_path):
    def kill_all():
        while not over.wait(0.05):
            for worker in multiprocessing.active_children():
                worker.kill()

    over = threading.Event()
    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(StoreError, match=r"shard 0 .*seeds 100000..100001.* lost 3 times"):
            collect(tmp_path, SMALL)
    finally:
        over.set()
        killer.join()


def test_killed_at_any_moment_it_goes_on_with_what_was_finished(tmp_path):
    config = replace(SMALL, episodes={"heuristic": 6}, max_steps=40)
    program = tmp_path / "program.py"
    program.write_text(
        "from training.collect import collect; from training.plan import CollectConfig\n"
        f"if __name__ == '__main__':\n    collect({str(tmp_path / 'data')!r}, {config!r})\n"
    )
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(program)], env={**os.environ, "PYTHONPATH": root}
    )
    finished = _until(lambda: list((tmp_path / "data").glob("shard-*.zip")), seconds=90)
    parent.kill()
    parent.wait()
    before = {path: path.stat().st_mtime_ns for path in finished}
    shards = collect(tmp_path / "data", config)
    assert [len(shard.episodes) for shard in shards] == [2, 2, 2]
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert not list((tmp_path / "data").glob(".*"))


def test_ctrl_c_stops_at_once_and_leaves_no_half_shard(tmp_path):
    command = "collect --episodes heuristic 64 --backend gymnasium --workers 2 --store".split()
    parent = subprocess.Popen(
        [sys.executable, "-m", "training", *command, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
    )
    workers = _until(lambda: _spawned_by(parent.pid), seconds=60)
    time.sleep(3.0)  # they drive by then
    parent.send_signal(signal.SIGINT)
    _, told = parent.communicate(timeout=60)
    assert parent.returncode == 130 and b"stopped" in told
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_is_refused_or_driven_anew_as_asked(store, tmp_path, capfd):
    shutil.copytree(store, tmp_path / "data")
    hurt = sorted((tmp_path / "data").glob("shard-*"))[1]
    hurt.write_bytes(hurt.read_bytes()[:-100])
    with pytest.raises(StoreError, match=hurt.name):
        collect(tmp_path / "data", SMALL)
    shards = collect(tmp_path / "data", SMALL, damaged="skip")
    assert hurt.name in capfd.readouterr().err
    assert checksums(shards) == checksums(collect(store, SMALL))


def test_what_a_shard_was_made_with_is_compared():
    plan = replace(SMALL, episodes={"on_policy": 2}).plan()[0]
    settings = plan.settings(SMALL)
    assert settings["backend"] == "gymnasium" and len(set(settings["weights"])) == 2
    other = plan.settings(replace(SMALL, world="carracing", controller="carracing_controller"))
    assert other == settings
    assert plan.settings(replace(SMALL, noise=0.1)) != settings


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_collects_the_same(
    tmp_path, ray_of_two_nodes, capfd, monkeypatch
):
    config = replace(SMALL, episodes={"heuristic": 8}, max_steps=400, workers=2)
    killed = []

    def kill_when_both_drive(*args, **kwargs):
        in_hand = set()
        for event in run_jobs(*args, **kwargs):
            (in_hand.add if isinstance(event, Progress) else in_hand.discard)(event.index)
            if len(in_hand) == 2 and not killed:  # each node has one core, so a shard
                killed.append(event.index)
                ray_of_two_nodes.kill_second_node()
            yield event

    with monkeypatch.context() as patched:
        patched.setattr("training.collect.run_jobs", kill_when_both_drive)
        shards = collect(
            (tmp_path / "there").as_uri(), replace(config, ray=ray_of_two_nodes.address)
        )
    assert killed and "taken over by another worker" in capfd.readouterr().err
    assert checksums(shards) == checksums(collect(tmp_path / "here", config))
    assert len(list((tmp_path / "there").iterdir())) == len(shards)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_workers_end_when_the_collecting_process_is_killed(tmp_path):
    program = (
        "from pathlib import Path\n"
        "from training.collect import collect; from training.plan import CollectConfig\n"
        "if __name__ == '__main__':\n"
        "    config = CollectConfig(episodes={'heuristic': 64}, backend='gymnasium', workers=2)\n"
        f"    collect(Path({str(tmp_path / 'data')!r}), config)\n"
    )
    (tmp_path / "program.py").write_text(program)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env=environment)
    workers = _until(lambda: _spawned_by(parent.pid), seconds=60)
    parent.kill()
    parent.wait()
    _until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=30)


def _spawned_by(parent):
    """Worker processes of `parent`, once there are two."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    spawned = []
    for child in children:
        with contextlib.suppress(OSError):  # it ended meanwhile
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                spawned.append(child)
    return spawned if len(spawned) == 2 else []


def _until(condition, *, seconds):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value
