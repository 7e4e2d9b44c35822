"""A store becomes a Minari dataset and a Minari dataset a store, and nothing is lost between."""

import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")

import minari  # noqa: E402
from minari.data_collector import EpisodeBuffer  # noqa: E402

from tests.training.episodes import made_up_episode  # noqa: E402
from training import minari_export  # noqa: E402
from training.minari_export import UNKNOWN_SEED, export_minari  # noqa: E402
from training.minari_import import import_minari  # noqa: E402
from training.store import open_store, shard_path  # noqa: E402
from wm_env.preprocess import preprocess  # noqa: E402
from wm_env.real import make_real  # noqa: E402
from wm_env.shard import Episode, write_shard  # noqa: E402
from wm_env.storage import StoreError  # noqa: E402

ID = "carracing/made-up-v0"
RAW = gymnasium.spaces.Box(0, 255, (96, 96, 3), np.uint8)
CONTROLS = gymnasium.spaces.Box(np.float32([-1, 0, 0]), np.ones(3, np.float32))

# Minari warns of every piece of metadata that a dataset made in a test does without.
pytestmark = pytest.mark.filterwarnings("ignore:::minari")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Where Minari keeps its datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def driven(seed, *, driver="track", **options):
    return made_up_episode(seed, driver=driver, plain=True, **options)


@pytest.fixture
def store(tmp_path):
    """Two shards: three episodes of two drivers, and two that end off the field."""
    groups = [
        [driven(101), driven(102, steps=7), driven(103, driver="blind")],
        [driven(104, end="off_field"), driven(105, steps=70, end="off_field")],
    ]
    for index, group in enumerate(groups):
        write_shard(shard_path(tmp_path / "store", index), group, {"backend": "made up"})
    return tmp_path / "store"


def make_dataset(observations, rewards, *, observation_space=RAW, action_space=CONTROLS, **ends):
    """A dataset of one episode, as another project would make it, and its actions."""
    action_space.seed(0)
    steps = len(rewards)
    actions = np.stack([action_space.sample() for _ in range(steps)])
    ends = {"terminations": [False] * steps, "truncations": [False] * steps} | ends
    buffer = EpisodeBuffer(observations=observations, actions=actions, rewards=rewards, **ends)
    minari.create_dataset_from_buffers(
        "foreign-v0",
        [buffer],
        observation_space=observation_space,
        action_space=action_space,
        jpeg_encoding=False,
    )
    return actions


def raw_frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 96, 96, 3), np.uint8)


def test_a_store_comes_back_from_minari_as_it_was(store, tmp_path):
    export_minari(store, ID)
    import_minari(ID, tmp_path / "back", episodes_per_shard=3)
    for before, after in zip(open_store(store), open_store(tmp_path / "back"), strict=True):
        after.verify()
        assert after.episodes == before.episodes
        assert after.manifest["checksums"] == before.manifest["checksums"]


def test_an_export_tells_minari_what_it_is(store, root):
    path = export_minari(store, ID, author="A. Driver", description="made up")
    listed = minari.list_local_datasets()[ID]
    assert path == root / ID
    assert listed["total_episodes"] == 5
    assert listed["total_steps"] == 30 + 7 + 30 + 30 + 70
    assert listed["author"] == ["A. Driver"]
    assert listed["algorithm_name"] == "blind, track"
    assert listed["description"] == "made up"
    assert listed["provenance"] == [{"backend": "made up"}]


def test_minari_reads_the_episodes_of_an_export(store):
    export_minari(store, ID)
    dataset = minari.load_dataset(ID)
    read, original = dataset[4], driven(105, steps=70, end="off_field")
    np.testing.assert_array_equal(read.observations, original.images)
    np.testing.assert_array_equal(read.actions, original.actions)
    np.testing.assert_array_equal(read.rewards, original.rewards)
    np.testing.assert_array_equal(read.terminations, original.terminated)
    np.testing.assert_array_equal(read.truncations, original.truncated)


def test_an_export_keeps_seed_driver_and_track_tiles_of_each_episode(store):
    export_minari(store, ID)
    metadata = minari.load_dataset(ID).storage.get_episode_metadata(range(5))
    kept = [(one["seed"], one["driver"], one["track_tiles"], one["backend"]) for one in metadata]
    assert kept == [
        (seed, "blind" if seed == 103 else "track", 280, "made up") for seed in range(101, 106)
    ]


def test_an_export_is_compressed(store):
    path = export_minari(store, ID)
    with h5py.File(path / "data" / "main_data.hdf5") as file:
        assert {file[f"episode_{number}/observations"].compression for number in range(5)} == {
            "gzip"
        }


