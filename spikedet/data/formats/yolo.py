"""YOLO labels: a text file for each picture, described by ultralytics' `data.yaml`.

    names: [circle, square]        or {0: circle, 1: square}; without it, use --names
    path: shapes                   base folder of the next entries; default: the folder of the file
    train: images/train            a folder, a text file with one picture a line, or a list of such
    val: images/val

The label file of `.../images/train/1.jpg` is `.../labels/train/1.txt`. It has one line for each
object: the class number, then x and y of the centre, width and height as fractions of the picture
size, or the corners of a polygon. A picture without a label file has no objects. A folder with
`images` and `labels` needs no `data.yaml`. ultralytics' own reader is not used, because it writes
files next to the labels and repairs pictures in place.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spikedet.data.cache import read_each
from spikedet.data.formats.base import Boxes, Format
from spikedet.data.samples import (
    Sample,
    expect_names,
    first_error,
    number_of,
    without_empty_boxes,
)
from spikedet.data.sizes import headers, warn_of_tags
from spikedet.errors import DataError, counted, list_choices, shorten
from spikedet.files import TooManyValues, parse_yaml, read_lines
from spikedet.picture_files import pictures_in
from spikedet.pictures import is_picture

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
KEYS = {key: split for split, keys in SPLITS.items() for key in keys}
NAMES = ("classes.txt", "obj.names", "_darknet.labels")  # beside labels without a data.yaml
NOTHING = ("", "~", "null", "Null", "NULL")  # in YAML
BEYOND = 0.01  # fraction of the side that a label may exceed, as in ultralytics


class Labels(Boxes):
    """The data that a `data.yaml` describes, or a folder with `images` and `labels`."""

    def __init__(self, paths: Sequence[Path], places: Sequence[Path] = ()):
        super().__init__(paths, places)
        self.path = _description_in(self.paths[0]) or self.paths[0]
        self.described = self.path.is_file()
        self.data = _read_yaml(self.path) if self.described else _bare(self.path)

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have pictures."""
        return [split for split in SPLITS if self._entry(split)]

    def usual_split(self, test: bool) -> str | None:
        """See `Source.usual_split`. To measure, it is `val`, or else `test`."""
        wanted = ("val", "test") if test else ("train",)
        return next((split for split in wanted if self._entry(split)), None)

    def has(self, part: str) -> bool:
        """Whether the description has this split."""
        return bool(self._entry(KEYS.get(part, "")))

    def read(self, split: str, names: Sequence[str] | None, limit: int | None) -> list[Sample]:
        """See `Boxes.read`."""
        own = self._names()
        if own is None:
            if names is None:
                raise DataError(f"{self.path}: no class names; give them with --names")
            own = tuple(names)
        names = own if names is None else tuple(names)
        pictures = list(dict.fromkeys(p for part in split.split("+") for p in self._part(part)))
        pictures = pictures[:limit]
        root = self.path.parent if self.described else self.path
        title = f"{root.absolute().name}-{split}"
        sizes = headers(pictures, title, root)
        labels = [label_of(picture) for picture in pictures]
        existing = [label for label in labels if os.path.exists(label)]
        kind = f"{title}-keypoints" if self._given("kpt_shape") else title
        rows = dict(zip(existing, read_each(existing, self._rows, kind, root), strict=True))
        samples, problems, turned = [], [], []
        for picture, header, label in zip(pictures, sizes, labels, strict=True):
            objects = rows.get(label, [])
            try:
                if isinstance(header, DataError):
                    raise header
                if isinstance(objects, DataError):
                    raise objects
                sample = _sample(picture, root, header[:2], objects, own, names, label)
            except DataError as error:
                problems.append(error)
                continue
            samples.append(sample)
            if header.turn > 1 and objects:
                turned.append(picture.name)
        if problems:
            raise first_error(problems)
        if not existing:
            raise DataError(
                f"{labels[0]}: no such label file; all {len(labels)} label files of {split} are "
                "missing; expected them in `labels` beside `images`, or beside the pictures"
            )
        bare = [p.name for p, label in zip(pictures, labels, strict=True) if label not in rows]
        if bare:
            number = counted(len(bare), "picture")
            words = f"{title}: {number} without a label file, read as without objects ({bare[0]})"
            warnings.warn(words, stacklevel=2)
        if turned:
            warn_of_tags(title, turned)
        return without_empty_boxes(samples, title)

    def _given(self, key: str) -> Any:
        """A value of the description. None if it is missing or null."""
        value = self.data.get(key)
        return None if value in NOTHING else value

    def _names(self) -> tuple[str, ...] | None:
        """The class names of the description. None if it has none."""
        names = self._given("names")
        if not names:
            return None
        if isinstance(names, dict):
            numbers = sorted(names, key=lambda key: (len(key), key))
            if numbers != [str(number) for number in range(len(names))]:
                raise DataError(
                    f"{self.path}: class numbers {shorten(', '.join(numbers))}; expected each "
                    f"number from 0 to {len(names) - 1} once"
                )
            names = [names[number] for number in numbers]
        if not isinstance(names, list) or any(not isinstance(name, str) for name in names):
            raise DataError(f"{self.path}: names is not a list of class names")
        names = expect_names([name.strip() for name in names], self.path)
        count = self.data.get("nc")
        if count and count != str(len(names)):
            raise DataError(
                f"{self.path}: nc is {shorten(count)}, but there are {len(names)} names"
            )
        return names

    def _entry(self, split: str) -> list[str]:
        """The files and folders of a split in the description."""
        values = (self._given(key) for key in SPLITS.get(split, ()))
        value: str | list[Any] = next(filter(None, values), [])
        return [value] if isinstance(value, str) else [str(each) for each in value]

    def _part(self, split: str) -> Iterator[Path]:
        """The pictures of one split."""
        entries = self._entry(KEYS.get(split, ""))
        if not entries:
            available = list_choices(split, self.splits) or "none"
            raise DataError(f"{self.path}: no split {shorten(split)!r}; there are {available}")
        for entry in entries:
            place = self._resolved(entry)
            if place is None:
                raise DataError(f"{self.path}: {split}: {shorten(entry)}: no such file or folder")
            if place.is_dir():
                pictures, unreadable = pictures_in(place, deep=True)
                if unreadable:
                    raise unreadable
            else:
                pictures = self._listed(place)
            if not pictures:
                raise DataError(f"{place}: no pictures here")
            yield from pictures

    def _listed(self, place: Path) -> list[Path]:
        """The pictures that a text file lists, or the picture itself."""
        if is_picture(place):
            return [place]
        pictures = []
        for line in filter(None, read_lines(place, "list of pictures")):
            tries = [place.parent / line, *(root / line for root in self._roots()), Path(line)]
            picture = next(filter(os.path.exists, tries), None)
            if picture is None:
                raise DataError(f"{place}: {shorten(line)}: no such picture")
            pictures.append(picture)
        return pictures

    def _roots(self) -> list[Path]:
        """Folders that entries of the description may be relative to, the most likely one first."""
        beside = self.path.parent if self.described else self.path
        path = self._given("path")
        if not path:
            return [beside]
        return [beside / path, beside.parent / path, Path(path), beside]

    def _resolved(self, entry: str) -> Path | None:
        """Find the file or folder of an entry. As in ultralytics, `../` may be left out."""
        tries = [entry] + ([entry[3:]] if entry.startswith("../") else [])
        places = (root / each for each in tries for root in self._roots())
        path = next(filter(os.path.exists, places), None)
        return path and Path(os.path.normpath(path))

    def _rows(self, path: Path) -> list[list[float]]:
        """Read a label file: class number, and edges x1 y1 x2 y2 as fractions of the sides."""
        keypoints = bool(self._given("kpt_shape"))
        if not path.is_file():  # a pipe would wait for somebody to write into it
            raise DataError(f"{path}: is not a file; expected labels")
        rows = []
        for number, line in enumerate(read_lines(path, "labels"), 1):
            if not line:
                continue
            try:
                label, *values = (float(word) for word in line.split())
                row = _row(label, values[:4] if keypoints else values)
            except (ValueError, OverflowError):
                raise DataError(
                    f"{path}: line {number}: {shorten(line)!r}; expected a class number and four "
                    "parts of the picture, or a polygon's corners, each of 0 to 1"
                ) from None
            if row not in rows:  # as ultralytics, which takes an object twice for a slip
                rows.append(row)
        return rows


