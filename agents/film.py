"""Films of a recording as MP4 and GIF, and a filmstrip as PNG.

They show `real | reconstruction | what the dream expected`.
"""

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import imageio_ffmpeg
import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from agents.recording import FPS, Recording, Syncing, decode, dream_along
from agents.sheet import write_figure
from agents.telemetry import expected_rewards
from wm_env.foresight import Foresight, foresee
from wm_env.progress import progress_bar
from wm_env.rendering import text_image, upscale
from wm_env.storage import appearing_whole, write_atomically
from wm_env.world_model import WorldModel

Expect = Literal["dream", "next"]

_NOTICE = int(0.6 * FPS)  # frames for which a re-synced dream says so
_AMBER = np.array([255, 190, 60], np.uint8)

_GIF_EVERY = 4  # frames; 12.5 a second
_GIF_COLOURS = 64


@dataclass(frozen=True)
class Film:
    """Three views of one episode, uint8 [T + 1, 64, 64, 3] each, and what M expected of its steps.

    `alone` [T + 1] counts the steps since M last saw a real frame. Without `syncing` the third view
    is M's mean expectation one step ahead, else a dream.
    """

    recording: Recording
    reconstruction: np.ndarray
    expected: np.ndarray
    alone: np.ndarray
    syncing: Syncing | None
    foresight: Foresight
    expected_rewards: np.ndarray


def make_film(
    world: WorldModel,
    recording: Recording,
    *,
    expect: Expect = "dream",
    syncing: Syncing | None = None,
    seed: int = 0,
) -> Film:
    """Decode what V keeps of each frame, and what the dream expected, being given the real actions.

    "dream" watches the first second, then sees no frame; it looks at the road again every five
    seconds (`syncing`), because no open-loop dream stays beside the same car for ever. It is what
    an agent that trains in the dream is shown, so that it tells where the dream leaves the road.
    "next" is M's mean expectation of each frame from all before: one step ahead hardly anything
    goes wrong, and the view looks like the reconstruction but for the moments that surprise M.
    """
    foresight = foresee(world, recording.z, recording.actions)
    if expect == "dream":
        syncing = syncing or Syncing()
        looks = syncing.looks(len(recording.z))
        key = jax.random.key(seed)
        dreamt = dream_along(world, recording.z, recording.actions, looks, key)
        z, alone = dreamt.z, np.asarray(dreamt.alone)
    else:
        syncing = None
        z = np.concatenate([recording.z[:1], foresight.z])
        alone = np.minimum(np.arange(len(z)), 1)
    return Film(
        recording=recording,
        reconstruction=decode(world, recording.z),
        expected=decode(world, z),
        alone=alone,
        syncing=syncing,
        foresight=foresight,
        expected_rewards=expected_rewards(recording, foresight),
    )


def write_mp4(film: Film, path: Path, *, scale: int = 6, progress: bool = True) -> None:
    """The whole episode in real time, H.264, the panels enlarged smoothly by an even `scale`."""
    total = len(film.expected)
    height, width = compose(film, 0, scale=scale, smooth=True).shape[:2]
    with (
        appearing_whole(path) as temporary,
        progress_bar(f"writing {path.name}", total=total, unit="frames", show=progress) as bar,
        _encoder(temporary, width, height) as pipe,
    ):
        for time in range(total):
            pipe.write(compose(film, time, scale=scale, smooth=True).tobytes())
            bar.advance(1)


@contextmanager
def _encoder(path: Path, width: int, height: int) -> Iterator[IO[bytes]]:
    """A pipe for RGB frames into an MP4; the encoder is stopped when what fills it fails.

    imageio's own writer forks before it starts ffmpeg, and JAX's threads do not survive a fork.
    """
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS)]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-preset", "veryfast"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, "-i", "-"]
    command += [*target, "-movflags", "+faststart", "-f", "mp4", str(path)]
    # A session of its own: Ctrl-C is for us, and we stop it.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    pipe = cast(IO[bytes], process.stdin)
    assert process.stdin is not None
    try:
        yield pipe
        pipe.close()
        if process.wait() != 0:
            raise OSError(f"ffmpeg could not write {path} (status {process.returncode})")
    finally:
        process.kill()
        process.wait()


