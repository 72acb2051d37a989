"""Names of output files. An output never has the name of an input or of another output."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from spikedet.errors import UsageError
from spikedet.sources import Frame

LONGEST = 255  # bytes of a name that most file systems allow
PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}  # formats that are written


class Names:
    """Names of the files of one run.

    Args:
        inputs: Files that are read.
    """

    def __init__(self, inputs: Iterable[Path] = ()):
        self._paths = set()
        self._files = set()  # by device and number: links, and names in other letters
        self._taken: set[str] = set()
        for path in inputs:
            self._paths.add(os.path.realpath(path))
            try:
                status = os.stat(path)
            except OSError:
                continue
            self._files.add((status.st_dev, status.st_ino))

    def expect_free(self, path: Path) -> Path:
        """Refuse to write over an input.

        Raises:
            UsageError: `path` is one, by whatever name.
        """
        same = os.path.realpath(path) in self._paths
        if not same and self._files:
            try:
                status = os.stat(path)
            except OSError:
                return path
            same = (status.st_dev, status.st_ino) in self._files
        if same:
            raise UsageError(f"{path}: is one of the inputs; choose another --out")
        return path

    def take(self, path: Path) -> Path:
        """A name that the run has to itself, for a file whose name somebody chose.

        Raises:
            UsageError: It is an input, or taken already.
        """
        key = _key(path)
        if key in self._taken:
            raise UsageError(f"{path}: two outputs have this name; choose another for one")
        self._taken.add(key)
        return self.expect_free(path)

    def new(self, folder: Path, stem: str, end: str) -> Path:
        """`folder/stem` with `end`; a number is put between while another output has the name.

        A name that is too long for a file system loses the last letters of its stem.

        Raises:
            UsageError: It is an input.
        """
        path, number = folder / _fitted(stem, end), 1
        while _key(path) in self._taken:
            number += 1
            path = folder / _fitted(stem, f"-{number}{end}")
        self._taken.add(_key(path))
        return self.expect_free(path)


def _fitted(stem: str, end: str) -> str:
    room = LONGEST - len(os.fsencode(end))
    return os.fsdecode(os.fsencode(stem)[:room]) + end


def _key(path: Path) -> str:
    return os.path.realpath(path).casefold()  # some file systems do not tell a.png from A.png


def stem_of(frame: Frame) -> str:
    """What the outputs of a source are called: its file's name without ending, or its address."""
    if frame.file is None:
        name = re.sub(r"^(\w+)://([^/@]*@)?", r"\1-", frame.source)
    elif frame.source == str(frame.file):
        name = frame.file.stem
    else:  # a pattern of numbered pictures
        name = re.sub(r"%0?\d*d", "", Path(frame.source).stem)
    return safe(name) or "frames"


def safe(name: str) -> str:
    """A name that a file may have everywhere, empty where nothing is left of it."""
    name = os.fsencode(name)[:LONGEST].decode(errors="ignore")
    if not _odd(name):
        return name
    return re.sub(r'[\x00-\x1f/\\:*?"<>|\s]+', "-", name).strip("-. ")


def _odd(name: str) -> bool:
    return bool(re.search(r'[\x00-\x1f/\\:*?"<>|]', name)) or name.strip(". ") == ""


def numbered(frame: Frame) -> str:
    """What tells the frames of one source apart: `-000012` of a film, `-2` of the pages of a TIFF.

    Empty for a picture that is alone in its file.
    """
    if frame.video:
        return f"-{frame.index:06}"
    return f"-{frame.index + 1}" if frame.total != 1 else ""


def picture_suffix(frame: Frame) -> str:
    """Ending, and so the format, of pictures of a frame: that of its file where it is usual."""
    if frame.file is None or frame.video:
        return ".jpg"
    suffix = frame.file.suffix
    return suffix if suffix.lower() in PICTURES else ".png"
