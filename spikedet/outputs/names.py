"""Names of output files. An output never has the name of an input or of another output."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from spikedet.errors import UsageError
from spikedet.sources import Frame

LONGEST = 255  # bytes of a file name that most file systems allow
PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}  # formats that are written


class Names:
    """Names of the output files of one run.

    Args:
        inputs: Files that are read. They are never overwritten.
    """

    def __init__(self, inputs: Iterable[Path] = ()):
        self._paths = set()
        self._files = set()  # by device and inode, to recognise links and other spellings
        self._taken: set[str] = set()
        for path in inputs:
            self._paths.add(os.path.realpath(path))
            try:
                status = os.stat(path)
            except OSError:
                continue
            self._files.add((status.st_dev, status.st_ino))

    def expect_free(self, path: Path) -> Path:
        """Check that a path is not an input, and return it.

        Raises:
            UsageError: The path is an input, perhaps under another name.
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

    def reserve(self, path: Path) -> Path:
        """Reserve a name that the user chose, so that no other output of this run gets it.

        Raises:
            UsageError: The path is an input or is reserved already.
        """
        key = _key(path)
        if key in self._taken:
            raise UsageError(f"{path}: two outputs have this name; choose another for one")
        self._taken.add(key)
        return self.expect_free(path)

    def new(self, folder: Path, stem: str, end: str) -> Path:
        """Make and reserve the name `folder/stem` + `end`.

        If the name is reserved already, a number is added before `end`.

        If the name is too long for a file system, the end of the stem is cut off.

        Raises:
            UsageError: The path is an input.
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
    return os.path.realpath(path).casefold()  # on some file systems a.png and A.png are one file


def stem_of(frame: Frame) -> str:
    """Stem of the output files of a source: its file name without suffix, or its address."""
    if frame.file is None:
        name = re.sub(r"^(\w+)://([^/?#]*@)?", r"\1-", frame.source)
    elif frame.source == str(frame.file):
        name = frame.file.stem
    else:  # a pattern of numbered pictures
        name = re.sub(r"%0?\d*d", "", Path(frame.source).stem)
    return safe_name(name) or "frames"


def safe_name(name: str) -> str:
    """Replace characters that some file systems do not allow. The result may be empty."""
    name = os.fsencode(name)[:LONGEST].decode(errors="ignore")
    if not _odd(name):
        return name
    return re.sub(r'[\x00-\x1f/\\:*?"<>|\s]+', "-", name).strip("-. ")


def _odd(name: str) -> bool:
    return bool(re.search(r'[\x00-\x1f/\\:*?"<>|]', name)) or name.strip(". ") == ""


def frame_suffix(frame: Frame) -> str:
    """Number that distinguishes the frames of one source, such as `-000012` in a video.

    The pages of a TIFF get `-1`, `-2` and so on. For a file with a single picture it is empty.
    """
    if frame.video:
        return f"-{frame.index:06}"
    return f"-{frame.index + 1}" if frame.total != 1 else ""


def picture_suffix(frame: Frame) -> str:
    """Suffix of the output pictures of a frame: that of its file if it is common, else `.png`.

    Frames of videos, cameras and addresses get `.jpg`.
    """
    if frame.file is None or frame.video:
        return ".jpg"
    suffix = frame.file.suffix
    return suffix if suffix.lower() in PICTURES else ".png"
