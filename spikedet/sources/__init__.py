"""What is looked at: frames from pictures, videos, cameras and addresses."""

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
    """Frames of several sources, one after the other; made by `open_sources`.

    Iterate over it once. What cannot be read costs only itself: it is counted, and the next file
    or frame follows.

    Attributes:
        files: Every file that is read, to be written over by nobody.
        ignored: Files in folders that are neither pictures nor videos.
        frames: Frames given so far.
        finished: Sources that were read to their end so far.
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
        """Name of each source; addresses without passwords."""
        return [source.name for source in self._sources]

    @property
    def errors(self) -> list[PictureError]:
        """What could not be read so far, a sentence each."""
        return [*self._problems.errors, *self._waiting]

    @property
    def bad_frames(self) -> int:
        """Frames of videos that were left out so far because they are damaged or missing."""
        return self._problems.bad_frames

    @property
    def total(self) -> int | None:
        """Frames that all sources have together; None where that is not known beforehand."""
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
    frame_rate: float = FRAME_RATE,
    limit: int | None = None,
    without: Sequence[str | PathLike] = (),
    tell: Callable[[PictureError], None] | None = None,
) -> Sources:
    """Frames of what some words name.

    Args:
        words: One or several, each one of: a picture (every format that Pillow decodes, HEIC with
            pillow-heif), an animation (GIF, WebP, PNG, AVIF), a video (all that FFmpeg decodes), a
            folder, a glob pattern, a list of those in a `.txt` file, numbered pictures of a film
            (`f%04d.png`), the number or device of a camera, an address (http, https, rtsp, rtmp,
            udp, srt ...).
        recursive: Look into the folders in a folder as well.
        frame_rate: Pictures a second of numbered pictures.
        limit: Frames of each source, all if None.
        without: Folders that `recursive` does not look into, such as that of the results.
        tell: Called with each error as it is met; all are in `errors` as well.

    Returns:
        An iterator of `Frame`. Nothing is opened before its turn, errors of words that name nothing
        come first.

    Raises:
        UsageError: `frame_rate` is no number above 0.

    Examples:
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 30)).save("picture.png")
        >>> for frame in open_sources(["picture.png"]):
        ...     print(frame.source, frame.picture.shape, frame.time, frame.video)
        picture.png (30, 40, 3) 0.0 False
    """
    if not 0 < frame_rate < float("inf"):
        raise UsageError(f"frame_rate is {frame_rate}; expected a number above 0")
    words = [words] if isinstance(words, str | PathLike) else words
    options = FindOptions(recursive, [Path(folder) for folder in without], frame_rate)
    return Sources(find_sources(words, options), limit, tell)
