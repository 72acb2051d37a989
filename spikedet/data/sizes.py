"""Convert boxes to the pixels of the picture files, if annotations are for another size.

Pictures are resized without their annotations, or annotated as they are stored and not as their
rotation tag shows them. Their headers say their true size; boxes are carried over where it is plain
how, and the annotations refused where it is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spikedet.data.cache import read_each
from spikedet.data.samples import Sample, first_error
from spikedet.errors import DataError, shorten
from spikedet.pictures import Header, read_header


def headers(
    paths: Sequence[Path], name: str, place: Path, cache: Path | None = None
) -> list[Header | DataError]:
    """Size and rotation of every picture, or what is wrong with it; kept as of `read_each`."""
    entries = read_each(paths, read_header, f"{name}-headers", place, cache)
    return [each if isinstance(each, DataError) else Header(*each) for each in entries]


def fit_to_pictures(
    samples: Sequence[Sample], name: str, place: Path, cache: Path | None = None
) -> list[Sample]:
    """Samples with the size of their pictures as they are shown, and boxes in these pixels.

    A size of 0 x 0 is none. Boxes of another size are scaled where one picture can be a scaled copy
    of the other, and turned where it is that of the stored pixels; a warning says of how many
    pictures.

    Args:
        samples: With sizes and boxes as annotated.
        name: Of what was read, for the warning.
        place: The folder that it belongs to.
        cache: Folder for what headers say.

    Raises:
        DataError: A picture that is missing or cannot be read, or one whose size has nothing to do
            with that of its annotation.
    """
    adjusted, problems = [], []
    changes: dict[str, list[str]] = {}
    seen = headers([sample.path for sample in samples], name, place, cache)
    for sample, header in zip(samples, seen, strict=True):
        try:
            if isinstance(header, DataError):
                raise header
            fitted, change = _fitted(sample, header)
        except DataError as error:
            problems.append(error)
            continue
        adjusted.append(fitted)
        if change:
            sizes = f"{fitted.width} x {fitted.height}, not {sample.width} x {sample.height}"
            changes.setdefault(change, []).append(f"{sample.path.name}: {sizes}")
    if problems:
        raise first_error(problems)
    for change, pictures in changes.items():
        warnings.warn(f"{name}: {_counted(len(pictures))} {change} ({pictures[0]})", stacklevel=2)
    tagged = [
        sample.path.name
        for sample, header in zip(samples, seen, strict=True)
        if not isinstance(header, DataError) and len(sample.boxes) and _is_ambiguous(sample, header)
    ]
    if tagged:
        warn_of_tags(name, tagged)
    return adjusted


def warn_of_tags(name: str, pictures: Sequence[str]) -> None:
    """Say that boxes were taken as those of the pictures as they are shown."""
    warnings.warn(
        f"{name}: {_counted(len(pictures))} with a rotation tag; the boxes are read as boxes of "
        f"the rotated picture, as a viewer shows it ({pictures[0]})",
        stacklevel=3,
    )


def _counted(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _is_ambiguous(sample: Sample, header: Header) -> bool:
    """Whether a tag turns or mirrors a picture, and the annotated size is of either way round."""
    if header.turn == 1:
        return False
    annotated, shown = (sample.width, sample.height), (header.width, header.height)
    both = _is_scaled(annotated, header.stored) and _is_scaled(annotated, shown)
    return annotated == (0, 0) or both


def _fitted(sample: Sample, header: Header) -> tuple[Sample, str | None]:
    """A sample on its picture, and what was done to it, in words."""
    size, annotated = (header.width, header.height), (sample.width, sample.height)
    if annotated == size:
        return sample, None
    if annotated == (0, 0):
        change = "with annotations without a size; the size of the picture file is used"
        return replace(sample, width=size[0], height=size[1]), change
    if _is_scaled(annotated, size) and annotated != header.stored:
        change = "with another size than in the annotations; the boxes are scaled to it"
        return _scaled(sample, size), change
    if header.turn >= 5 and _is_scaled(annotated, header.stored):
        change = "with a rotation tag that the annotations ignore; the boxes are rotated too"
        return rotate_sample(_scaled(sample, header.stored), header.turn), change
    raise DataError(
        f"{sample.path}: has {size[0]} x {size[1]} pixels, but its annotation is for "
        f"{shorten(annotated[0])} x {shorten(annotated[1])}, which is another shape; use the "
        "annotation of this picture"
    )


def _is_scaled(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether both sizes can be of one picture at two scales, sides rounded up or down."""
    low = max((b - 1) / a if a > 0 else np.inf for a, b in zip(one, other, strict=True))
    high = min((b + 1) / a if a > 0 else 0.0 for a, b in zip(one, other, strict=True))
    return low < high


def _scaled(sample: Sample, size: tuple[int, int]) -> Sample:
    """A sample of a picture that is resized to `size`."""
    scale = np.array([size[0] / sample.width, size[1] / sample.height] * 2)
    boxes = (sample.boxes * scale).astype(np.float32)
    areas = sample.areas * (scale[0] * scale[1])
    return replace(sample, width=size[0], height=size[1], boxes=boxes, areas=areas)


def rotate_sample(sample: Sample, turn: int) -> Sample:
    """A sample of stored pixels as a viewer shows its picture.

    Args:
        sample: Boxes in stored pixels, whose size it has.
        turn: The rotation tag, 1 to 8.
    """
    width, height = sample.width, sample.height
    x1, y1, x2, y2 = sample.boxes.T
    if turn in (2, 3, 7, 8):  # mirrored from left to right
        x1, x2 = width - x2, width - x1
    if turn in (3, 4, 6, 7):  # and from top to bottom
        y1, y2 = height - y2, height - y1
    if turn >= 5:  # and its axes exchanged
        x1, y1, x2, y2 = y1, x1, y2, x2
        width, height = height, width
    boxes = np.stack([x1, y1, x2, y2], axis=1)
    return replace(sample, width=width, height=height, boxes=boxes)
