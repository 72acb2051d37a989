#!/usr/bin/env python
"""Watch a spiking network see: the detections of every time step, firing rates, energy.

    demo/webcam.py --source 0 --T 8

Takes a camera by number, a video, a picture, an address, and whatever else `spikedet detect` takes.
Keys: + and - change T, ] and [ the confidence, f shows the float network beside it, space pauses,
q or Esc ends. Where no window can be opened, a video is written instead.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from spikedet.commands import kinds, parse, shared
from spikedet.commands.checks import expect_new
from spikedet.commands.main import run as run_command
from spikedet.errors import DataError, PictureError, UsageError
from spikedet.options import option
from spikedet.sources import Frame, open_sources
from spikedet.sources.live import without_passwords

if TYPE_CHECKING:
    from spikedet.detection.boxes import Detections

TITLE = "spikedet"
CHUNK = 4  # steps computed at once: the first are seen early, all take up to a tenth longer
FALLBACK = Path("detections/webcam.mp4")
STEP = 0.05  # of the confidence, a key


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the demo."""

    source: str = option("0", "number of a camera, a video, a picture, an address")
    T: int | None = shared.steps("time steps at the start (default: the T of the weights)")
    weights: Path | None = option(
        None, "spiking weights (default: the released ones)", kind=kinds.weights
    )
    float_weights: Path | None = option(
        None, "float weights for the other side (default: the released ones)", kind=kinds.weights
    )
    conf: float = option(0.25, "confidence threshold to begin with", least=0, most=1)
    iou: float = option(0.6, "IoU threshold of non-maximum suppression", least=0, most=1)
    device: str = shared.device()
    engine: str = shared.engine()
    half: bool | None = shared.half(None)
    side_by_side: bool = option(False, "begin with the float network beside the spiking one")
    each_step: bool = option(True, "show every time step, or only the last")
    frames: int | None = option(None, "end after so many frames of the source", least=1)
    out: Path | None = parse.written(
        None, f"video to write; {FALLBACK} without a display if left out"
    )


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
        conf: Confidence threshold, from the next frame on.
        beside: Whether the float network is shown.
        paused: Whether nothing moves until space is pressed again.
        ended: Whether to stop.
    """

    T: int
    conf: float = 0.25
    beside: bool = False
    paused: bool = False
    ended: bool = False

    def press(self, key: int) -> None:
        """Take a key code of `cv2.waitKey`, -1 for none."""
        pressed = chr(key & 0xFF) if key >= 0 else ""
        if pressed in ("+", "="):
            self.T += 1
        elif pressed in ("-", "_"):
            self.T = max(1, self.T - 1)
        elif pressed in ("]", "["):
            by = STEP if pressed == "]" else -STEP
            self.conf = min(0.95, max(STEP, round(self.conf + by, 2)))
        elif pressed in ("f", "F"):
            self.beside = not self.beside
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


@dataclass
class Shown:
    """One picture to show.

    Attributes:
        frame: Of the source.
        detections: After detections.T steps.
        beside: Those of the float network, or None.
        T: Steps of this frame.
        rates: Spikes per neuron and step of each layer so far.
        frame_rate: Frames a second.
        energy: Of the spiking network so far and of the float network, mJ; or None.
    """

    frame: Frame
    detections: Detections
    beside: Detections | None
    T: int
    rates: Mapping[str, float]
    frame_rate: float
    energy: tuple[float, float] | None


def annotate(shown: Shown, conf: float) -> np.ndarray:
    """The picture to show for one time step, [H, W, 3] uint8 BGR."""
    from spikedet.detection.draw import draw
    from spikedet.outputs.panel import panel

    pictures = {
        f"spiking, step {shown.detections.T} of {shown.T}": draw(shown.detections, enlarge=True)
    }
    if shown.beside is not None:
        pictures["float"] = draw(shown.beside, enlarge=True)
    mean = shown.detections.spike_rate
    lines = [
        f"{shown.frame_rate:.1f} frames/s   T {shown.T} (+ -)   confidence {conf:.2f} ([ ])   "
        f"{mean:.3f} spikes a neuron and step"
    ]
    if shown.energy is not None:
        spiking, analog = shown.energy
        lines.append(
            f"energy of a frame, estimated: {spiking:.2f} mJ; of the float network {analog:.2f} mJ"
        )
    return panel(pictures, shown.rates, lines)


class Eye:
    """A spiking detector that tells of its layers, and a float one where it is wanted.

    Args:
        detector: A `Predictor` of spiking weights.
        other: Gives a `Predictor` of float weights, or raises; called when it is wanted first.
    """

    def __init__(self, detector, other: Callable):
        self.detector, self._make = detector, other
        self._other, self._energy = None, None

    def look(self, frame: Frame, controls: Controls, iou: float, chunk: int | None,
             frame_rate: float) -> Iterator[Shown]:  # fmt: skip
        """What is to be shown of a frame after each time step."""
        T, conf, picture = controls.T, controls.conf, frame.picture
        network = self.detector.runner.network
        if self._energy is None:
            self._energy = self._count(picture, T)
        beside = None
        if controls.beside:
            self._other = self._other or self._make()
            beside = self._other(picture, conf=conf, iou=iou)
        with network.spike_rates() as rates:
            for detections in self.detector.steps(picture, T, conf=conf, iou=iou, chunk=chunk):
                layers = rates.by_layer(detections.T)
                spent = self._energy.picojoules(layers, detections.T) / 1e9
                energy = spent, self._energy.float_pj / 1e9
                yield Shown(frame, detections, beside, T, layers, frame_rate, energy)

    def _count(self, picture: np.ndarray, T: int):
        from spikedet.analysis.estimate import EnergyEstimate
        from spikedet.detection.letterbox import letterbox

        tensor, _ = letterbox(picture, self.detector.imgsz)
        network = self.detector.runner.network
        return EnergyEstimate(network, tensor[None].to(self.detector.device), T)


def play(
    eye,
    frames: Iterable[Frame],
    controls: Controls,
    each_step: bool,
    show: Callable[[Shown], None],
    iou: float = 0.6,
) -> int:
    """Detect in every frame and show each time step, or only the last; returns frames begun.

    Args:
        eye: An `Eye`.
        frames: Of a source.
        controls: Asked before each frame, and after each step whether to stop.
        each_step: Show every step.
        show: Takes what is to be shown.
        iou: IoU threshold of non-maximum suppression.
    """
    rate, begun = FrameRate(), 0
    for frame in frames:
        begun += 1
        frame_rate = rate.tick(time.perf_counter())
        chunk = CHUNK if each_step else None
        with contextlib.closing(eye.look(frame, controls, iou, chunk, frame_rate)) as steps:
            for shown in steps:
                if each_step or shown.detections.T == shown.T:
                    show(shown)
                if controls.ended:
                    return begun
    return begun


class Clock:
    """Times of a video in which each step lasts as long as a frame of the source.

    With the last step only, the times are those of the source. A source begins where the one before
    it ends.
    """

    def __init__(self, each_step: bool):
        self.each_step, self._now, self._last = each_step, 0.0, None
        self._start, self._end = 0.0, 0.0  # of the source, of its latest frame

    def at(self, frame: Frame) -> tuple[float, float | None]:
        """When the next picture, of `frame`, is shown, and for how long if that is known."""
        last, self._last = self._last, frame
        another = last is None or frame.source != last.source
        if another or frame.index != last.index:
            usual = 1 / 25 if another else max(1e-3, frame.time - last.time)
            self._length = frame.duration or usual
        if not self.each_step:
            if another:
                self._start = self._end
            now = self._start + frame.time
            self._end = now + self._length
            return now, frame.duration
        now, self._now = self._now, self._now + self._length
        return now, self._length


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


def again_and_again(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Frames; of a picture that stands alone for ever, as a camera in front of it would."""
    for frame in frames:
        yield frame
        while not frame.video and frame.total == 1:
            frame = replace(frame, index=frame.index + 1, time=frame.time + 1 / 25)
            yield frame