def test_minari_adds_to_an_export(store):
    export_minari(store, ID)
    more = driven(109)
    minari.load_dataset(ID).update_dataset_from_buffer(
        [
            EpisodeBuffer(
                observations=more.images,
                actions=more.actions,
                rewards=more.rewards,
                terminations=more.terminated,
                truncations=more.truncated,
            )
        ]
    )
    assert minari.load_dataset(ID).total_episodes == 6
    np.testing.assert_array_equal(minari.load_dataset(ID)[5].observations, more.images)


@pytest.fixture
def driven_for_real(tmp_path):
    """An export of five real steps on the track of seed 123."""
    env = make_real(observation="pixels")
    env.action_space.seed(0)
    images, actions, rewards = [env.reset(seed=123)[0]], [], []
    for _ in range(5):
        actions.append(env.action_space.sample())
        image, reward, *_ = env.step(actions[-1])
        images.append(image)
        rewards.append(reward)
    env.close()
    episode = Episode(
        images=np.stack(images),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=np.zeros(5, bool),
        truncated=np.arange(5) == 4,
        track_tiles=280,
        driver="random",
        seed=123,
    )
    write_shard(shard_path(tmp_path / "real", 0), [episode], {"backend": "gymnasium"})
    export_minari(tmp_path / "real", ID)
    return minari.load_dataset(ID)


def test_the_recovered_environment_has_the_spaces_of_the_dataset(driven_for_real):
    env = driven_for_real.recover_environment()
    assert env.observation_space == driven_for_real.observation_space
    assert env.action_space == driven_for_real.action_space
    env.close()


def test_the_recovered_environment_drives_the_episode_again(driven_for_real):
    (episode,) = driven_for_real
    (metadata,) = driven_for_real.storage.get_episode_metadata([0])
    env = driven_for_real.recover_environment()
    np.testing.assert_array_equal(env.reset(seed=metadata["seed"])[0], episode.observations[0])
    for step, action in enumerate(episode.actions):
        image, reward, *_ = env.step(action)
        np.testing.assert_array_equal(image, episode.observations[step + 1])
        assert np.float32(reward) == episode.rewards[step]
    env.close()


KNOWS_ONLY_MINARI = """
import sys, minari
dataset = minari.load_dataset(sys.argv[1])
assert "wm_env" not in sys.modules
image, _ = dataset.recover_environment().reset(seed=123)
print(image.shape, (image == dataset[0].observations[0]).all())
"""


@pytest.mark.slow
def test_a_process_that_knows_only_minari_recovers_the_environment(driven_for_real):
    done = subprocess.run(
        [sys.executable, "-c", KNOWS_ONLY_MINARI, driven_for_real.id],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(64, 64, 3) True\n", done.stderr


def damage(shard):
    """Alter a byte of the images."""
    with zipfile.ZipFile(shard.path) as archive:
        chunk = archive.getinfo("images/c/0/0/0/0")
    data = bytearray(shard.path.read_bytes())
    data[chunk.header_offset + 30 + len(chunk.filename) + chunk.compress_size // 2] ^= 1
    shard.path.write_bytes(data)


def test_an_export_that_fails_leaves_nothing(store, root):
    damage(open_store(store)[1])
    with pytest.raises(StoreError, match=r"shard-00001.zip is damaged"):
        export_minari(store, ID)
    assert minari.list_local_datasets() == {}
    assert not any((root / ID).parent.iterdir())


def test_an_export_leaves_damaged_shards_out_when_asked(store, capsys):
    damage(open_store(store)[0])
    export_minari(store, ID, damaged="skip")
    assert minari.load_dataset(ID).total_episodes == 2
    assert "skipped" in capsys.readouterr().err


def test_an_unfinished_export_is_not_listed(store, monkeypatch):
    seen = []

    def publish(unfinished, *_):
        assert (unfinished / "data" / "metadata.json").exists()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Minari warns of a folder that it takes for a dataset
            seen.append(minari.list_local_datasets())

    monkeypatch.setattr(minari_export, "_publish", publish)
    export_minari(store, ID)
    assert seen == [{}]


def test_what_a_killed_export_left_is_in_nobodys_way(store, root):
    left = root / "carracing" / ".made-up-v0.unfinished" / "data"
    left.mkdir(parents=True)
    (left / "main_data.hdf5").write_bytes(b"half")
    export_minari(store, ID)
    assert minari.load_dataset(ID).total_episodes == 5
    assert not left.parent.exists()


def test_a_dataset_that_exists_is_not_overwritten(store):
    export_minari(store, ID)
    with pytest.raises(StoreError, match=f"minari delete {ID}"):
        export_minari(store, ID)


@pytest.mark.parametrize("malformed", ["made-up", "../made-up-v0", "made up-v0"])
def test_a_malformed_id_is_refused(store, malformed):
    with pytest.raises(StoreError, match="expected name-v0 or namespace/name-v0"):
        export_minari(store, malformed)


def test_raw_frames_are_preprocessed(tmp_path):
    frames = raw_frames(5)
    actions = make_dataset(frames, rewards=[7.04, -0.1, 3.47, -0.1])
    (shard,) = import_minari("foreign-v0", tmp_path / "store")
    np.testing.assert_array_equal(shard.read("images"), preprocess(frames))
    np.testing.assert_array_equal(shard.read("actions"), actions)


def test_what_a_dataset_does_not_tell_is_recovered_or_named(tmp_path):
    make_dataset(raw_frames(5), rewards=[7.042857, -0.1, 3.471429, -0.1])
    (shard,) = import_minari("foreign-v0", tmp_path / "store")
    (row,) = shard.episodes
    assert (row.track_tiles, row.driver, row.seed) == (280, "foreign-v0", UNKNOWN_SEED)
    np.testing.assert_array_equal(shard.read("tiles"), [2, 0, 1, 0])
    assert shard.manifest["provenance"]["backend"] == "unknown"


def test_an_episode_without_tiles_has_no_known_track(tmp_path):
    make_dataset(raw_frames(3), rewards=[-0.1, -0.1])
    (shard,) = import_minari("foreign-v0", tmp_path / "store")
    assert shard.episodes[0].track_tiles == 0
    np.testing.assert_array_equal(shard.read("tiles"), [0, 0])


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({}, (False, True)),
        ({"truncations": [False, True]}, (False, True)),
        ({"terminations": [False, True]}, (True, False)),
        ({"terminations": [False, True], "truncations": [False, True]}, (True, False)),
    ],
    ids=["cut", "time limit", "terminal", "terminal at the time limit"],
)
def test_an_imported_episode_ends_in_one_way(tmp_path, ends, expected):
    make_dataset(raw_frames(3), rewards=[-0.1, -0.1], **ends)
    (shard,) = import_minari("foreign-v0", tmp_path / "store")
    assert (shard.read("terminated")[-1], shard.read("truncated")[-1]) == expected
    assert not shard.read("terminated")[0] and not shard.read("truncated")[0]


