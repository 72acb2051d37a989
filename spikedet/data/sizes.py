"""Convert boxes to the pixels of the picture files, if the annotations are for another size.

This is needed if pictures were resized without their annotations, or if boxes are in stored pixels
and not in the pixels that a viewer shows (rotation tag). The size is read from the header of the
file. If it is not clear how the boxes must be changed, the annotations are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spikedet.data.cache import read_each
from spikedet.data.samples import Sample, first_error
from spikedet.errors import DataError, counted, shorten
from spikedet.pictures import Header, read_header

IGNORED = "with a rotation tag that the annotations ignore; the boxes are rotated too"


def headers(
    paths: Sequence[Path], name: str, place: Path, cache: Path | None = None
) -> list[Header | DataError]:
    """Read the size and the rotation of every picture, or its error. The results are cached.

    See `read_each` for the arguments.
    """
    entries = read_each(paths, read_header, f"{name}-headers", place, cache)
    return [each if isinstance(each, DataError) else Header(*each) for each in entries]


def fit_to_pictures(
    samples: Sequence[Sample], name: str, place: Path, cache: Path | None = None
) -> list[Sample]:
    """Give samples the size of their pictures, and convert their boxes to these pixels.

    An annotated size of 0 x 0 means that the size is unknown. If the annotated size is a scaled
    picture size, the boxes are scaled. If it is the size of the stored pixels, the boxes are
    rotated. A warning counts the changed pictures.

    With some rotation tags the sizes are equal. If the sizes of the other pictures show that the
    annotations ignore the tags, these boxes are rotated too. Otherwise they are taken as boxes of
    the rotated pictures, and a warning counts them.

    Args:
        samples: Samples with the annotated sizes and boxes.
        name: Name of the data, for the warnings.
        place: Folder that the data belong to.
        cache: Folder for the cache of the headers. None: `cache_folder()`.

    Raises:
        DataError: A picture is missing or unreadable, or its size does not fit its annotation.
    """
    adjusted, problems = [], []
    changes: dict[str, list[str]] = {}
    seen = headers([sample.path for sample in samples], name, place, cache)
    ignored = _ignore_tags(samples, seen)
    for sample, header in zip(samples, seen, strict=True):
        try:
            if isinstance(header, DataError):
                raise header
            fitted, change = _fitted(sample, header, ignored)
        except DataError as error:
            problems.append(error)
            continue
        adjusted.append(fitted)
        if change:
            sizes = f": {fitted.width} x {fitted.height}, not {sample.width} x {sample.height}"
            equal = (fitted.width, fitted.height) == (sample.width, sample.height)
            changes.setdefault(change, []).append(sample.path.name + ("" if equal else sizes))
    if problems:
        raise first_error(problems)
    for change, pictures in changes.items():
        number = counted(len(pictures), "picture")
        warnings.warn(f"{name}: {number} {change} ({pictures[0]})", stacklevel=2)
    tagged = [
        sample.path.name
        for sample, header in zip(samples, seen, strict=True)
        if not isinstance(header, DataError) and len(sample.boxes) and _is_ambiguous(sample, header)
    ]
    if tagged and not ignored:
        warn_of_tags(name, tagged)
    return adjusted


def warn_of_tags(name: str, pictures: Sequence[str]) -> None:
    """Warn that boxes were taken as boxes of the rotated pictures."""
    warnings.warn(
        f"{name}: {counted(len(pictures), 'picture')} with a rotation tag; the boxes are read as "
        f"boxes of the rotated picture, as a viewer shows it ({pictures[0]})",
        stacklevel=3,
    )


def _is_ambiguous(sample: Sample, header: Header) -> bool:
    """Whether a picture has a rotation tag, and the annotated size fits with and without it."""
    if header.turn == 1:
        return False
    annotated, shown = (sample.width, sample.height), (header.width, header.height)
    both = _is_scaled(annotated, header.stored) and _is_scaled(annotated, shown)
    return annotated == (0, 0) or both


def _ignore_tags(samples: Sequence[Sample], seen: Sequence[Header | DataError]) -> bool:
    """Whether the sizes show that the annotations ignore rotation tags: some do, and all of them.

    Only tags that exchange width and height show this.
    """
    shows = {
        _is_scaled((sample.width, sample.height), (header.width, header.height))
        for sample, header in zip(samples, seen, strict=True)
        if not isinstance(header, DataError)
        and header.turn >= 5
        and not _is_ambiguous(sample, header)
    }
    return shows == {False}


def _fitted(sample: Sample, header: Header, ignored: bool) -> tuple[Sample, str | None]:
    """Fit one sample to its picture. Returns the sample and a description of the change.

    Args:
        sample: The sample.
        header: Size and rotation of its picture.
        ignored: Whether the annotations of the other pictures ignore rotation tags.
    """
    size, annotated = (header.width, header.height), (sample.width, sample.height)
    if ignored and len(sample.boxes) and _is_ambiguous(sample, header):
        width, height = header.stored if annotated == (0, 0) else annotated
        whole = _scaled(replace(sample, width=width, height=height), header.stored)
        return rotate_sample(whole, header.turn), IGNORED
    if annotated == size:
        return sample, None
    if annotated == (0, 0):
        change = "with annotations without a size; the size of the picture file is used"
        return replace(sample, width=size[0], height=size[1]), change
    if _is_scaled(annotated, size) and annotated != header.stored:
        change = "with another size than in the annotations; the boxes are scaled to it"
        return _scaled(sample, size), change
    if header.turn >= 5 and _is_scaled(annotated, header.stored):
        return rotate_sample(_scaled(sample, header.stored), header.turn), IGNORED
    raise DataError(
        f"{sample.path}: has {size[0]} x {size[1]} pixels, but its annotation is for "
        f"{shorten(annotated[0])} x {shorten(annotated[1])}, which is another shape; use the "
        "annotation of this picture"
    )


def _is_scaled(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes can be those of one picture at two scales, with sides rounded."""
    low = max((b - 1) / a if a > 0 else np.inf for a, b in zip(one, other, strict=True))
    high = min((b + 1) / a if a > 0 else 0.0 for a, b in zip(one, other, strict=True))
    return low < high


def _scaled(sample: Sample, size: tuple[int, int]) -> Sample:
    """Scale a sample to a picture that was resized to `size`."""
    scale = np.array([size[0] / sample.width, size[1] / sample.height] * 2)
    boxes = (sample.boxes * scale).astype(np.float32)
    areas = sample.areas * (scale[0] * scale[1])
    return replace(sample, width=size[0], height=size[1], boxes=boxes, areas=areas)


def rotate_sample(sample: Sample, turn: int) -> Sample:
    """Convert a sample from stored pixels to the pixels that a viewer shows.

    Args:
        sample: Sample with boxes and size in stored pixels.
        turn: Rotation tag (EXIF orientation), 1 to 8.
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