def write_gif(film: Film, path: Path, *, frames: int = 400, scale: int = 3) -> None:
    """The first `frames` frames, every fourth, as a small GIF with one palette."""
    times = range(0, min(frames, len(film.expected)), _GIF_EVERY)
    pictures = [Image.fromarray(compose(film, time, scale=scale, smooth=False)) for time in times]
    # One palette for all, without dithering: grain that flickers would double the file.
    sample = np.concatenate(
        [np.asarray(picture) for picture in pictures[:: len(pictures) // 8 + 1]]
    )
    palette = Image.fromarray(sample).quantize(_GIF_COLOURS, method=Image.Quantize.MEDIANCUT)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=1000 * _GIF_EVERY // FPS,
        loop=0,
    )
    write_atomically(path, buffer.getvalue())


def write_filmstrip(film: Film, path: Path, *, columns: int = 11) -> None:
    """What was expected beside what really happened, as a PNG: a row a view, a column a moment.

    Of a dream its first stretch alone, else the whole episode.
    """
    begin, end, told = 0, len(film.expected) - 1, "M expects each frame from those before it"
    if film.syncing is not None:
        begin, end = film.syncing.first_dream(len(film.expected))
        told = f"M watches the first {begin / FPS:.1f} s, then dreams on with the same actions"
    times = np.unique(np.linspace(begin, end, columns).round().astype(int))
    rows = {
        "real": film.recording.images,
        "reconstruction\nV sees each frame": film.reconstruction,
        "dream\nM sees no frame" if film.syncing else "expected\na step before": film.expected,
    }
    figure = Figure((1.8 + 1.25 * len(times), 5.0), layout="constrained")
    axes = figure.subplots(len(rows), len(times), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, time in zip(line, times, strict=True):
            axis.imshow(images[time], interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=11)
    for axis, time in zip(axes[0], times, strict=True):
        axis.set_title(f"+{(time - begin) / FPS:.1f} s", fontsize=11)
    figure.suptitle(f"CarRacing-v3, track {film.recording.seed}: {told}", fontsize=13)
    write_figure(figure, path)


def compose(film: Film, time: int, *, scale: int, smooth: bool) -> np.ndarray:
    """One frame of the film: three labelled panels above a line of figures."""
    recording = film.recording
    views = [recording.images[time], film.reconstruction[time], film.expected[time]]
    panels = [_enlarge(view, scale, smooth) for view in views]
    if _just_synced(film, time):
        edge = max(2, scale)
        for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            panels[2][side] = _AMBER
    side, gap, bar = panels[0].shape[0], 2 * (scale // 2 + 1), 2 * (4 * scale // 2 + 4)
    frame = np.zeros((side + 2 * bar, 3 * side + 2 * gap, 3), np.uint8)
    size = 5 * scale // 2 + 12
    labels = ["real", "reconstruction", _expected_label(film, time)]
    for index, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        left = index * (side + gap)
        frame[bar : bar + side, left : left + side] = panel
        _write(frame[:bar, left : left + side], label, size)
    _write(frame[bar + side :], _figures(film, time), size)
    return frame


def _enlarge(image: np.ndarray, scale: int, smooth: bool) -> np.ndarray:
    if smooth:
        return upscale(image, scale * image.shape[0], scale * image.shape[1])
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _just_synced(film: Film, time: int) -> bool:
    syncing = film.syncing
    if syncing is None or time < syncing.watch + syncing.every:
        return False
    return bool(film.alone[time] < _NOTICE)


def _expected_label(film: Film, time: int) -> str:
    if film.syncing is None:
        return "expected one step before"
    if time < film.syncing.watch:
        return "dream: watching"
    alone = f"dream: alone for {film.alone[time] / FPS:.1f} s"
    return "dream: re-synced" if _just_synced(film, time) else alone


def _figures(film: Film, time: int) -> str:
    recording = film.recording
    real, expected = recording.rewards[:time].sum(), film.expected_rewards[:time].sum()
    text = f"{time / FPS:.1f} s   return {real:.0f} (M expected {expected:.0f})"
    if time == recording.length:
        return text
    steer, gas, brake = recording.actions[time]
    return f"{text}   steer {steer:+.2f}   gas {gas:.2f}   brake {brake:.2f}"


def _write(area: np.ndarray, text: str, size: int) -> None:
    """White text, left and centred in height, cut where the area ends."""
    drawn = text_image(text, size)[: area.shape[0], : area.shape[1] - 6]
    top = (area.shape[0] - drawn.shape[0]) // 2
    area[top : top + drawn.shape[0], 6 : 6 + drawn.shape[1]] = drawn
