"""The frames of a source, and the errors of frames that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spikedet.errors import PictureError


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        picture: [H, W, 3] uint8 BGR.
        source: Name of the source: the file as it was given, an address without its password, or
            `camera 0`.
        index: Number of the frame in its source, from 0 on.
        time: Seconds since the first frame of the source.
        video: Whether the source is a video, an animation, a sequence, a camera or a stream.
        total: Number of frames in the source. None if it is not known.
        duration: Seconds for which the frame is shown. None if it is not known.
        length: Length of the source in seconds. None if it is not known or without end.
        file: File that the frame was read from. None for a camera or an address.
    """

    picture: np.ndarray = field(repr=False)
    source: str
    index: int = 0
    time: float = 0.0
    video: bool = False
    total: int | None = 1
    duration: float | None = None
    length: float | None = None
    file: Path | None = None


@dataclass
class Problems:
    """The errors of sources, in the order in which they occur.

    Attributes:
        errors: The errors, with one sentence each.
        bad_frames: Number of video frames that were left out.
        tell: Function that is called with each error.
    """

    errors: list[PictureError] = field(default_factory=list)
    bad_frames: int = 0
    tell: Callable[[PictureError], None] | None = None

    def add(self, error: PictureError, bad_frames: int = 0) -> None:
        """Add an error and call `tell`."""
        self.errors.append(error)
        self.bad_frames += bad_frames
        if self.tell is not None:
            self.tell(error)


@dataclass(frozen=True)
class File:
    """A source that is one file.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    def name(self) -> str:
        """The path as text."""
        return str(self.path)

    @property
    def files(self) -> list[Path]:
        """The file itself."""
        return [self.path]
