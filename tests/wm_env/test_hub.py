"""Worlds of the Hugging Face Hub: a local folder, the cache without a network, an upload."""

from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
import pytest

import wm_env
from wm_env.evaluation import Evaluation
from wm_env.weights import WeightsError

hub = pytest.importorskip("huggingface_hub")
from wm_env.hub import push_to_hub, save_pretrained  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def same(one, other):
    """Whether two worlds agree as far as float16 keeps them."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a, b, atol=2e-3, rtol=2e-3) for a, b in leaves)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The Hub's offline mode with an empty cache of its own; gives the cache."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fetched_before(cache, world, revision="main"):
    """Lay a world into the cache as a download would have."""
    repository = cache / "models--someone--a-world"
    save_pretrained(world, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(COMMIT)


def evaluation():
    return Evaluation(
        env="real",
        backend="gymnasium",
        seeds=(1000, 1001),
        returns=(800.0, 900.0),
        lengths=(1000, 950),
        laps_finished=(False, True),
        off_field=(False, False),
    )


def test_a_folder_holds_the_world_and_a_card_of_its_provenance_and_score(world, tmp_path):
    folder = save_pretrained(world, tmp_path / "mine", evaluation=evaluation())
    assert same(wm_env.WorldModel.from_pretrained(folder), world)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: wm_env")
    assert "850.0 ± 50.0" in card and "1000, 1001" in card and "random weights of seed" in card
    assert card.count("Not measured.") == 1  # its fidelity
    assert hub.ModelCard(card).data.pipeline_tag == "reinforcement-learning"


def test_what_was_fetched_once_serves_without_a_network(world, offline):
    fetched_before(offline, world)
    assert same(wm_env.WorldModel.from_pretrained("someone/a-world"), world)
    env = gym.make("DreamCarRacing-v0", world_model="hf://someone/a-world")
    assert env.reset(seed=0)[0].shape == (288,)


def test_a_revision_is_asked_for_by_its_name(world, offline):
    fetched_before(offline, world, revision="v1")
    assert same(wm_env.load_world("hf://someone/a-world@v1"), world)
    assert same(wm_env.WorldModel.from_pretrained("someone/a-world", revision="v1"), world)
    with pytest.raises(WeightsError, match="@v2 cannot be fetched"):
        wm_env.load_world("hf://someone/a-world@v2")


@pytest.mark.parametrize("address", ["hf://someone/nothing", "hf://", "hf://a/b/c"])
def test_what_cannot_be_fetched_is_told_with_what_was_expected(offline, address):
    with pytest.raises(WeightsError, match="hf://OWNER/NAME"):
        wm_env.load_world(address)


def test_an_upload_is_the_world_and_its_card(world, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo_id, *, private, exist_ok):
            sent["repository"] = repo_id, private, exist_ok
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path):
            sent["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            sent["world"] = wm_env.load_world(Path(folder_path) / "world.safetensors")
            sent["card"] = (Path(folder_path) / "README.md").read_text()

    monkeypatch.setattr(hub, "HfApi", Api)
    address = world.push_to_hub("someone/a-world", private=True, token="secret")
    assert address == "https://huggingface.co/someone/a-world"
    assert sent["repository"] == ("someone/a-world", True, True) and sent["token"] == "secret"
    assert 'world_model="hf://someone/a-world"' in sent["card"]
    assert sent["files"] == ["README.md", "world.safetensors"] and same(sent["world"], world)


def test_an_upload_without_a_network_fails_in_words(world, offline):
    with pytest.raises(WeightsError, match="'someone/a-world' cannot be uploaded .*HF_HUB_OFFLINE"):
        push_to_hub(world, "someone/a-world")


def test_an_upload_to_where_nobody_answers_fails_in_words(world, monkeypatch):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="'someone/a-world' cannot be uploaded"):
        push_to_hub(world, "someone/a-world")


def test_addresses_may_have_their_scheme_and_folders_must_be_there(world, offline, tmp_path):
    fetched_before(offline, world)
    assert same(wm_env.WorldModel.from_pretrained("hf://someone/a-world"), world)
    with pytest.raises(WeightsError, match="a folder that is there"):
        wm_env.WorldModel.from_pretrained(str(tmp_path / "nowhere"))


def test_a_world_saves_and_loads_itself(world, tmp_path):
    world.save(tmp_path / "one.safetensors")
    assert same(wm_env.WorldModel.load(tmp_path / "one.safetensors"), world)
    assert wm_env.WorldModel.load().latent_size == 32
