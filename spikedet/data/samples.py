"""Annotated pictures and class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spikedet.errors import DataError, list_choices, shorten

MOST_LETTERS = 255  # of a class name; the name of a folder is no longer


@dataclass(frozen=True)
class Sample:
    """One annotated picture.

    Attributes:
        id: `<dataset>/<picture id>`, for instance `VOC2007/000005`.
        path: The picture.
        width, height: Pixels of the picture as a viewer shows it.
        boxes: [N, 4] float32, x1 y1 x2 y2, 0-based edges in these pixels.
        labels: [N] int64, indices into the class names.
        difficult: [N] bool, objects that count neither as found nor as missed.
        crowd: [N] bool, boxes around many objects; what is detected in one is no false alarm.
        areas: [N] float64, square pixels that say whether an object is small, medium or large:
            those of the boxes, where no annotation says another.
        names: Class names.
    """

    id: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray = None  # type: ignore[assignment]
    areas: np.ndarray = None  # type: ignore[assignment]
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.crowd is None:
            object.__setattr__(self, "crowd", np.zeros(len(self.labels), bool))
        if self.areas is None:
            object.__setattr__(self, "areas", areas_of(self.boxes))


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Areas [N] float64 of boxes [N, 4], square pixels."""
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    return (x2 - x1) * (y2 - y1)


def number_of(name: str, names: Sequence[str], where: Path | str) -> int:
    """Label of a class name.

    Raises:
        DataError: It is none of `names`; says where it stands.
    """
    if name not in names:
        raise DataError(
            f"{where}: unknown class {shorten(name)!r}; "
            f"known classes are {list_choices(name, names)}"
        )
    return names.index(name)


def list_names(names: Sequence[str], most: int = 8) -> str:
    """Class names for a message, not more than so many, none at full length if it is long."""
    shown = ", ".join(shorten(name, 40) for name in names[:most])
    return shown + (", ..." if len(names) > most else "")


def expect_names(names: Sequence[str], where: Path | str) -> tuple[str, ...]:
    """Class names that can be told apart.

    Raises:
        DataError: There are none, an empty one, one of more than `MOST_LETTERS`, or one twice.
    """
    names = tuple(names)
    if not names or not all(names):
        raise DataError(f"{where}: {'an empty class name' if names else 'no class names'}")
    longest = max(names, key=len)
    if len(longest) > MOST_LETTERS:  # tables, drawings and files could not show them
        raise DataError(
            f"{where}: the class name {shorten(longest, 40)!r} is too long; expected at most "
            f"{MOST_LETTERS} characters"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two classes have the name {shorten(twice)!r}")
    return names


def first_error(problems: Sequence[Exception]) -> DataError:
    """The first of several problems, with the number of the others."""
    more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
    return DataError(f"{problems[0]}{more}")
