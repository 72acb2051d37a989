"""Find the sources of a command: files, folders, glob patterns, lists, cameras and addresses."""

from __future__ import annotations

import functools
import glob
import os
import urllib.parse
import urllib.request
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from spikedet.errors import DataError, PictureError
from spikedet.files import read_lines
from spikedet.picture_files import find_pictures, folders_below
from spikedet.pictures import HEIC, SUFFIXES, formats, reads_heic
from spikedet.sources.live import ADDRESS, Address, Camera, is_camera
from spikedet.sources.stills import NUMBER, Numbered, Picture, numbered
from spikedet.sources.video import Video

Source = Picture | Video | Numbered | Camera | Address
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".ts", ".mts"}
VIDEOS |= {
    ".m2ts",
    ".vob",
    ".wmv",
    ".asf",
    ".flv",
    ".f4v",
    ".3gp",
    ".3g2",
    ".ogv",
    ".mjpeg",
    ".mjpg",
}
VIDEOS |= {".y4m", ".h264", ".264", ".h265", ".hevc", ".265", ".ivf", ".mxf", ".dv"}
# Pictures that no installed library decodes correctly.
_OTHER_PICTURES = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"}
_OTHER_PICTURES |= {".svg", ".svgz", ".eps", ".ps", ".ai", ".pdf", ".wmf", ".emf", ".jxl", ".exr"}
_OTHER_PICTURES |= {".hdr", ".dpx"}
NAMED = 3  # names of unreadable files in an error that counts them
LARGEST_LIST = 64 << 20  # bytes


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """File name suffixes of the pictures that the installed libraries decode, in lower case."""
    decoded = {s for s, kind in Image.registered_extensions().items() if kind in formats()}
    heic = HEIC if reads_heic() else set()
    return frozenset((decoded | SUFFIXES | {".mpo"} | heic) - _OTHER_PICTURES - VIDEOS)


@dataclass
class Collected:
    """The sources that the arguments of a command name.

    Attributes:
        sources: The sources in order. Each file occurs once.
        lists: List files that name other sources.
        errors: One error for each argument or folder that cannot be read.
        ignored: Files in folders that are neither pictures nor videos.
        numbered: Whether an argument has the form of numbered pictures.
    """

    sources: list[Source] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    errors: list[PictureError] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    numbered: bool = False


@dataclass(frozen=True)
class FindOptions:
    """Options for finding sources (see `open_sources`).

    Attributes:
        recursive: Also read the folders inside a folder.
        without: Folders that are left out.
        frame_rate: Frames per second of numbered pictures.
    """

    recursive: bool
    without: Sequence[Path]
    frame_rate: float


def find_sources(words: Sequence[str | os.PathLike], options: FindOptions) -> Collected:
    """Find the sources that the arguments of a command name. No source is opened yet."""
    collected = Collected()
    for word in words:
        word = os.fspath(word)
        try:
            _add(collected, word, options)
        except PictureError as error:
            collected.errors.append(error)
        except OSError as error:  # of a name that is too long, a folder that may not be read
            collected.errors.append(PictureError(f"{word}: {error.strerror}"))
    once: dict[Hashable, Source] = {}
    for source in collected.sources:
        once.setdefault(source.name if isinstance(source, Numbered) else source, source)
    return replace(collected, sources=list(once.values()))


def _add(collected: Collected, word: str, options: FindOptions, base: Path | None = None) -> None:
    """Add the sources of one argument. Entries of a list may be relative to its folder `base`."""
    if not word:
        raise PictureError("'': is no name; expected a file, a folder, a camera or an address")
    if "\0" in word:
        raise PictureError(f"{word!r}: is no name of a file")
    scheme = ADDRESS.match(word)
    if scheme and scheme[1].lower() == "file":
        word = urllib.request.url2pathname(urllib.parse.urlsplit(word).path)
    elif scheme:
        collected.sources.append(Address(word))
        return
    path = Path(word)
    if base is not None and not path.is_absolute() and os.path.lexists(base / path):
        path = base / path
    if os.path.isdir(path):
        _add_folder(collected, path, options)
    elif is_camera(path):
        collected.sources.append(Camera(str(path)))
    elif os.path.lexists(path):
        if path.suffix.lower() == ".txt":
            _add_list(collected, path, options, base)
        else:
            collected.sources.append(_file(path))
    elif word.isdecimal() and len(word) < 4:
        collected.sources.append(Camera(int(word)))
    elif NUMBER.search(word):
        collected.numbered = True
        collected.sources.append(numbered(str(_beside(base, word)), options.frame_rate))
    elif glob.has_magic(word):
        _add_pattern(collected, str(_beside(base, word)))
    elif path.suffix.lower() in picture_suffixes():
        raise PictureError(f"{word}: no such picture")
    elif path.suffix.lower() in VIDEOS | {".txt"}:
        raise PictureError(f"{word}: no such file")
    else:
        raise PictureError(
            f"{word}: no such file or folder; expected one, a pattern, the number of a camera, or "
            "an address like rtsp://..."
        )


