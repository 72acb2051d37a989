"""Formats of annotated pictures. The format of a path is recognised from its files.

To add a format, write a module in this package with a `FORMAT`, and add the module to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spikedet.data.formats import cifar, coco, folders, voc, yolo
from spikedet.data.formats.base import Boxes, Classes, Format, Labelled, Source
from spikedet.data.samples import Sample, expect_names, list_names
from spikedet.errors import DataError

# The first that fits is taken: folders of splits may hold any of those before them.
FORMATS: tuple[Format, ...] = tuple(module.FORMAT for module in (voc, yolo, coco, cifar, folders))


def recognise(path: Path) -> Format | None:
    """Find the format of the data at a path. None if no format fits."""
    return next((format for format in FORMATS if format.fits(Path(path))), None)


def sources(paths: Sequence[Path], task: str, places: Sequence[Path] = ()) -> list[Source]:
    """Find the data at several paths.

    Args:
        paths: Files or folders.
        task: `detection` or `classification`.
        places: Folders with the pictures, for formats that store annotations without pictures.

    Returns:
        A source for each path. Paths of one format that can be merged share one source.

    Raises:
        DataError: A path has no known format, or its format is for another task.
    """
    groups: list[tuple[Format, list[Path]]] = []
    for path in map(Path, paths):
        format = recognise(path)
        if format is None or format.task != task:
            raise DataError(f"{path}: {_why_unusable(path, format, task)}")
        own = next((group for known, group in groups if known is format and format.merges), None)
        if own is None:
            groups.append((format, [path]))
        else:
            own.append(path)
    return [format.source(group, places) for format, group in groups]


def _why_unusable(path: Path, format: Format | None, task: str) -> str:
    """Explain why a path has no data for a task."""
    if format is not None:
        return f"{format.name}, which is for {format.task}; the network is for {task}"
    if not path.exists():
        return "no such folder or file"
    if task == "classification":
        return f"no class folders or CIFAR here; expected {path}/SPLIT/CLASS/pictures"
    return (
        "no annotated pictures here; expected a VOCdevkit, a data.yaml of YOLO labels or COCO's "
        "instances_*.json"
    )


def usual_split(paths: Sequence[Path], task: str, test: bool) -> str:
    """Find the split that is used if none is named.

    Args:
        paths: Files or folders.
        task: `detection` or `classification`.
        test: True for the split to measure on, False for the split to train on.

    Returns:
        The splits of all sources, joined by +.

    Raises:
        DataError: A source has no usual split, or a path has no data for the task.
    """
    splits: list[str] = []
    for source in sources(paths, task):
        usual = source.usual_split(test)
        if usual is None:
            available = ", ".join(source.splits) or "none"
            raise DataError(
                f"{source.paths[0]}: no default split to {'measure' if test else 'train'} on among "
                f"{available}; name one with --split"
            )
        splits.append(usual)
    return "+".join(dict.fromkeys(splits))


def read_boxes(
    paths: Sequence[Path],
    split: str,
    *,
    names: Sequence[str] | None = None,
    limit: int | None = None,
    places: Sequence[Path] = (),
) -> list[Sample]:
    """Read pictures with boxes, in any formats.

    Args:
        paths: Files or folders.
        split: Splits, joined by +. If there are several data sets, each reads the splits that it
            has.
        names: Class names in the order of the labels. None: the class names of the data.
        limit: Largest number of pictures. None: all pictures.
        places: Folders with the pictures, for formats that store annotations without pictures.

    Returns:
        Samples. Each has the class names that its labels refer to.

    Raises:
        DataError: Something is missing or damaged, or an object has a class that is not in `names`.
    """
    data_sets = [
        source for source in sources(paths, "detection", places) if isinstance(source, Boxes)
    ]
    wanted = split.split("+")
    lost = [part for part in wanted if not any(source.has(part) for source in data_sets)]
    if len(data_sets) > 1 and lost:
        raise DataError(f"--split {split}: no data set here has {lost[0]}")
    samples: list[Sample] = []
    for source in data_sets:
        parts = [part for part in wanted if len(data_sets) == 1 or source.has(part)]
        if not parts:
            raise DataError(f"{source.paths[0]}: --split {split} names none of its splits")
        left = None if limit is None else limit - len(samples)
        if left == 0:
            break
        samples += source.read("+".join(parts), names, left)
        if samples[0].names != samples[-1].names:
            raise DataError(
                f"{source.paths[0]}: has the classes {list_names(samples[-1].names)}, but "
                f"{data_sets[0].paths[0]} has {list_names(samples[0].names)}; "
                "name all classes with --names"
            )
    return samples


__all__ = [
    "FORMATS",
    "Boxes",
    "Classes",
    "Format",
    "Labelled",
    "Source",
    "expect_names",
    "read_boxes",
    "recognise",
    "sources",
    "usual_split",
]
