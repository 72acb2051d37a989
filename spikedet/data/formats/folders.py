"""Class folders: `FOLDER/SPLIT/CLASS/**/picture`, as ImageNet is usually stored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from spikedet.data.formats.base import Classes, Format, Labelled
from spikedet.errors import DataError, shorten
from spikedet.picture_files import pictures_in

SPLITS = ("train", "val", "test")


class Folders(Classes):
    """A folder with a folder for each split, which has a folder for each class."""

    @property
    def splits(self) -> list[str]:
        """The folders of `train`, `val` and `test` that exist."""
        return [split for split in SPLITS if (self.paths[0] / split).is_dir()]

    def usual_split(self, test: bool) -> str | None:
        """See `Source.usual_split`. To measure, it is `test`, or else `val`."""
        wanted = ("test", "val") if test else ("train",)
        return next((split for split in wanted if split in self.splits), None)

    def read(self, split: str) -> Labelled:
        """See `Classes.read`. The classes are sorted by name."""
        folder = self.paths[0]
        if folder.is_file():
            raise DataError(f"{folder}: is a file; unpack it, and name the folder")
        place = folder / split
        if not place.is_dir():
            splits = sorted(path.name for path in folder.glob("*") if path.is_dir())
            raise DataError(
                f"{place}: no such folder; expected {folder}/SPLIT/CLASS/pictures"
                + (f" with --split {' or '.join(splits)}" if 0 < len(splits) <= 5 else "")
            )
        names = _classes(place)
        if not names:
            raise DataError(f"{place}: no class folders here; expected {place}/CLASS/pictures")
        for other in SPLITS:  # a split that is only partly unpacked has fewer classes
            others = _classes(folder / other)
            if set(others) & set(names):  # otherwise it has no class folders, as in Tiny-ImageNet
                expect_classes(names, others, place, f"{folder / other} has")
        labels, sources = [], []
        for label, name in enumerate(names):
            files = pictures_of(place / name, [place / other for other in names if other != name])
            if not files:
                raise DataError(f"{place / name}: no pictures of this class")
            labels += [label] * len(files)
            sources += files
        return Labelled(names, labels, sources)


def pictures_of(place: Path, apart: Sequence[Path] = ()) -> list[Path]:
    """Find the pictures in a folder and its subfolders, in order. Warn about unreadable pictures.

    Args:
        place: The folder.
        apart: Folders of the other classes. Links into them are not followed.
    """
    pictures, unreadable = pictures_in(place, deep=True, apart=apart)
    if unreadable:
        warnings.warn(str(unreadable), stacklevel=2)
    return pictures


def expect_classes(names: tuple[str, ...], known: tuple[str, ...], place: Path, owner: str) -> None:
    """Check that class names are equal to known class names.

    Args:
        names: Class names to check.
        known: Expected class names.
        place: Where `names` were found, for the message.
        owner: Who has the expected names, for the message, with a verb: `FOLDER has`.

    Raises:
        DataError: The names differ. The message names the first difference.
    """
    for number, (one, other) in enumerate(zip_longest(names, known, fillvalue="none"), 1):
        if one != other:
            raise DataError(
                f"{place}: {len(names)} classes, number {number} is {shorten(one)}; {owner} "
                f"{len(known)}, number {number} is {shorten(other)}"
            )


def _classes(place: Path) -> tuple[str, ...]:
    """Names of the class folders in a folder, sorted. Empty if the folder does not exist.

    Hidden folders, such as `.ipynb_checkpoints`, are left out.
    """
    inside = place.iterdir() if place.is_dir() else ()
    return tuple(
        sorted(path.name for path in inside if path.is_dir() and not path.name.startswith("."))
    )


def fits(path: Path) -> bool:
    """Whether a folder has a folder for a split."""
    return any((path / split).is_dir() for split in SPLITS)


FORMAT = Format("class folders", "classification", fits, Folders)
