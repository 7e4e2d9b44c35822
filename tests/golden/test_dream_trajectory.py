"""A stored dream: fixed weights, key and actions must give the same episode for ever.

When a change of the dream is meant, write the file anew: `python -m tests.golden.write`.
"""

import json
from pathlib import Path

import numpy as np

from tests.golden.write import dreamt

STORED = Path(__file__).parent / "dream_trajectory.json"


def test_the_dream_equals_the_stored_one(random_world):
    stored, now = json.loads(STORED.read_text()), dreamt(random_world(7))
    assert set(stored) == set(now)
    for name in stored:
        np.testing.assert_allclose(now[name], stored[name], atol=2e-3, err_msg=name)
