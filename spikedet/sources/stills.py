"""Picture files, including animations, and numbered pictures that form a video."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from spikedet.errors import PictureError, counted
from spikedet.pictures import UnknownFormat, read_parts, read_picture
from spikedet.sources.frame import File, Frame, Problems
from spikedet.sources.video import Video, expect_file

NUMBER = re.compile(r"%(?:0(\d{1,2}))?d")  # of `f%04d.png`


@dataclass(frozen=True)
class Picture(File):
    """A picture file. It has one frame, or the frames of an animation, or the pages of a TIFF.

    Attributes:
        path: The file.
        sure: True if the suffix is that of a picture. Otherwise the file may also be a video.
    """

    sure: bool = True

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Yield the frames.

        Raises:
            PictureError: The file cannot be read, or it is cut short (raised after its last frame).
        """
        if not self.sure:
            expect_file(self.path)
        try:
            yield from self._parts()
        except UnknownFormat:
            if self.sure:
                raise
            yield from Video(self.path).frames(problems)

    def _parts(self) -> Iterator[Frame]:
        time = 0.0
        for index, (picture, seconds, count) in enumerate(read_parts(self.path)):
            yield Frame(
                picture, self.name, index, time, seconds is not None, count, seconds,
                file=self.path,
            )  # fmt: skip
            time += seconds or 0.0


@dataclass(frozen=True)
class Numbered:
    """Numbered picture files that are the frames of a video.

    Attributes:
        pattern: Path with `%04d` or `%d` in place of the number.
        files: The existing files in the order of their numbers.
        frame_rate: Frames per second.
    """

    pattern: str
    files: list[Path]
    frame_rate: float

    @property
    def name(self) -> str:
        """The pattern."""
        return self.pattern

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Yield the frames. Missing and damaged pictures leave a gap in time."""
        numbers = [_number_of(self.pattern, path) for path in self.files]
        first, total = numbers[0], numbers[-1] - numbers[0] + 1
        missing = total - len(numbers)
        for index, (number, path) in enumerate(zip(numbers, self.files, strict=True)):
            try:
                picture = read_picture(path)
            except PictureError as error:
                problems.add(error, 1)
                continue
            time, duration = (number - first) / self.frame_rate, 1 / self.frame_rate
            length = total * duration
            yield Frame(picture, self.name, index, time, True, len(numbers), duration, length, path)
        if missing:
            between = f"{self.files[0].name} and {self.files[-1].name}"
            absent = counted(missing, "picture") + (" is" if missing == 1 else " are")
            problem = PictureError(f"{self.pattern}: {absent} missing between {between}")
            problems.add(problem, missing)


def numbered(pattern: str, frame_rate: float) -> Numbered:
    """Find the pictures of a pattern such as `f%04d.png`.

    Raises:
        PictureError: No picture matches, or the file name in the pattern does not have exactly one
            number.
    """
    folder, name = Path(pattern).parent, Path(pattern).name
    if len(NUMBER.findall(name)) != 1 or NUMBER.search(str(folder)):
        raise PictureError(f"{pattern}: expected one number, like %04d, in the name of the file")
    files = []
    if folder.is_dir():
        expression = _expression(name)
        files = [path for path in folder.iterdir() if expression.fullmatch(path.name)]
    if not files:
        raise PictureError(f"{pattern}: there are no such pictures")
    return Numbered(pattern, sorted(files, key=lambda p: _number_of(pattern, p)), frame_rate)


def _expression(name: str) -> re.Pattern:
    """The regular expression of a pattern. `f%03d.png` matches f1000.png, but not f01.png."""
    before, width, behind = NUMBER.split(name)
    digits = r"(0|[1-9]\d*)" if width is None else rf"(\d{{{width}}}|[1-9]\d{{{width},}})"
    return re.compile(re.escape(before) + digits + re.escape(behind))


def _number_of(pattern: str, path: Path) -> int:
    """The number in the name of a file. -1 if the name does not match the pattern."""
    match = _expression(Path(pattern).name).fullmatch(path.name)
    return int(match[1]) if match else -1
