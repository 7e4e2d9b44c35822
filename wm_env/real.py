"""The real CarRacing-v3 as a driver from the dream knows it: the same observations and actions.

The wrappers keep V's latent and M's carry beside the real frames, so a policy moves across
unchanged. At time t the agent sees (z_t, h_t); its a_t goes to the car and, with z_t, into the
carry; then V sees the next frame. The environments of other tasks are wrapped alike.
"""

import os
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from wm_env.perception import Perception
from wm_env.reward import TileCounter, is_off_field
from wm_env.seeds import lane_seeds
from wm_env.simulator import make_simulator, make_simulator_vector
from wm_env.task import Task, task_named
from wm_env.weights import task_told
from wm_env.world_model import WorldModel


def make_real(
    world_model: WorldModel | str | os.PathLike | None = None,
    *,
    observation: str = "features",
    continuous: bool = True,
    task: Task | str | None = None,
    **kwargs: Any,
) -> gymnasium.Env:
    """CarRacing-v3 with the dream's spaces, or the environment that the world is of.

    Args:
        world_model: a WorldModel, the path of one, or the name of a shipped one; None is the
            shipped one. Pixels need none.
        observation: "features" ([z, h] float32), "latent" (z) or "pixels" (uint8 [64, 64, 3]).
        continuous: CarRacing's Box of steer, gas and brake, or its Discrete(5).
        task: the environment, or its id; None is the one that the world is of.
        kwargs: of `gymnasium.make("CarRacing-v3")`, as render_mode or max_episode_steps.

    Raises:
        ValueError: an unknown observation kind or task.
        WeightsError: the world cannot be loaded, or is of another task.
    """
    task = task_told(task, world_model)
    env = make_simulator(task, continuous=continuous, **kwargs)
    return WorldModelObservation(env, world_model, observation=observation, task=task)


def make_real_vector(
    num_envs: int,
    world_model: WorldModel | str | os.PathLike | None = None,
    *,
    observation: str = "features",
    continuous: bool = True,
    backend: str = "gymnasium",
    seeds: Sequence[int] | None = None,
    task: Task | str | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Many of `make_real`'s with the dream's spaces; a lane that ends begins anew at the next step.

    Args:
        num_envs: number of cars.
        world_model, observation, continuous, task: as for `make_real`.
        backend: "gymnasium" or "envpool".
        seeds: of each lane's first episode; later ones follow from them.
        kwargs: of `wm_env.simulator.make_simulator_vector`.

    Raises:
        ValueError: an unknown observation kind, task or backend, EnvPool not installed, wrong
            seeds.
        WeightsError: the world cannot be loaded, or is of another task.
    """
    task = task_told(task, world_model)
    env = make_simulator_vector(task, num_envs, backend=backend, **kwargs)
    return WorldModelVectorObservation(
        env, world_model, observation=observation, continuous=continuous, seeds=seeds, task=task
    )


class WorldModelObservation(gymnasium.Wrapper, RecordConstructorArgs):
    """One CarRacing-v3 with the dream's spaces.

    Every info holds `image` (the frame as V sees it, uint8 [64, 64, 3]) and, as in the dream,
    `tiles` (so far), `lap_finished` and `off_field`.

    Args:
        env: CarRacing-v3, continuous or discrete, giving its raw frames; or of another task, as
            `wm_env.simulator` makes it.
        world_model, observation, task: as for `make_real`.

    Raises:
        ValueError: the frames are not the task's, or an unknown observation kind or task.
        WeightsError: the world cannot be loaded.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        world_model: WorldModel | str | os.PathLike | None = None,
        *,
        observation: str = "features",
        task: Task | str | None = None,
    ):
        told = {} if task is None else {"task": task_named(task).id}
        RecordConstructorArgs.__init__(
            self, world_model=world_model, observation=observation, **told, _disable_deepcopy=True
        )
        gymnasium.Wrapper.__init__(self, env)
        task = task_told(task, world_model)
        _check_frames(env.observation_space, task)
        continuous = isinstance(env.action_space, gymnasium.spaces.Box)
        self._perception = Perception(task, world_model, observation, continuous)
        self.observation_space, self.action_space = self._perception.spaces()
        self._tiles = TileCounter(1)

    @property
    def world_model(self) -> WorldModel | None:
        """The world whose V and M see for the agent; None for pixels."""
        return self._perception.world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, with h = 0 and z = V(first frame)."""
        frame, info = self.env.reset(seed=seed, options=options)
        image = self._perception.task.preprocess(frame)
        self._tiles = TileCounter(1)
        info |= {"image": image, "tiles": 0.0, "lap_finished": False, "off_field": False}
        return self._perception.begin(image), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Drive one frame; continuous actions are clipped to the action space, as in the dream.

        Raises:
            ResetNeeded: before the first reset.
            InvalidAction: wrong shape, not finite, or no such discrete action.
        """
        action, controls = self._perception.understood(action)
        taken = controls if self._perception.continuous else int(action)
        frame, reward, terminated, truncated, info = self.env.step(taken)
        task, reward = self._perception.task, float(reward)
        image = task.preprocess(frame)
        off_field = bool(is_off_field(reward) if task.pays_tiles else terminated)
        tiles = self._tiles.count(np.array([reward])) if task.pays_tiles else np.zeros(1)
        info |= {
            "image": image,
            "tiles": float(tiles[0]),
            "lap_finished": bool(terminated) and not off_field,
            "off_field": off_field,
        }
        shown = self._perception.advance(controls, image)
        return shown, reward, bool(terminated), bool(truncated), info


