"""Telemetry: the series of a recorded episode, what was real beside what M expected, in one npz."""

import io
from pathlib import Path

import numpy as np

from agents.moments import Moments
from agents.recording import Recording
from wm_env.foresight import Foresight
from wm_env.reward import FRAME_REWARD, OFF_FIELD_REWARD, TRACK_REWARD
from wm_env.storage import write_atomically


def expected_rewards(recording: Recording, foresight: Foresight) -> np.ndarray:
    """What the dream would pay for each step [T] on average, on a track of this one's tiles.

    The dream draws whether the car leaves the field; M's probability weighs both outcomes here.
    """
    tiles, off_field = np.asarray(foresight.tiles), np.asarray(foresight.off_field)
    on_field = TRACK_REWARD / recording.track_tiles * tiles + FRAME_REWARD
    return (1.0 - off_field) * on_field + off_field * OFF_FIELD_REWARD


def write_telemetry(
    recording: Recording, foresight: Foresight, moments: Moments, path: Path
) -> None:
    """Everything but the images as a compressed npz, whole or not at all.

    z [T + 1, z], h [T + 1, h]; action [T, 3]; reward, predicted_reward, real_tiles,
    predicted_tiles, predicted_off_field and surprise (nats) [T]; the steps that were `surprising`
    and `deluded`, the worst first; seed and track_tiles (N).
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        seed=recording.seed,
        track_tiles=recording.track_tiles,
        z=recording.z,
        h=recording.h,
        action=recording.actions,
        reward=recording.rewards,
        predicted_reward=expected_rewards(recording, foresight),
        real_tiles=recording.tiles,
        predicted_tiles=np.asarray(foresight.tiles),
        predicted_off_field=np.asarray(foresight.off_field),
        surprise=moments.nats,
        surprising=np.array(moments.surprising, np.int32),
        deluded=np.array(moments.deluded, np.int32),
    )
    write_atomically(path, buffer.getvalue())