def test_an_import_goes_on_where_it_stopped(store, tmp_path):
    export_minari(store, ID)
    first, second = import_minari(ID, tmp_path / "back", episodes_per_shard=3)
    kept = first.path.stat().st_mtime_ns
    second.path.unlink()
    again = import_minari(ID, tmp_path / "back", episodes_per_shard=3)
    assert [shard.path for shard in again] == [first.path, second.path]
    assert [row.seed for row in again[1].episodes] == [104, 105]
    assert first.path.stat().st_mtime_ns == kept


def test_an_import_refuses_shards_of_something_else(store, tmp_path):
    export_minari(store, ID)
    import_minari(ID, tmp_path / "back", episodes_per_shard=3)
    with pytest.raises(StoreError, match=r"00000.zip does not hold episodes 0 to 1 .*Delete"):
        import_minari(ID, tmp_path / "back", episodes_per_shard=2)


@pytest.mark.parametrize(
    "spaces",
    [
        {"action_space": gymnasium.spaces.Discrete(5)},
        {"action_space": gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)},
        {"observation_space": gymnasium.spaces.Box(0.0, 1.0, (96, 96, 3), np.float32)},
        {"observation_space": gymnasium.spaces.Box(0, 255, (84, 84, 3), np.uint8)},
    ],
    ids=["discrete", "other controls", "floats", "other frames"],
)
def test_a_dataset_with_other_spaces_is_refused(tmp_path, spaces):
    space = spaces.get("observation_space", RAW)
    make_dataset(np.zeros((3, *space.shape), space.dtype), rewards=[-0.1, -0.1], **spaces)
    with pytest.raises(StoreError, match="foreign-v0 is of .* expected CarRacing's frames"):
        import_minari("foreign-v0", tmp_path / "store")


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="`minari download nothing-v0`"):
        import_minari("nothing-v0", tmp_path / "store")


def test_without_minari_the_extra_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(StoreError, match="uv sync --extra minari"):
        export_minari(store, ID)


def test_episodes_on_tracks_kept_for_controllers_are_left_out(tmp_path, capsys):
    write_shard(shard_path(tmp_path / "store", 0), [driven(7), driven(107)], {"backend": "made up"})
    export_minari(tmp_path / "store", ID)
    (shard,) = import_minari(ID, tmp_path / "back")
    assert [row.seed for row in shard.episodes] == [107]
    assert "left out: 1 episodes" in capsys.readouterr().err
