"""What is particular to one environment of Gymnasium, so that all the rest need not know of it.

A world dreams one task, and its file names it; so do stores, latents and controllers. Files that
name none are CarRacing's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import registrations
from wm_env.preprocess import Preprocess, preprocess


@dataclass(frozen=True)
class Control:
    """One number of an action, in its range.

    `mirrored` is its sign in the mirror image, of a task that is symmetric. `rests` says that a
    controller whose output is below the middle leaves it at `low`, as people do a brake. `noise` is
    the standard deviation that a driver's noise of 1 has in it.
    """

    name: str
    low: float
    high: float
    mirrored: float = 1.0
    rests: bool = False
    noise: float = 1.0


@dataclass(frozen=True)
class Task:
    """An environment of Gymnasium, and what turns its frames, actions and rewards into V's and M's.

    Args:
        id: Gymnasium's.
        dream_id: of the environment that dreams it.
        controls: what an action is made of.
        discrete: actions [n, a] that the discrete ones 0, 1, … stand for; none without such.
        preprocess: frame -> image of V.
        options: of `gymnasium.make`.
        rendered: whether a frame is what `render` gives, rather than the observation.
        symmetric: whether the mirror image of an episode is another one (see `Control.mirrored`).
        ground: the colour (0, 1, 2 of RGB) that stands out where an image shows mere ground, as
            the green of CarRacing's grass; None without such.
        reward_unit: M's head of kind "signed" foretells the reward in this unit, about the standard
            deviation of a random driver's, so that squared errors are of order 1. Of None the
            reward is CarRacing's: M foretells tiles hit.
        backends: the simulators that there are of it.
        world, controller: names of shipped weights; None without such.

    The other head of M foretells the fall off the field, and of a task without tiles whether the
    episode is terminated. A file names its task by the id alone, so a unit, once used, stays.
    """

    id: str
    dream_id: str
    controls: tuple[Control, ...]
    preprocess: Preprocess
    discrete: tuple[tuple[float, ...], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    rendered: bool = False
    symmetric: bool = False
    ground: int | None = None
    reward_unit: float | None = None
    backends: tuple[str, ...] = ("gymnasium",)
    world: str | None = None
    controller: str | None = None

    # Worlds hold it as a static field, which every dispatch of a compiled program looks up.
    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def pays_tiles(self) -> bool:
        """Whether the reward is CarRacing's, of tiles, frames and the fall off the field."""
        return self.reward_unit is None

    @property
    def action_size(self) -> int:
        """How many numbers an action has."""
        return len(self.controls)

    @property
    def meaning(self) -> str:
        """The names of an action's numbers, for people."""
        return ", ".join(control.name for control in self.controls)

    @property
    def low(self) -> np.ndarray:
        """The least of each number of an action, float32 [a]."""
        return np.array([control.low for control in self.controls], np.float32)

    @property
    def high(self) -> np.ndarray:
        """The greatest, float32 [a]."""
        return np.array([control.high for control in self.controls], np.float32)

    @property
    def discrete_actions(self) -> np.ndarray:
        """What the discrete actions stand for, float32 [n, a]."""
        return np.array(self.discrete, np.float32).reshape(-1, self.action_size)

    @property
    def mark(self) -> dict[str, str]:
        """What a file says of its task: nothing of CarRacing."""
        return {} if self == CAR_RACING else {"task": self.id}

    def mirror_action(self, actions: Any) -> Any:
        """Actions [..., a] of the mirror image, of the kind that is given."""
        signs = [control.mirrored for control in self.controls]
        return actions * np.asarray(signs, actions.dtype)


CAR_RACING = Task(
    id="CarRacing-v3",
    dream_id=registrations.DREAM_ID,
    controls=(
        Control("steer", -1.0, 1.0, mirrored=-1.0),
        Control("gas", 0.0, 1.0, noise=0.6),
        Control("brake", 0.0, 1.0, rests=True, noise=0.5),
    ),
    preprocess=preprocess,
    # What CarRacing-v3 (Gymnasium 1.3) does for its discrete actions, as continuous ones.
    discrete=(
        (0.0, 0.0, 0.0),  # nothing
        (0.6, 0.0, 0.0),  # right
        (-0.6, 0.0, 0.0),  # left
        (0.0, 0.2, 0.0),  # gas
        (0.0, 0.0, 0.8),  # brake
    ),
    symmetric=True,
    ground=1,
    backends=("gymnasium", "envpool"),
    world="carracing",
    controller="carracing_controller",
)

# Not symmetric to the eye: the flags at the pad blow to the right.
LUNAR_LANDER = Task(
    id="LunarLander-v3",
    dream_id="DreamLunarLander-v0",
    controls=(Control("main", -1.0, 1.0), Control("lateral", -1.0, 1.0)),
    preprocess=Preprocess("LunarLander-v3's rgb_array", (400, 600, 3)),
    # Gymnasium's discrete engines, in full or not at all, as continuous ones.
    discrete=(
        (0.0, 0.0),  # nothing
        (0.0, -1.0),  # left engine
        (1.0, 0.0),  # main engine
        (0.0, 1.0),  # right engine
    ),
    options=(("continuous", True),),
    rendered=True,
    reward_unit=10.0,  # uniform random actions: standard deviation 8.5, and -100 or 100 at the end
)

TASKS = {task.id: task for task in (CAR_RACING, LUNAR_LANDER)}


def task_named(task: Task | str) -> Task:
    """The task of that id of Gymnasium; a task itself stays as it is.

    Raises:
        ValueError: there is none.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(
            f"env is {task!r}; expected one of {', '.join(TASKS)}. Another environment needs a "
            "Task in wm_env/task.py, which tells of its frames, actions and rewards."
        )
    return TASKS[task]


def marked(facts: Mapping[str, Any]) -> Task:
    """The task that a file's facts name by `Task.mark`.

    Raises:
        ValueError: it is unknown.
    """
    return task_named(facts.get("task", CAR_RACING.id))
