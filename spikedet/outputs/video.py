"""Videos in which every picture is shown as long as in its source, written by PyAV."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import cv2
import numpy as np

from spikedet.errors import UsageError
from spikedet.sources.completeness import complete_length
from spikedet.sources.video import FRAME_RATE, reason

CLOCK = Fraction(1, 60_000)  # seconds; of 24, 25, 30 and 60 frames a second each is a multiple
OPTIONS = {  # none of frames that refer to later ones: they leave in the order in which they come
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "mpeg4": {"bf": "0", "qmin": "2", "qmax": "6"},
}
CONTAINERS = {
    # in pieces of their own while it grows, so that each moment leaves a file that plays
    ".mp4": ("mp4", {"movflags": "frag_keyframe+hybrid_fragmented", "frag_duration": "1000000"}),
    ".mkv": ("matroska", {}),
}
MOST_SIDE = 4096  # pixels; larger pictures are shrunk, for few players show them
KEY_FRAMES = 48  # frames between two from which one can begin to play


class VideoFile:
    """A video that grows with every picture; to be closed, also when its maker fails.

    Args:
        path: Its name ends in .mp4 or .mkv. The file is made with the first picture.

    Raises:
        UsageError: Another ending.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.suffix.lower() not in CONTAINERS:
            raise UsageError(f"{path}: expected a name that ends in {' or '.join(CONTAINERS)}")
        self._file: BinaryIO | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._waiting: list[Any] = []  # the newest packet, whose length is not known yet
        self._start, self._last, self._usual = 0.0, -1, 1 / FRAME_RATE
        self._duration: float | None = None
        self._failed = False

    def write(self, picture: np.ndarray, time: float, duration: float | None = None) -> None:
        """Append a picture.

        Args:
            picture: [H, W, 3] uint8 BGR. One of another size than the first is fitted into it.
            time: When it is shown, in seconds; later than the one before.
            duration: Seconds that it is shown if no other follows; as long as the one before if
                that is not known.

        Raises:
            OSError: The file cannot be made, or the disk is full.
            UsageError: The picture is too large for a video.
        """
        try:
            if self._container is None:
                self._open(picture.shape[0], picture.shape[1])
                self._start = time
            stream = self._stream
            ticks = max(self._last + 1, round((time - self._start) / CLOCK))
            if self._last >= 0:
                self._usual = float((ticks - self._last) * CLOCK)
            self._last, self._duration = ticks, duration
            fitted = _fitted(picture, stream.height, stream.width)
            frame = av.VideoFrame.from_ndarray(fitted, format="bgr24")
            frame.pts, frame.time_base = ticks, CLOCK
            self._send(self._container, stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            self._failed = True
            raise self._named_error(error) from None

    def _named_error(self, error: Exception) -> Exception:
        """An error with the name of the file."""
        number = getattr(error, "errno", None)
        if isinstance(error, OSError) and number and number > 0:
            return OSError(number, reason(error).capitalize(), str(self.path))
        return UsageError(f"{self.path}: cannot be written ({reason(error)})")

    def _open(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        form, options = CONTAINERS[self.path.suffix.lower()]
        self._file = self.path.open("wb")  # FFmpeg would take some names for addresses
        self._container = container = av.open(self._file, "w", format=form, options=options)
        scale = min(1.0, MOST_SIDE / max(height, width))
        height, width = (max(2, round(side * scale)) for side in (height, width))
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=round(FRAME_RATE))
        self._stream = stream
        stream.height, stream.width = height + height % 2, width + width % 2  # colours are shared
        stream.pix_fmt, stream.options = "yuv420p", OPTIONS[codec]
        stream.codec_context.time_base = CLOCK
        stream.codec_context.gop_size = KEY_FRAMES

    def _send(self, container: Any, packets: list[Any]) -> None:
        """Write packets, each with its length: until the next one begins."""
        for packet in packets:
            if self._waiting:
                before = self._waiting.pop()
                before.duration = packet.pts - before.pts
                container.mux(before)
            self._waiting.append(packet)

    def close(self) -> None:
        """Finish the file; without this it may be without its end.

        Raises:
            OSError: The disk is full; not where `write` has raised already.
        """
        if self._container is None:
            self._drop_file()
            return
        error = None
        try:
            self._send(self._container, self._stream.encode(None) if self._last >= 0 else [])
            for last in self._waiting:
                seconds = self._usual if self._duration is None else self._duration
                last.duration = max(1, round(seconds / CLOCK))
                self._container.mux(last)
        except (av.FFmpegError, OSError) as raised:
            error = raised
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as raised:
            error = error or raised
        self._container = None
        self._drop_file()
        if error is not None or self._failed:
            self._remove_incomplete_end()
        if error is not None and not self._failed:
            self._failed = True
            raise self._named_error(error)

    def _drop_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what waits to be written has failed already
                file.close()

    def _remove_incomplete_end(self) -> None:
        """Cut off the piece of an MP4 that did not fit on the disk: players stumble over it."""
        if self.path.suffix.lower() == ".mp4":
            with contextlib.suppress(OSError):
                whole = complete_length(self.path)
                if whole:
                    os.truncate(self.path, whole)
                else:
                    self.path.unlink()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in a frame: its last row and column twice for odd sizes, shrunk into others."""
    down, right = height - picture.shape[0], width - picture.shape[1]
    if down not in (0, 1) or right not in (0, 1):
        scale = min(height / picture.shape[0], width / picture.shape[1])
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        down, right = height - picture.shape[0], width - picture.shape[1]
        top, left = down // 2, right // 2
        return cv2.copyMakeBorder(picture, top, down - top, left, right - left, cv2.BORDER_CONSTANT)
    if down or right:
        return cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(picture)