def _row(label: float, values: Sequence[float]) -> list[float]:
    """Convert the numbers of one line to the class number and the edges of the box.

    Raises:
        ValueError: The numbers are not a label.
    """
    numbers = np.array(values)
    if len(numbers) % 2 or len(numbers) < 4 or label < 0 or label != int(label):
        raise ValueError
    if not ((numbers >= -BEYOND) & (numbers <= 1 + BEYOND)).all():  # NaN is in no range
        raise ValueError
    if len(numbers) == 4:
        centre, half = numbers[:2], numbers[2:] / 2
        if (half < 0).any():
            raise ValueError
        edges = np.concatenate([centre - half, centre + half])
    else:
        corners = numbers.reshape(-1, 2)
        edges = np.concatenate([corners.min(0), corners.max(0)])
    return [int(label), *np.clip(edges, 0, 1).tolist()]


def _sample(
    picture: Path,
    root: Path,
    size: tuple[int, int],
    objects: Sequence[Sequence[float]],
    own: Sequence[str],
    names: tuple[str, ...],
    label: Path,
) -> Sample:
    """Make a sample from the rows of its label file."""
    for number, *_ in objects:
        if number >= len(own):
            raise DataError(
                f"{label}: class {number:.0f}; there are {len(own)} classes, numbered from 0"
            )
    edges = np.array([row[1:] for row in objects], np.float64).reshape(-1, 4)
    labels = [number_of(own[int(row[0])], names, label) for row in objects]
    return Sample(
        id=f"{root.absolute().name}/{_relative(picture, root)}",
        path=picture,
        width=size[0],
        height=size[1],
        boxes=(edges * [*size, *size]).astype(np.float32),
        labels=np.array(labels, np.int64),
        difficult=np.zeros(len(labels), bool),
        names=names,
    )


