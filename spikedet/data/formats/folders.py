"""Class folders: `FOLDER/SPLIT/CLASS/**/picture`, as CIFAR's pictures and ImageNet are kept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from spikedet.data.formats.base import Classes, Format, Labelled
from spikedet.errors import DataError, shorten
from spikedet.pictures import pictures_in

SPLITS = ("train", "val", "test")


class Folders(Classes):
    """A folder of splits, each a folder of classes."""

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if (self.paths[0] / split).is_dir()]

    def usual_split(self, test: bool) -> str | None:
        wanted = ("test", "val") if test else ("train",)
        return next((split for split in wanted if split in self.splits), None)

    def read(self, split: str) -> Labelled:
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
        for other in SPLITS:  # one that was unpacked in part has fewer
            others = _classes(folder / other)
            if set(others) & set(names):  # else it is no class folders, as in Tiny-ImageNet
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
    """The pictures of a folder and of those in it, in order; warns of those that cannot be read.

    Args:
        place: The folder.
        apart: Other classes, into which a link may lead.
    """
    pictures, unreadable = pictures_in(place, deep=True, apart=apart)
    if unreadable:
        warnings.warn(str(unreadable), stacklevel=2)
    return pictures


def expect_classes(names: tuple[str, ...], known: tuple[str, ...], place: Path, owner: str) -> None:
    """Refuse class names at `place` that are not those that `owner` has.

    Raises:
        DataError: Names the first that differs.
    """
    for number, (one, other) in enumerate(zip_longest(names, known, fillvalue="none"), 1):
        if one != other:
            raise DataError(
                f"{place}: {len(names)} classes, number {number} is {shorten(one)}; {owner} "
                f"{len(known)}, number {number} is {shorten(other)}"
            )


def _classes(place: Path) -> tuple[str, ...]:
    """Names of the class folders at a place, none where there is no such place.

    Hidden ones are left out, as the `.ipynb_checkpoints` of notebooks.
    """
    inside = place.iterdir() if place.is_dir() else ()
    return tuple(
        sorted(path.name for path in inside if path.is_dir() and not path.name.startswith("."))
    )


def fits(path: Path) -> bool:
    """Whether a folder has folders of splits."""
    return any((path / split).is_dir() for split in SPLITS)


FORMAT = Format("class folders", "classification", fits, Folders)