def _beside(base: Path | None, word: str) -> Path:
    """A pattern from a list, relative to the folder of the list if that folder exists."""
    if base is not None and (base / word).parent.is_dir():
        return base / word
    return Path(word)


def _file(path: Path) -> Source:
    """The source for a file, chosen by its suffix."""
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return Video(path)
    return Picture(path, sure=suffix in picture_suffixes())


def _add_folder(collected: Collected, folder: Path, options: FindOptions) -> None:
    """Add the pictures and videos of a folder, sorted by name."""
    places: Iterable[Path] = [folder]
    if options.recursive:
        real = os.path.realpath(folder)
        apart = {*map(os.path.realpath, options.without), *map(str, Path(real).parents)} - {real}
        places = folders_below(folder, apart)
    entries = (file for place in places for file in place.iterdir())
    files = sorted(f for f in entries if not f.name.startswith(".") and not f.is_dir())
    if _add_known(collected, files, str(folder)) == 0:
        deeper = (
            "" if options.recursive else "; those of the folders in it are read with --recursive"
        )
        inside = any(path.is_dir() for path in folder.iterdir())
        raise PictureError(
            f"{folder}: no pictures in this folder, and no videos{deeper if inside else ''}"
        )


def _add_known(collected: Collected, files: Sequence[Path], where: str) -> int:
    """Add the files whose suffix is that of a picture or a video. Add an error for unreadable ones.

    Returns:
        Number of pictures and videos, readable or not.
    """
    unreadable, known = [], 0
    for file in files:
        suffix = file.suffix.lower()
        if suffix in VIDEOS or suffix in picture_suffixes():
            collected.sources.append(_file(file))
            known += 1
        elif suffix in _OTHER_PICTURES | HEIC:
            unreadable.append(file)
        else:
            collected.ignored.append(file)
    if unreadable:
        collected.errors.append(_unreadable(unreadable, where))
    return known + len(unreadable)


def _unreadable(files: Sequence[Path], where: str) -> PictureError:
    """Make the error that counts and names unreadable pictures."""
    heic = [file for file in files if file.suffix.lower() in HEIC]
    kind = "HEIC " if len(heic) == len(files) else ""
    counted = f"1 {kind}picture" if len(files) == 1 else f"{len(files)} {kind}pictures"
    names = ", ".join(file.name for file in files[:NAMED]) + (", ..." if files[NAMED:] else "")
    convert = "convert them to JPEG"
    advice = f"install pillow-heif, or {convert}" if heic else convert
    return PictureError(f"{where}: {counted} cannot be read ({names}); {advice}")


def _add_pattern(collected: Collected, pattern: str) -> None:
    """Add the files that a glob pattern matches. A pattern without suffix acts like a folder."""
    files, errors = find_pictures([pattern])
    collected.errors += errors
    if files and not Path(pattern).suffix:
        if _add_known(collected, files, pattern) == 0:
            collected.errors.append(PictureError(f"{pattern}: matches no pictures or videos"))
        return
    collected.sources += [_file(path) for path in files]


def _add_list(collected: Collected, path: Path, options: FindOptions, base: Path | None) -> None:
    """Add the sources of a list file, one on each line. Lines that start with # are comments."""
    if base is not None:
        raise PictureError(f"{path}: is a list in a list; expected pictures and videos")
    if not path.is_file():
        raise PictureError(f"{path}: is a pipe or a device; expected a list of files")
    if path.stat().st_size > LARGEST_LIST:
        raise PictureError(f"{path}: is larger than {LARGEST_LIST >> 20} MB; expected a list")
    try:
        lines = read_lines(path)
    except DataError as error:
        raise PictureError(str(error)) from None
    collected.lists.append(path)
    words = [line for line in lines if line and not line.startswith("#")]
    if not words:
        raise PictureError(f"{path}: this list is empty; expected a file a line")
    for word in words:
        try:
            _add(collected, word, options, path.absolute().parent)
        except PictureError as error:
            collected.errors.append(PictureError(f"{path}: {error}"))
        except OSError as error:
            collected.errors.append(PictureError(f"{path}: {word}: {error.strerror}"))
