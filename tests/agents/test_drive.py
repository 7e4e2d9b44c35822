"""`python -m agents drive --store`: what a person drives on the real car goes into a store."""

import pygame
import pytest

from agents.__main__ import main
from wm_env import play, recorder
from wm_env.shard import read_shard


@pytest.fixture
def at_the_keys(monkeypatch):
    """A person who keeps up and left pressed, and closes the window after 8 pictures."""
    left, up = (pygame.event.Event(pygame.KEYDOWN, key=key) for key in (pygame.K_LEFT, pygame.K_UP))
    pictures = []

    def render(self):
        pictures.append(self.env.render())
        for when, event in ((2, left), (2, up), (8, pygame.event.Event(pygame.QUIT))):
            if len(pictures) == when:
                pygame.event.post(event)
        return pictures[-1]

    monkeypatch.setattr(recorder.Recorder, "render", render)
    monkeypatch.setattr(recorder, "LEAST_STEPS", 5)
    monkeypatch.setattr(play, "require_display", lambda: None)


def test_a_persons_drive_is_recorded_until_the_window_is_closed(at_the_keys, tmp_path, capsys):
    assert main(["drive", "--env", "real", "--store", str(tmp_path), "--seed", "777"]) == 0
    (path,) = tmp_path.glob("shard-human-*.zip")
    shard = read_shard(path)
    (row,) = shard.episodes
    assert (row.driver, row.seed) == ("human", 777)
    assert shard.read("actions")[-1].tolist() == [-1.0, 1.0, 0.0]
    assert capsys.readouterr().out.startswith(f"{path}: {row.length} steps on track 777, return ")


@pytest.mark.parametrize(
    "options, told",
    [
        ([], "add --env real"),
        (["--env", "real", "--seed", "1007"], "seed 1007 is among 1000..1099"),
        (["--env", "real", "--seed", "7"], "seed 7 is among 0..99"),
    ],
)
def test_what_must_not_be_in_a_store_is_refused(at_the_keys, tmp_path, capsys, options, told):
    store = tmp_path / "store"
    assert main(["drive", "--store", str(store), *options]) == 1
    assert told in capsys.readouterr().err
    assert not store.exists()
