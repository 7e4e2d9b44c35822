"""Films of a recording: `real | reconstruction | dream` as MP4 and GIF, and a filmstrip as PNG."""

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import imageio_ffmpeg
import jax
import matplotlib
import numpy as np
from PIL import Image

from agents.recording import FPS, Dreamt, Recording, Syncing, decode, dream_along
from wm_env.progress import progress_bar
from wm_env.rendering import text_image, upscale
from wm_env.weights import write_atomically
from wm_env.world_model import WorldModel

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_NOTICE = int(0.6 * FPS)  # frames for which a re-synced dream says so
_AMBER = np.array([255, 190, 60], np.uint8)

_GIF_EVERY = 4  # frames; 12.5 a second
_GIF_COLOURS = 64


@dataclass(frozen=True)
class Film:
    """Three views of one episode, uint8 [T + 1, 64, 64, 3] each, and when the dream was alone."""

    recording: Recording
    reconstruction: np.ndarray
    dream: np.ndarray
    alone: np.ndarray
    syncing: Syncing


def make_film(
    world: WorldModel, recording: Recording, *, syncing: Syncing | None = None, seed: int = 0
) -> Film:
    """Decode what V keeps of each frame, and an open-loop dream that is given the real actions.

    The dream watches the first second, then sees no frame; it looks at the road again every five
    seconds (`syncing`), because no open-loop dream stays beside the same car for ever.
    """
    syncing = syncing or Syncing()
    looks = syncing.looks(len(recording.z))
    dreamt: Dreamt = dream_along(world, recording.z, recording.actions, looks, jax.random.key(seed))
    return Film(
        recording=recording,
        reconstruction=decode(world, recording.z),
        dream=decode(world, dreamt.z),
        alone=np.asarray(dreamt.alone),
        syncing=syncing,
    )


def write_mp4(film: Film, path: Path, *, scale: int = 6, progress: bool = True) -> None:
    """The whole episode in real time, H.264, the panels enlarged smoothly by an even `scale`."""
    total = len(film.dream)
    height, width = compose(film, 0, scale=scale, smooth=True).shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        with progress_bar(f"writing {path.name}", total=total, unit="frames", show=progress) as bar:
            with _encoder(temporary, width, height) as pipe:
                for time in range(total):
                    pipe.write(compose(film, time, scale=scale, smooth=True).tobytes())
                    bar.advance(1)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _encoder(path: Path, width: int, height: int) -> Iterator[IO[bytes]]:
    """A pipe for RGB frames into an MP4; the encoder is stopped when what fills it fails.

    imageio's own writer forks before it starts ffmpeg, and JAX's threads do not survive a fork.
    """
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS)]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-preset", "veryfast"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, "-i", "-"]
    command += [*target, "-movflags", "+faststart", str(path)]
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
    times = range(0, min(frames, len(film.dream)), _GIF_EVERY)
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
    """The first dream beside what really happened, as a PNG: a row a view, a column a moment."""
    begin, end = film.syncing.first_dream(len(film.dream))
    times = np.unique(np.linspace(begin, end, columns).round().astype(int))
    rows = {
        "real": film.recording.images,
        "reconstruction\nV sees each frame": film.reconstruction,
        "dream\nM sees no frame": film.dream,
    }
    figure, axes = plt.subplots(
        len(rows),
        len(times),
        figsize=(1.8 + 1.25 * len(times), 5.0),
        squeeze=False,
        layout="constrained",
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, time in zip(line, times, strict=True):
            axis.imshow(images[time], interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=11)
    for axis, time in zip(axes[0], times, strict=True):
        axis.set_title(f"+{(time - begin) / FPS:.1f} s", fontsize=11)
    figure.suptitle(
        f"CarRacing-v3, track {film.recording.seed}: M watches the first {begin / FPS:.1f} s, "
        "then dreams on with the same actions",
        fontsize=13,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())


def compose(film: Film, time: int, *, scale: int, smooth: bool) -> np.ndarray:
    """One frame of the film: three labelled panels above a line of figures."""
    recording = film.recording
    views = [recording.images[time], film.reconstruction[time], film.dream[time]]
    panels = [_enlarge(view, scale, smooth) for view in views]
    if _just_synced(film, time):
        edge = max(2, scale)
        for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            panels[2][side] = _AMBER
    side, gap, bar = panels[0].shape[0], 2 * (scale // 2 + 1), 2 * (4 * scale // 2 + 4)
    frame = np.zeros((side + 2 * bar, 3 * side + 2 * gap, 3), np.uint8)
    size = 5 * scale // 2 + 12
    labels = ["real", "reconstruction", _dream_label(film, time)]
    for index, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        left = index * (side + gap)
        frame[bar : bar + side, left : left + side] = panel
        _write(frame[:bar, left : left + side], label, size)
    _write(frame[bar + side :], _figures(recording, time), size)
    return frame


def _enlarge(image: np.ndarray, scale: int, smooth: bool) -> np.ndarray:
    if smooth:
        return upscale(image, scale * image.shape[0], scale * image.shape[1])
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _just_synced(film: Film, time: int) -> bool:
    return time >= film.syncing.watch + film.syncing.every and film.alone[time] < _NOTICE


def _dream_label(film: Film, time: int) -> str:
    if time < film.syncing.watch:
        return "dream: watching"
    alone = f"dream: alone for {film.alone[time] / FPS:.1f} s"
    return "dream: re-synced" if _just_synced(film, time) else alone


def _figures(recording: Recording, time: int) -> str:
    text = f"{time / FPS:.1f} s   return {recording.rewards[:time].sum():.0f}"
    if time == recording.length:
        return text
    steer, gas, brake = recording.actions[time]
    return f"{text}   steer {steer:+.2f}   gas {gas:.2f}   brake {brake:.2f}"


def _write(area: np.ndarray, text: str, size: int) -> None:
    """White text, left and centred in height, cut where the area ends."""
    drawn = text_image(text, size)[: area.shape[0], : area.shape[1] - 6]
    top = (area.shape[0] - drawn.shape[0]) // 2
    area[top : top + drawn.shape[0], 6 : 6 + drawn.shape[1]] = drawn
