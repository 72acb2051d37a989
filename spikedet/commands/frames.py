"""Shared parts of commands that read frames: options, progress, and warnings about files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.commands import parse
from spikedet.options import option

if TYPE_CHECKING:
    from spikedet.sources import Frame, Sources

NAMED = 3  # of the files that are left alone, in a line


@dataclass(kw_only=True)
class FrameOptions(parse.Options):
    """Options of commands that read frames."""

    recursive: bool = option(False, "also read the folders inside a folder", group="source")
    frame_rate: float | None = option(
        None, "frames per second of numbered pictures", above=0, shown="default: 25",
        group="source",
    )  # fmt: skip
    frames: int | None = option(None, "stop each source after N frames", least=1, group="source")


class Failures:
    """Prints and counts the files and frames that could not be read or written."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self, error: Exception) -> None:
        print(f"error: {error}", file=sys.stderr)
        self.count += 1


def opened(
    options: FrameOptions, words: Sequence[str], failures: Failures, without: Sequence[Path] = ()
) -> Sources:
    """Open sources of frames, and report files in folders that are not pictures.

    Args:
        options: Options of the command.
        words: Sources, see `spikedet.sources.open_sources`.
        failures: Receives the errors.
        without: Folders that are not searched.
    """
    from spikedet.sources import open_sources

    sources = open_sources(
        words, options.recursive, frame_rate=options.frame_rate, limit=options.frames,
        without=without, tell=failures.tell,
    )  # fmt: skip
    if sources.ignored:
        print(f"warning: {_ignored(sources.ignored)}", file=sys.stderr)
    return sources


def shown(sources: Sources, what: str) -> Iterable[Frame]:
    """Yield the frames with a progress bar, which counts pictures or seconds of a video."""
    from spikedet.commands.main import progress

    if not sys.stderr.isatty():
        yield from sources
        return
    with progress(desc=what, total=sources.total, unit="picture") as bar:
        for frame in sources:
            if frame.video and frame.length:
                bar.set_postfix_str(f"{frame.time:.1f} of {frame.length:.1f} s")
            yield frame
            bar.update()


def where(frame: Frame) -> str:
    """The start of a line about a frame: its source, with the time in a video or the page."""
    if frame.video:
        return f"{frame.source} {frame.time:.2f} s"
    return frame.source if frame.total == 1 else f"{frame.source} page {frame.index + 1}"


def _ignored(files: Sequence[Path]) -> str:
    """The sentence that counts and names the ignored files."""
    names = ", ".join(path.name for path in files[:NAMED])
    more = ", ..." if len(files) > NAMED else ""
    counted = "1 file is" if len(files) == 1 else f"{len(files)} files are"
    return f"{counted} neither a picture nor a video that can be read ({names}{more})"
