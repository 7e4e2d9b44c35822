"""What a dreamt drive would have been worth on a real track, whose missed tiles never return."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wm_env.motion import FRAMES_PER_SECOND, MOTION_UNITS, TILE_LENGTH
from wm_env.reward import FRAME_REWARD, OFF_FIELD_REWARD, TRACK_REWARD
from wm_env.rollouts import Trajectory

LOST_FRAMES, _LOST_TILES = 25, 0.5
_MISSED = 0.5  # tiles a frame: more than a car passes, as a dream forgives too much

# Of `missing`: frames of a window, the first frame that counts, speed below which none is told,
# the share of tiles at which it is even, and how fast it becomes sure.
_WINDOW, _GATHERED, _CRAWLING, _EVEN, _DOUBT = 5, 60, 5.0, 0.43, 0.04


def lap_return(trajectory: Trajectory, track_tiles: float | Array) -> Float[Array, ""]:
    """What an episode of the dream would have paid on a real track of N tiles.

    A dreamt road has no end, so a driver who leaves it is paid for the tiles after those he missed.
    On a track these were some of the N: they never pay, and without them no lap is finished before
    the time is up. A driver counts as lost after half a second with less than half a tile, and then
    passes half a tile a frame.
    """
    fell, tiles, lost = progress(trajectory, track_tiles)
    missed = _MISSED * lost
    passed = jnp.cumsum(tiles + missed)
    driving = trajectory.alive & (passed - tiles - missed < track_tiles)
    frames = jnp.sum(driving)
    incomplete = jnp.minimum(jnp.sum(jnp.where(driving, missed, 0.0)), 1.0)
    frames = frames + incomplete * (len(tiles) - frames)
    score = TRACK_REWARD / track_tiles * jnp.sum(jnp.where(driving, tiles, 0.0))
    return score + FRAME_REWARD * frames + OFF_FIELD_REWARD * jnp.any(driving & fell)


def straying(trajectory: Trajectory, track_tiles: float | Array) -> Float[Array, ""]:
    """In how many thousands of frames the driver is lost, as `lap_return` counts that.

    After a fall he is lost to the horizon, after a finished lap he is not.
    """
    fell, _, lost = progress(trajectory, track_tiles)
    gone = jnp.any(fell) & ~trajectory.alive
    return jnp.sum(lost | gone) / 1000.0


def missing(trajectory: Trajectory, track_tiles: float | Array) -> Float[Array, ""]:
    """How likely a tile was missed, in 0 to 1: half where M expected 43 % of those driven past.

    By the worst tenth of a second from frame 60 up to the end. A car that cuts a corner
    is not lost, but without that tile no lap is finished. Of 206 real drives the worst moment, as M
    saw it, tells those that finished their lap from others with an area under the ROC curve of
    0.93. Only an M that keeps track of the car's speed can tell.
    """
    if trajectory.motion is None:
        return jnp.float32(0.0)
    _, tiles, _ = progress(trajectory, track_tiles)
    speed = jnp.maximum(trajectory.motion[:, 0] * MOTION_UNITS["forward"], _CRAWLING)
    passed = speed / (FRAMES_PER_SECOND * TILE_LENGTH)
    share = _lately(tiles, _WINDOW) / _lately(passed, _WINDOW)
    counts = trajectory.alive & (jnp.arange(len(tiles)) >= _GATHERED)
    worst = jnp.min(jnp.where(counts, share, 1.0))
    return jax.nn.sigmoid((_EVEN - worst) / _DOUBT)


def progress(
    trajectory: Trajectory, track_tiles: float | Array
) -> tuple[Bool[Array, "t"], Float[Array, "t"], Bool[Array, "t"]]:
    """At each frame, whether the car falls, how many tiles it hits, and whether it is lost."""
    fell = trajectory.reward < OFF_FIELD_REWARD / 2
    paid = jnp.where(trajectory.alive & ~fell, trajectory.reward - FRAME_REWARD, 0.0)
    tiles = paid * track_tiles / TRACK_REWARD
    begun = jnp.arange(len(tiles)) >= LOST_FRAMES  # before, the car gathers way
    return fell, tiles, trajectory.alive & begun & (_lately(tiles, LOST_FRAMES) < _LOST_TILES)


def _lately(values: Float[Array, "t"], frames: int) -> Float[Array, "t"]:
    """The sum of the last so many, at each frame."""
    so_far = jnp.cumsum(values)
    return so_far - jnp.pad(so_far, (frames, 0))[: len(values)]
