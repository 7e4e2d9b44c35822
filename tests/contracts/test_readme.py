"""What the README shows runs as it stands, and the commands that it names exist."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# What a block uses that not every environment has, and the package that brings it.
NEEDS = {
    "stable_baselines3": "stable_baselines3",
    "rejax": "rejax",
    "torchrl": "torchrl",
    "RecordVideo": "moviepy",
    "evosax": "evosax",
}
# Less of the same where a block trains.
SMALLER = {
    "1_000_000": "8_192",
    "range(1000, 1100)": "[1000], max_episode_steps=50",
    "seeds=[0]": "seeds=[0], max_episode_steps=50",
    "8192": "512",
    ", 4))": ", 2))",
    "range(20)": "range(2)",
    "steps=600": "steps=20",
}


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{index}" for index in range(len(BLOCKS))])
def test_every_python_block_runs(block, request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for word, package in NEEDS.items():
        if word in block:
            pytest.importorskip(package)
    if any(word in block for word in NEEDS):
        # Dtype and rank promotion are strict in our tests, which other libraries' code is not.
        request.getfixturevalue("lenient_dtypes")
        for figure, smaller in SMALLER.items():
            block = block.replace(figure, smaller)
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_shows_the_ways_in():
    assert len(BLOCKS) == 10
    for way in ("gym.make(", "gym.make_vec(", "gymnax.make(", "jax.vmap(env.step", "make_real("):
        assert way in README


def test_pictures_and_pages_that_it_links_are_there():
    links = re.findall(r"\]\(((?!https?://)[^)#]+)\)", README)
    missing = [link for link in links if not (Path(__file__).parents[2] / link).exists()]
    assert not missing
