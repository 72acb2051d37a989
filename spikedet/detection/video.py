"""Pictures from a camera, a video file or a picture file, and into a video file."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from spikedet.errors import PictureError, UsageError
from spikedet.pictures import SUFFIXES, read_picture

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
FRAME_RATE = 25.0  # where the source does not say


def open_source(source: str, repeat: bool = False) -> tuple[Iterator[np.ndarray], float]:
    """Frames of a source, and how many there are a second.

    Args:
        source: Number of a camera, path of a video file or of a picture.
        repeat: Give a picture again and again, as a camera would, instead of once.

    Returns:
        Frames [H, W, 3] uint8 BGR: those of a file in turn; of a camera the newest one each time,
        so that frames that come while one is worked on are skipped. And frames per second.

    Raises:
        PictureError: It cannot be opened.
    """
    if Path(source).suffix.lower() in SUFFIXES:
        picture = read_picture(source)
        return itertools.repeat(picture) if repeat else iter([picture]), FRAME_RATE
    if source.isdecimal() and len(source) < 4:
        capture = cv2.VideoCapture(int(source))
        if not capture.isOpened():
            raise PictureError(
                f"camera {source} cannot be opened; expected the number of a camera that is "
                "connected and free, or a file"
            )
        return newest_frames(capture), _frame_rate(capture)
    if not Path(source).is_file():
        raise PictureError(f"{source}: no such video or picture, and no number of a camera")
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise PictureError(f"{source}: is not a video that can be read")
    return every_frame(capture), _frame_rate(capture)


def _frame_rate(capture: cv2.VideoCapture) -> float:
    told = capture.get(cv2.CAP_PROP_FPS)
    return told if 1 <= told <= 240 else FRAME_RATE  # 0, nan and time bases of 90,000 occur


def every_frame(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Frames of a video file, to its end."""
    try:
        while True:
            good, frame = capture.read()
            if not good:
                return
            yield frame
    finally:
        capture.release()


def newest_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Frames of a camera, each the newest that was not yet given; older ones are skipped."""
    changed, ended = threading.Condition(), threading.Event()
    waiting: list[np.ndarray] = []

    def read() -> None:
        while not ended.is_set():
            try:
                good, frame = capture.read()
            except cv2.error:  # of a frame that cannot be decoded
                good = False
            with changed:
                if good:
                    waiting[:] = [frame]
                else:
                    ended.set()
                changed.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended.is_set())
                if not waiting:
                    return
                frame = waiting.pop()
            yield frame
    finally:
        ended.set()
        reader.join(2)  # a camera that was pulled out may not answer
        capture.release()


class VideoFile:
    """A video that grows with every picture; closed at the end of the `with` block.

    Args:
        path: Its name ends in .mp4 or .avi.
        frame_rate: Pictures per second.

    Raises:
        UsageError: Another ending.
    """

    def __init__(self, path: Path, frame_rate: float):
        self.path, self.frame_rate = path, frame_rate
        self._writer: cv2.VideoWriter | None = None
        if path.suffix.lower() not in CODECS:
            raise UsageError(f"{path}: expected a name that ends in {' or '.join(CODECS)}")

    def write(self, picture: np.ndarray) -> None:
        """Append a picture [H, W, 3] uint8 BGR of the size of the first.

        Raises:
            UsageError: The file cannot be created.
        """
        if self._writer is None:
            self._writer = self._create(picture.shape[1], picture.shape[0])
        self._writer.write(picture)

    def _create(self, width: int, height: int) -> cv2.VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from None
        code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self.path), code, self.frame_rate, (width, height))
        if not writer.isOpened():
            raise UsageError(f"{self.path}: cannot be written; choose another file")
        return writer

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()  # without it the file cannot be played
