"""Annotated pictures and class names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spikedet.errors import DataError, counted, list_choices, shorten

MOST_LETTERS = 255  # of a class name; the name of a folder is no longer


@dataclass(frozen=True)
class Sample:
    """One annotated picture with N objects.

    Attributes:
        id: `<dataset>/<picture id>`, for example `VOC2007/000005`.
        path: The picture file.
        width, height: Size of the picture in pixels, as a viewer shows it.
        boxes: [N, 4] float32: x1 y1 x2 y2, 0-based edges in these pixels.
        labels: [N] int64, indices into the class names.
        difficult: [N] bool. Difficult objects count neither as found nor as missed.
        crowd: [N] bool. A crowd box contains many objects. Detections in it are not false
            positives.
        areas: [N] float64, areas in square pixels that decide whether an object is small, medium or
            large. Default: the areas of the boxes.
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


def without_empty_boxes(samples: Sequence[Sample], name: str) -> list[Sample]:
    """Leave out boxes without width or height. A warning counts them.

    Nothing can be found there, but each would count as an object that was missed.

    Args:
        samples: The samples.
        name: Name of the data, for the warning.
    """
    kept, left = [], []
    for sample in samples:
        there = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)
        if not there.all():
            left += [sample.path.name] * int((~there).sum())
            fields = ("boxes", "labels", "difficult", "crowd", "areas")
            sample = replace(sample, **{name: getattr(sample, name)[there] for name in fields})
        kept.append(sample)
    if left:
        words = f"{name}: {counted(len(left), 'box')} without width or height left out ({left[0]})"
        warnings.warn(words, stacklevel=3)
    return kept


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Areas [N] float64 of boxes [N, 4], in square pixels."""
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    return (x2 - x1) * (y2 - y1)


def number_of(name: str, names: Sequence[str], where: Path | str) -> int:
    """The label of a class name.

    Args:
        name: Class name.
        names: Known class names in the order of the labels.
        where: Place of the class name, for the message.

    Raises:
        DataError: The class is unknown.
    """
    if name not in names:
        raise DataError(
            f"{where}: unknown class {shorten(name)!r}; "
            f"known classes are {list_choices(name, names)}"
        )
    return names.index(name)


def list_names(names: Sequence[str], most: int = 8) -> str:
    """List class names for a message: at most `most` names, and long names are shortened."""
    shown = ", ".join(shorten(name, 40) for name in names[:most])
    return shown + (", ..." if len(names) > most else "")


def expect_names(names: Sequence[str], where: Path | str) -> tuple[str, ...]:
    """Check that class names are usable, and return them as a tuple.

    Raises:
        DataError: There are no names, a name is empty or has more than `MOST_LETTERS` characters,
            or two names are equal.
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
    """Make an error of the first of several errors and the number of the others."""
    more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
    return DataError(f"{problems[0]}{more}")
