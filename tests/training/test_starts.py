"""Moments from which dreams begin: ordinary ones on the road, and hard ones."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from training.latents import EpisodeLatents
from training.starts import start_states
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.shard import EpisodeRow
from wm_env.task import CAR_RACING, LUNAR_LANDER

STEPS = 600
M = MDNRNN(MDNRNNConfig(latent_size=2, hidden_size=8), key=jax.random.key(0))


def shard(*, steer=(), lost=(), rate=3, task=CAR_RACING):
    """An episode whose latents tell the frame: a tile every `rate` frames, but for `lost` ones.

    `steer` and `lost` are (first frame, frame after the last).
    """
    actions, tiles = np.zeros((STEPS, 3), np.float32), np.zeros(STEPS, np.float32)
    tiles[::rate] = 1.0
    for first, stop in lost:
        tiles[first:stop] = 0.0
    for first, stop in steer:
        actions[first:stop, 0] = -1.0
    mu = np.repeat(np.arange(STEPS + 1, dtype=np.float32)[:, None], 2, axis=1)
    row = EpisodeRow("on_policy", 1, STEPS, 500.0, 280, False, False)
    episode = EpisodeLatents(row, mu, np.zeros_like(mu), actions, tiles, tiles * 0, None)
    return SimpleNamespace(task=task, rows=(row,), episodes=lambda mirrored: iter([episode]))


def frames(starts):
    return np.asarray(starts.z[:, 0])


@pytest.mark.parametrize("trouble", [{"steer": [(400, 430)]}, {"lost": [(400, 470)]}])
def test_hard_moments_are_shortly_before_a_hairpin_or_the_roads_loss(trouble):
    found = frames(start_states(M, [shard(**trouble)], middle=16, hard=1.0))
    hard = found[(found > 330) & (found < 400)]
    assert len(hard) >= 3
    ordinary = frames(start_states(M, [shard(**trouble)], middle=16))
    assert len(ordinary[(ordinary > 330) & (ordinary < 400)]) < len(hard)


def test_a_slow_cars_troubles_are_no_hard_moments():
    slow = shard(steer=[(400, 430)], rate=8)
    found = frames(start_states(M, [slow], middle=16, hard=1.0))
    np.testing.assert_array_equal(found, frames(start_states(M, [slow], middle=16)))


def test_where_hard_moments_are_few_ordinary_ones_fill_up():
    starts = start_states(M, [shard(steer=[(400, 430)])], middle=20, hard=1.0)
    assert len(starts.z) == 20
    found = frames(starts)
    assert 3 <= np.sum((found > 330) & (found < 430)) < 20


@pytest.mark.parametrize(
    ("hard", "task", "told"),
    [(1.5, CAR_RACING, "hard_starts is 1.5; expected a share"), (0.5, LUNAR_LANDER, "no road")],
)
def test_a_share_that_cannot_be_is_refused(hard, task, told):
    with pytest.raises(ValueError, match=told):
        start_states(M, [shard(task=task)], hard=hard)
