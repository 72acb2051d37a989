"""What every source gives, and what it says of what it cannot give."""

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
        source: Its file as it was named, an address without its password, `camera 0`.
        index: 0, 1, 2 ... in its source.
        time: Seconds since the first frame of its source.
        video: Whether it is one of a video, an animation, a sequence, a camera or a stream.
        total: Frames that its source says it has, None where it does not say.
        duration: Seconds that it is shown, None where the source does not say.
        length: Seconds of its source, None where it does not say, or has no end.
        file: The file that it was read from, None for a camera or an address.
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
    """What could not be read, in the order in which it was met.

    Attributes:
        errors: One sentence each.
        bad_frames: Frames of videos that were left out.
        tell: Called with each error when it is met.
    """

    errors: list[PictureError] = field(default_factory=list)
    bad_frames: int = 0
    tell: Callable[[PictureError], None] | None = None

    def add(self, error: PictureError, bad_frames: int = 0) -> None:
        """Count and tell an error."""
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
        return str(self.path)

    @property
    def files(self) -> list[Path]:
        return [self.path]
