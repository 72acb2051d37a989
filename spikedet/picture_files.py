"""Find picture files: in folders, by patterns, and through links. Each occurs once."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from spikedet import pictures
from spikedet.errors import PictureError
from spikedet.pictures import CONVERT, HEIC, SUFFIXES, is_picture


def pictures_in(
    folder: Path, deep: bool = False, apart: Sequence[Path] = ()
) -> tuple[list[Path], PictureError | None]:
    """Find the pictures in a folder, sorted by name. Each occurs once.

    Hidden files are left out. For example, macOS writes `._a.jpg` next to `a.jpg` on other disks.

    Args:
        folder: The folder.
        deep: Also search subfolders and links to folders. Each folder is searched once.
        apart: Folders that are not searched, even through links. Folders above them are not
            searched through links either.

    Returns:
        Paths, and an error that counts and names the unreadable pictures, or None.
    """
    inside = _files_below(folder, apart) if deep else folder.iterdir()
    files = [path for path in inside if not path.name.startswith(".")]
    found = sorted(path for path in files if is_picture(path))
    unreadable = sorted(path for path in files if path.suffix.lower() in HEIC - SUFFIXES)
    if not unreadable or pictures.reads_heic():
        return found, None
    count = len(unreadable)
    counted = "1 HEIC picture" if count == 1 else f"{count} HEIC pictures"
    names = ", ".join(path.name for path in unreadable[:3]) + (", ..." if count > 3 else "")
    return found, PictureError(f"{folder}: {counted} cannot be read ({names}); {CONVERT}")


def _files_below(folder: Path, apart: Sequence[Path]) -> Iterator[Path]:
    seen = {os.path.realpath(place) for place in apart}
    seen.update(map(str, Path(os.path.realpath(folder)).parents))
    for place in folders_below(folder, seen):
        yield from (path for path in place.iterdir() if not path.is_dir())


def folders_below(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Yield a folder and all folders in it, also through links. Each occurs once.

    Hidden folders are left out. If the path is not a folder, nothing is yielded.
    """
    seen = set() if seen is None else seen
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(folder):
        return
    seen.add(real)
    yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from folders_below(path, seen)


def _matches(pattern: str) -> list[Path]:
    """Files that a glob pattern matches. For `**`, each folder is searched once.

    Links to folders are followed. `glob` alone would follow a link to a parent folder again and
    again, and return a picture more than forty times.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return [path for path in map(Path, sorted(glob.glob(pattern))) if not path.is_dir()]
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    before = str(Path(*parts[:at])) if at else "."
    paths: list[Path] = []
    seen: set[str] = set()
    for start in sorted(glob.glob(before)):
        for folder in folders_below(Path(start), seen):
            paths += _matches(str(Path(glob.escape(str(folder)), *rest)))
    return sorted(dict.fromkeys(paths))


def find_pictures(sources: Sequence[str]) -> tuple[list[Path], list[PictureError]]:
    """Find the picture files that the arguments of a command name.

    Args:
        sources: Each is a file, a folder (its pictures by name, without subfolders) or a glob
            pattern. An existing file is taken as it is, even if its name looks like a pattern.

    Returns:
        Paths in order, each once, and one error for each source without pictures or with unreadable
        pictures.
    """
    paths: dict[Path, None] = {}
    errors = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside, unreadable = pictures_in(path)
            if unreadable:
                errors.append(unreadable)
            elif not inside:
                errors.append(PictureError(f"{source}: no pictures in this folder"))
            paths.update(dict.fromkeys(inside))
        elif os.path.lexists(path) or not glob.has_magic(source):
            paths[path] = None
        else:
            # each picture once, though links lead to its folder by several ways
            ways = {(os.path.realpath(p.parent), p.name): p for p in _matches(source)[::-1]}
            files = list(ways.values())[::-1]
            if not files:
                errors.append(PictureError(f"{source}: no file matches this pattern"))
            paths.update(dict.fromkeys(files))
    return list(paths), errors