def eye_of(options: Options) -> Eye:
    """The networks that look, the float one loaded when it is wanted; says which engine runs.

    Raises:
        UsageError: Weights without time.
    """
    from spikedet.detection.predict import Predictor
    from spikedet.released import default_weights, released

    path = options.weights or default_weights(options.T)
    detector = Predictor(path, options.T, options.device, options.half, options.engine)
    print(f"engine {detector.why_engine}", file=sys.stderr)
    if detector.T is None:
        raise UsageError(
            f"{detector.weights.name}: these weights have no time steps; expected spiking weights"
        )

    def other():
        weights = options.float_weights or released("float")
        if weights is None:
            raise UsageError("no float weights are released; pass --float-weights")
        return Predictor(weights, None, options.device, options.half)

    return Eye(detector, other)


def run(options: Options) -> int:
    from spikedet.outputs import VideoFile

    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    if options.out:
        expect_new(options.out)
    eye = eye_of(options)
    window = has_display()
    out = options.out or (None if window else free_name(FALLBACK))
    failures, told = [], []

    def tell(error: PictureError) -> None:
        failures.append(error)
        print(f"error: {error}", file=sys.stderr)

    frames: Iterable[Frame] = open_sources([options.source], tell=tell)
    frames = again_and_again(frames) if window else frames
    controls = Controls(eye.detector.T, options.conf, options.side_by_side)
    clock = Clock(options.each_step)
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(VideoFile(out)) if out else None

        def show(shown: Shown) -> None:
            if not window and not told:
                told.append(f"no display: writing {out}; Ctrl-C ends it")
                print(*told, flush=True)
            picture = annotate(shown, controls.conf)
            if video:
                video.write(picture, *clock.at(shown.frame))
            if window:
                show_in_window(picture, controls)

        frames = itertools.islice(frames, options.frames)
        begun = play(eye, frames, controls, options.each_step, show, options.iou)
    if begun == 0 and not failures:
        raise PictureError(f"{without_passwords(options.source)}: holds no frame that can be read")
    if begun:
        written = f"; video in {out}" if out else ""
        print(f"{begun} frame{'s' * (begun != 1)}, T={controls.T}{written}")
    return DataError.exit_code if failures else 0


if __name__ == "__main__":
    run_command(lambda: sys.modules[__name__], sys.argv[1:], "demo/webcam.py")