class WorldModelVectorObservation(VectorWrapper):
    """Many CarRacing-v3 with the dream's spaces, over Gymnasium's vector environments or EnvPool.

    A lane that ends begins anew at the next step, whose action it ignores and which shows its first
    frame (Gymnasium's AutoresetMode.NEXT_STEP); only that lane's z, carry and tiles begin anew.
    Infos are those of `WorldModelObservation`, one row a lane.

    Args:
        env: lanes of CarRacing-v3 with its continuous actions, or all with its discrete ones; or
            of another task, as `wm_env.simulator` makes them.
        world_model, observation, task: as for `make_real`.
        continuous: whether the agent acts in the Box or in Discrete(5); lanes with continuous
            actions take both.
        seeds: of each lane's first episode.

    Raises:
        ValueError: the frames are not CarRacing's, an unknown observation kind, wrong seeds, or
            another mode of autoreset.
        WeightsError: the world cannot be loaded.
    """

    def __init__(
        self,
        env: VectorEnv,
        world_model: WorldModel | str | os.PathLike | None = None,
        *,
        observation: str = "features",
        continuous: bool = True,
        seeds: Sequence[int] | None = None,
        task: Task | str | None = None,
    ):
        super().__init__(env)
        task = task_told(task, world_model)
        _check_frames(env.single_observation_space, task)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"the lanes' autoreset_mode is {mode}; expected {AutoresetMode.NEXT_STEP}, the "
                "default of Gymnasium's vector environments."
            )
        self._perception = Perception(task, world_model, observation, continuous, (env.num_envs,))
        self.single_observation_space, self.single_action_space = self._perception.spaces()
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._first_seeds = None if seeds is None else lane_seeds(seeds, env.num_envs)
        self._tiles = TileCounter(env.num_envs)
        self._over = np.zeros(env.num_envs, np.bool_)

    @property
    def world_model(self) -> WorldModel | None:
        """The world whose V and M see for the agents; None for pixels."""
        return self._perception.world

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every lane, with h = 0 and z = V(first frame).

        Raises:
            ValueError: not one seed a lane.
        """
        seed = self._first_seeds if seed is None else lane_seeds(seed, self.num_envs)
        self._first_seeds = None
        frames, infos = self.env.reset(seed=seed, options=options)  # pyright: ignore
        images = self._perception.task.preprocess(frames)
        self._tiles = TileCounter(self.num_envs)
        self._over = np.zeros(self.num_envs, np.bool_)
        nothing = np.zeros(self.num_envs, np.bool_)
        infos = self._with_ours(infos, images, np.zeros(self.num_envs), nothing, nothing)
        return self._perception.begin(images), infos

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Drive one frame in every lane; continuous actions are clipped to the action space.

        Raises:
            ResetNeeded: before the first reset.
            InvalidAction: wrong shape, not finite, or no such discrete action.
        """
        actions, controls = self._perception.understood(actions)
        discrete = isinstance(self.env.single_action_space, gymnasium.spaces.Discrete)
        frames, rewards, terminated, truncated, infos = self.env.step(
            actions if discrete else controls
        )
        task = self._perception.task
        images, begun = task.preprocess(frames), self._over
        self._over = terminated | truncated
        if task.pays_tiles:
            self._tiles.restart(begun)
            off_field = is_off_field(rewards)
            tiles = self._tiles.count(np.where(begun, 0.0, rewards))
        else:
            off_field, tiles = terminated.copy(), np.zeros(self.num_envs)
        infos = self._with_ours(infos, images, tiles, terminated & ~off_field, off_field)
        shown = self._perception.advance(controls, images, begun)
        return shown, rewards, terminated, truncated, infos

    def _with_ours(
        self,
        infos: dict[str, Any],
        images: np.ndarray,
        tiles: np.ndarray,
        lap_finished: np.ndarray,
        off_field: np.ndarray,
    ) -> dict[str, Any]:
        ours = {
            "image": images,
            "tiles": tiles,
            "lap_finished": lap_finished,
            "off_field": off_field,
        }
        masks = {f"_{name}": np.ones(self.num_envs, np.bool_) for name in ours}
        return {**infos, **ours, **masks}


def _check_frames(space: gymnasium.Space, task: Task) -> None:
    expected = task.preprocess.frame_shape
    if space.shape != expected or space.dtype != np.uint8:
        raise ValueError(
            f"the environment shows {space}; expected {task.id}'s uint8 frames {expected}. "
            "Wrap it before any other wrapper changes its frames, or call make_real."
        )
