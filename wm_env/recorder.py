"""Recording: what a person drives on the real car becomes shards of a store, an episode each."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import gymnasium
import numpy as np

from wm_env.preprocess import preprocess
from wm_env.seeds import refuse_held_out
from wm_env.shard import Episode, Shard, write_shard
from wm_env.simulator import provenance
from wm_env.storage import StorePath, to_path

LEAST_STEPS = 150  # 3 s, of which CarRacing zooms in for one

_DRAWN = (10**7, 10**8)  # far from held-out seeds, and from those of collections


class Recorder(gymnasium.Wrapper):
    """CarRacing-v3 that writes every episode it finishes into a store, as one shard of its own.

    Each step is stored as it was: the frame seen (as V sees it), the action sent, the reward paid.
    A reset without a seed draws one, so that any track can be made again. An episode that is cut
    short, by a reset or by closing, is kept as truncated if it has at least LEAST_STEPS steps: up
    to there it is driving like any other, and the time limit too is a cut that the car does not
    feel. Shorter ones, false starts as a rule, are dropped.

    Args:
        env: a continuous CarRacing-v3 of Gymnasium.
        store: a folder, or the URL of one; made if it is not there.
        driver: the name to store the episodes under.
        on_shard: called with every shard written.

    Raises:
        ValueError: the actions are not steer, gas and brake.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        store: str | StorePath,
        *,
        driver: str = "human",
        on_shard: Callable[[Shard], None] | None = None,
    ):
        if env.action_space.shape != (3,):
            raise ValueError(
                f"the environment takes {env.action_space}; a store holds steer, gas and brake: "
                "make CarRacing-v3 with continuous=True."
            )
        super().__init__(env)
        self._store, self._driver, self._on_shard = to_path(store), driver, on_shard
        self._store.mkdir(parents=True, exist_ok=True)
        self._random = np.random.default_rng()
        self._seed, self._first = -1, None
        self._steps: list[tuple[np.ndarray, np.ndarray, float]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, on a track drawn anew unless `seed` says which.

        Raises:
            ValueError: the seed is one on which controllers are chosen or judged.
        """
        refuse_held_out([] if seed is None else [seed])
        self._finish()
        self._seed = int(self._random.integers(*_DRAWN)) if seed is None else seed
        frame, info = self.env.reset(seed=self._seed, options=options)
        self._first = preprocess(frame)
        return frame, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Drive one frame and note it; an episode that ends is written before this returns."""
        if self._first is None:
            raise gymnasium.error.ResetNeeded("no episode is running; call reset() before step().")
        action = np.array(action, np.float32)  # a copy, of just what is stored
        frame, reward, terminated, truncated, info = self.env.step(action)
        self._steps.append((preprocess(frame), action, float(reward)))
        if terminated or truncated:
            self._finish(over=True, terminated=bool(terminated))
        return frame, reward, terminated, truncated, info

    def close(self) -> None:
        """Write the episode that is cut short here, if it is long enough, and close."""
        try:
            self._finish()
        finally:
            super().close()

    def _finish(self, *, over: bool = False, terminated: bool = False) -> None:
        # Cleared first: what cannot be written now is not tried again, as something else, at close.
        first, steps = self._first, self._steps
        self._first, self._steps = None, []
        if first is None or not (over or len(steps) >= LEAST_STEPS):
            return
        images, actions, rewards = zip(*steps, strict=True)
        episode = Episode.driven(
            images=np.stack([first, *images]),
            actions=np.stack(actions),
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
            track_tiles=len(self.unwrapped.track),  # pyright: ignore[reportAttributeAccessIssue]
            driver=self._driver,
            seed=self._seed,
        )
        name = f"shard-{self._driver}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}.zip"
        shard = write_shard(self._store / name, [episode], provenance("gymnasium"))
        if self._on_shard:
            self._on_shard(shard)
