#!/usr/bin/env python
"""Show the detections of a spiking network after every time step, from a camera or a video.

    demo/webcam.py --source 0 --T 20

Keys: + and - change T, space pauses, q or Esc ends. Where no window can be opened, a video is
written instead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# several lines of OpenCV's about what it cannot open; ours are one sentence
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from spikedet.commands import parse, shared  # noqa: E402
from spikedet.commands.checks import expect_new  # noqa: E402
from spikedet.commands.main import run as run_command  # noqa: E402
from spikedet.errors import PictureError, UsageError  # noqa: E402
from spikedet.settings import option  # noqa: E402

TITLE = "spikedet"
CHUNK = 5  # steps computed at once: the first are seen early, all take up to a tenth longer
FALLBACK = Path("detections/webcam.mp4")


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the demo."""

    source: str = option("0", "number of a camera, a video file or a picture")
    T: int | None = shared.steps("time steps to begin with; those of the weights if absent")
    weights: Path | None = option(None, "spiking weights; the released ones if left out")
    conf: float = option(0.25, "confidence threshold", least=0, most=1)
    iou: float = option(0.6, "IoU threshold of non-maximum suppression", least=0, most=1)
    device: str = shared.device()
    half: bool | None = shared.half(None)
    each_step: bool = option(True, "show every time step, or only the last")
    frames: int | None = option(None, "end after so many frames of the source", least=1)
    out: Path | None = option(None, f"video to write; {FALLBACK} without a display if left out")


def has_display() -> bool:
    """Whether OpenCV can open a window here.

    Where it cannot it aborts its process, also for a DISPLAY that does not answer: another process
    tries.
    """
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not any(map(os.environ.get, displays)):
        return False
    code = "import cv2; cv2.namedWindow('spikedet'); cv2.destroyAllWindows()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@dataclass
class Controls:
    """What the keys change.

    Attributes:
        T: Time steps, from the next frame on.
        paused: Whether nothing moves until space is pressed again.
        ended: Whether to stop.
    """

    T: int
    paused: bool = False
    ended: bool = False

    def press(self, key: int) -> None:
        """Take a key code of `cv2.waitKey`, -1 for none."""
        pressed = chr(key & 0xFF) if key >= 0 else ""
        if pressed in ("+", "="):
            self.T += 1
        elif pressed in ("-", "_"):
            self.T = max(1, self.T - 1)
        elif pressed == " ":
            self.paused = not self.paused
        elif pressed in ("q", "Q", "\x1b"):
            self.ended = True


class FrameRate:
    """Frames per second over the last ten frames."""

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=11)

    def tick(self, now: float) -> float:
        """A frame begins at `now`, in seconds; 0 for the first."""
        self.times.append(now)
        frames = len(self.times) - 1
        return frames / max(1e-9, now - self.times[0])


def annotate(found, T: int, frame_rate: float) -> np.ndarray:
    """The picture to show for one time step: boxes, and a line of numbers below.

    Args:
        found: `Detections` after found.T of T steps, with picture and spike rate.
        T: Time steps of this frame.
        frame_rate: Frames of the source per second.

    Returns:
        [H, W, 3] uint8 BGR.
    """
    from spikedet.detection.draw import status

    numbers = f"step {found.T}/{T}   spike rate {found.spike_rate:.3f}"
    return status(found.plot(), f"{frame_rate:.1f} frames/s   {numbers}")


def play(
    detector,
    frames: Iterable[np.ndarray],
    controls: Controls,
    each_step: bool,
    show: Callable[[np.ndarray], None],
    **options,
) -> int:
    """Detect in every frame and show each time step, or only the last; returns frames begun.

    Args:
        detector: A `Predictor` of spiking weights.
        frames: Pictures [H, W, 3] uint8 BGR.
        controls: Asked before each frame, and after each step whether to stop.
        each_step: Show every step.
        show: Takes the annotated pictures.
        options: Of `Predictor.steps`.
    """
    rate, begun = FrameRate(), 0
    for frame in frames:
        begun += 1
        T, frame_rate = controls.T, rate.tick(time.perf_counter())
        for found in detector.steps(frame, T, **options):
            if each_step or found.T == T:
                show(annotate(found, T, frame_rate))
            if controls.ended:
                return begun
    return begun


def show_in_window(picture: np.ndarray, controls: Controls) -> None:
    """Show a picture and take the keys; stay while paused."""
    cv2.imshow(TITLE, picture)
    controls.press(cv2.waitKey(1))
    while controls.paused and not controls.ended:
        controls.press(cv2.waitKey(50))
        controls.ended |= _closed()
    controls.ended |= _closed()


def _closed() -> bool:
    """Whether the window was closed with the mouse."""
    return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1


def free_name(path: Path) -> Path:
    """`path`, or with a number the first name beside it that no file has."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def run(options: Options) -> None:
    from spikedet.detection.predict import Predictor
    from spikedet.detection.video import VideoFile, open_source
    from spikedet.released import default_weights

    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    if options.out:
        expect_new(options.out)
    path = options.weights or default_weights(options.T)
    detector = Predictor(path, options.T, options.device, options.half)
    if detector.T is None:
        raise UsageError(
            f"{detector.weights.name}: no time steps to show; expected spiking weights"
        )
    window = has_display()
    out = options.out or (None if window else free_name(FALLBACK))
    frames, frame_rate = open_source(options.source, repeat=window)
    controls = Controls(detector.T)
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(VideoFile(out, frame_rate)) if out else None
        if not window:
            print(f"no display: writing {out}; Ctrl-C ends it", flush=True)

        def show(picture: np.ndarray) -> None:
            if video:
                video.write(picture)
            if window:
                show_in_window(picture, controls)

        frames = itertools.islice(frames, options.frames)
        chunk = CHUNK if options.each_step else None
        how = {"conf": options.conf, "iou": options.iou, "chunk": chunk}
        begun = play(detector, frames, controls, options.each_step, show, **how)
    if begun == 0:
        raise PictureError(f"{options.source}: holds no frame that can be read")
    print(f"{begun} frames, T={controls.T}" + (f"; video in {out}" if out else ""))


if __name__ == "__main__":
    run_command(lambda: sys.modules[__name__], sys.argv[1:], "demo/webcam.py")
