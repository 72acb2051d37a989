"""Sources of frames: pictures, videos, cameras and addresses."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from spikedet.errors import PictureError, UsageError
from spikedet.sources.find import Collected, FindOptions, find_sources
from spikedet.sources.frame import Frame, Problems
from spikedet.sources.stills import Picture
from spikedet.sources.video import FRAME_RATE

__all__ = ["Frame", "Sources", "open_sources"]


class Sources:
    """The frames of several sources, one after the other. `open_sources` returns it.

    Iterate over it once. A file or frame that cannot be read is counted in `errors`, and the next
    one follows.

    Attributes:
        files: All files that are read. Outputs must not overwrite them.
        ignored: Files in folders that are neither pictures nor videos.
        frames: Number of frames so far.
        finished: Number of sources that were read to their end so far.
    """

    def __init__(
        self, collected: Collected, limit: int | None, tell: Callable[[PictureError], None] | None
    ):
        self.ignored: list[Path] = collected.ignored
        self.files = [path for source in collected.sources for path in source.files]
        self.files += collected.lists
        self.frames, self.finished = 0, 0
        self._sources, self._limit = collected.sources, limit
        self._problems = Problems(tell=tell)
        self._waiting = collected.errors

    def __len__(self) -> int:
        """Number of sources."""
        return len(self._sources)

    @property
    def names(self) -> list[str]:
        """Name of each source. Passwords in addresses are removed."""
        return [source.name for source in self._sources]

    @property
    def errors(self) -> list[PictureError]:
        """Errors so far, one sentence for each file or frame that could not be read."""
        return [*self._problems.errors, *self._waiting]

    @property
    def bad_frames(self) -> int:
        """Number of video frames left out so far, because they are damaged or missing."""
        return self._problems.bad_frames

    @property
    def total(self) -> int | None:
        """Number of frames of all sources. None if it is not known in advance."""
        still = all(isinstance(source, Picture) for source in self._sources)
        return len(self._sources) if still else None

    def __iter__(self) -> Iterator[Frame]:
        """The frames of each source in turn."""
        while self._waiting:
            self._problems.add(self._waiting.pop(0))
        for source in self._sources:
            try:
                with contextlib.closing(source.frames(self._problems)) as frames:
                    for frame in itertools.islice(frames, self._limit):
                        self.frames += 1
                        yield frame
            except PictureError as error:
                self._problems.add(error)
            except OSError as error:
                self._problems.add(PictureError(f"{source.name}: {error.strerror or error}"))
            self.finished += 1


def open_sources(
    words: str | PathLike | Sequence[str | PathLike],
    recursive: bool = False,
    *,
    frame_rate: float | None = None,
    limit: int | None = None,
    without: Sequence[str | PathLike] = (),
    tell: Callable[[PictureError], None] | None = None,
) -> Sources:
    """Open sources of frames.

    Args:
        words: One source, or several. A source is a picture (any format of Pillow; HEIC with
            pillow-heif), an animation (GIF, WebP, PNG, AVIF), a video (any format of FFmpeg), a
            folder, a glob pattern, a `.txt` file with a list of these, numbered pictures
            (`f%04d.png`), the number or device of a camera, or an address (http, https, rtsp, rtmp,
            udp, srt and others).
        recursive: Also read the folders inside a folder.
        frame_rate: Frames per second of numbered pictures. None: 25.
        limit: Largest number of frames of each source. None: all frames.
        without: Folders that `recursive` leaves out, such as the folder of the results.
        tell: Function that is called with each error when it occurs. `errors` has all of them.

    Returns:
        An iterator of `Frame`. A source is opened only when its turn comes. Errors for words that
        name no source come first.

    Raises:
        UsageError: `frame_rate` is not a number above 0, or no word has the form of numbered
            pictures.

    Examples:
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 30)).save("picture.png")
        >>> for frame in open_sources(["picture.png"]):
        ...     print(frame.source, frame.picture.shape, frame.time, frame.video)
        picture.png (30, 40, 3) 0.0 False
    """
    if frame_rate is not None and not 0 < frame_rate < float("inf"):
        raise UsageError(f"frame_rate is {frame_rate}; expected a number above 0")
    words = [words] if isinstance(words, str | PathLike) else words
    options = FindOptions(recursive, [Path(folder) for folder in without], frame_rate or FRAME_RATE)
    collected = find_sources(words, options)
    if frame_rate is not None and not collected.numbered:
        raise UsageError(
            f"a frame rate of {frame_rate:g} has no effect: no source is numbered pictures, like "
            "f%04d.png; leave it out"
        )
    return Sources(collected, limit, tell)