def _relative(picture: Path, root: Path) -> str:
    """The path of a picture relative to a folder, without suffix."""
    return Path(os.path.relpath(picture, root)).with_suffix("").as_posix()


def label_of(picture: Path) -> Path:
    """Path of the label file of a picture: the last `images` in its path becomes `labels`."""
    parts = list(picture.absolute().parent.parts)
    if "images" not in parts:
        return picture.with_suffix(".txt")
    last = len(parts) - 1 - parts[::-1].index("images")
    parts[last] = "labels"
    return Path(*parts, f"{picture.stem}.txt")


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a `data.yaml`. Values stay texts, so that a class can be called `no` or `007`."""
    if path.exists() and not path.is_file():  # a pipe would wait for somebody to write into it
        raise DataError(f"{path}: is not a file; expected names, train and val")
    try:
        content = parse_yaml(path.read_bytes(), texts=True)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except TooManyValues as error:
        raise DataError(f"{path}: {error}") from None
    if content is None:
        raise DataError(f"{path}: not readable as YAML; expected names, train and val")
    return content


def _bare(folder: Path) -> dict[str, Any]:
    """Make the description of a folder that has `images` and `labels` but no `data.yaml`."""
    data: dict[str, Any] = {}
    for split, keys in SPLITS.items():
        tries = [path for key in keys for path in (f"images/{key}", f"{key}/images")]
        data[split] = next((path for path in tries if (folder / path).is_dir()), "")
    if not any(data.values()):
        data["train"] = "images"
    listed = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if listed is not None:
        data["names"] = [name for name in read_lines(listed, "class names") if name]
    return data


def _description_in(path: Path) -> Path | None:
    """Find the `data.yaml` of a path: the file itself, or a file in the folder."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".yaml", ".yml"))
    files.sort(key=lambda p: p.stem != "data")
    for file in files:
        try:
            data = _read_yaml(file)
        except DataError:
            if file.stem == "data" and file.is_file():
                raise
            continue
        if ("names" in data or "nc" in data) and any(
            key in data for keys in SPLITS.values() for key in keys
        ):
            return file
    return None


def fits(path: Path) -> bool:
    """Whether a file is a `data.yaml`, or a folder has one, or has `images` and `labels`."""
    if _description_in(path):
        return True
    pairs = [(path / "images", path / "labels")]
    pairs += [
        (path / key / "images", path / key / "labels") for keys in SPLITS.values() for key in keys
    ]
    return any(images.is_dir() and labels.is_dir() for images, labels in pairs)


FORMAT = Format("YOLO labels", "detection", fits, Labels)
