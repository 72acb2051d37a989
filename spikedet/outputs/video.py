"""Write videos with PyAV. Every picture is shown as long as in its source."""

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

CLOCK = Fraction(1, 60_000)  # seconds; the frame times of 24, 25, 30 and 60 fps are multiples
OPTIONS = {  # no B-frames: packets leave the encoder in the order of the frames
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "mpeg4": {"bf": "0", "qmin": "2", "qmax": "6"},
}
CONTAINERS = {
    # fragmented, so that the file can be played at any moment
    ".mp4": ("mp4", {"movflags": "frag_keyframe+hybrid_fragmented", "frag_duration": "1000000"}),
    ".mkv": ("matroska", {}),
}
MOST_SIDE = 4096  # pixels; larger pictures are shrunk, because few players show them
KEY_FRAMES = 48  # frames between two key frames


class VideoFile:
    """A video file that is written picture by picture. Close it in any case, even after an error.

    Args:
        path: A name that ends in .mp4 or .mkv. The file is created with the first picture.

    Raises:
        UsageError: The name has another suffix.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.suffix.lower() not in CONTAINERS:
            raise UsageError(f"{path}: expected a name that ends in {' or '.join(CONTAINERS)}")
        self._file: BinaryIO | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._waiting: list[Any] = []  # the latest packet; its duration is not known yet
        self._start, self._last, self._usual = 0.0, -1, 1 / FRAME_RATE
        self._duration: float | None = None
        self._failed = False

    def write(self, picture: np.ndarray, time: float, duration: float | None = None) -> None:
        """Append a picture.

        Args:
            picture: [H, W, 3] uint8 BGR. If its size differs from the first picture, it is fitted
                into that size.
            time: Time in seconds at which it is shown. It must be later than that of the previous
                picture.
            duration: Seconds for which it is shown, if no picture follows. None: as long as the
                previous picture.

        Raises:
            OSError: The file cannot be created, or the disk is full.
            UsageError: The picture cannot be encoded, for example because it is too large.
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
        """Convert an error of FFmpeg or the system to an error with the name of the file."""
        number = getattr(error, "errno", None)
        if isinstance(error, OSError) and number and number > 0:
            return OSError(number, reason(error).capitalize(), str(self.path))
        return UsageError(f"{self.path}: cannot be written ({reason(error)})")

    def _open(self, height: int, width: int) -> None:
        """Create the file and its video stream."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        form, options = CONTAINERS[self.path.suffix.lower()]
        self._file = self.path.open("wb")  # FFmpeg would read some names as addresses
        self._container = container = av.open(self._file, "w", format=form, options=options)
        scale = min(1.0, MOST_SIDE / max(height, width))
        height, width = (max(2, round(side * scale)) for side in (height, width))
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=round(FRAME_RATE))
        self._stream = stream
        stream.height, stream.width = (
            height + height % 2,
            width + width % 2,
        )  # even sides for yuv420p
        stream.pix_fmt, stream.options = "yuv420p", OPTIONS[codec]
        stream.codec_context.time_base = CLOCK
        stream.codec_context.gop_size = KEY_FRAMES

    def _send(self, container: Any, packets: list[Any]) -> None:
        """Write packets. The duration of each is only known when the next packet is there."""
        for packet in packets:
            if self._waiting:
                before = self._waiting.pop()
                before.duration = packet.pts - before.pts
                container.mux(before)
            self._waiting.append(packet)

    def close(self) -> None:
        """Complete the file. Without this call, its end may be missing.

        Raises:
            OSError: The disk is full. Not raised if `write` has raised already.
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
            with contextlib.suppress(OSError):  # the buffered write has failed already
                file.close()

    def _remove_incomplete_end(self) -> None:
        """Remove an incomplete fragment at the end of an MP4. Many players cannot handle it."""
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
    """Fit a picture into a size: repeat the last row or column, or shrink it and add a border."""
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
