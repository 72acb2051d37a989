"""COCO annotations: `instances_*.json`, read by pycocotools, and the pictures that it lists.

    FOLDER/annotations/instances_SPLIT.json     pictures in FOLDER/SPLIT, FOLDER/images/SPLIT,
                                                FOLDER/images or FOLDER, or in --images
    FOLDER/SPLIT/_annotations.coco.json         pictures in the same folder

A single file is one split. In a folder, each file is a split, named after the file. Crowd boxes are
stored separately: they are not used for training, and the evaluation ignores them like COCO's.
Whether an object is small, medium or large depends on the `area` of its annotation.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikedet.data.formats.base import Boxes, Format
from spikedet.data.samples import (
    Sample,
    expect_names,
    first_error,
    number_of,
    without_empty_boxes,
)
from spikedet.data.sizes import fit_to_pictures
from spikedet.errors import DataError, counted, list_choices, shorten

if TYPE_CHECKING:
    from pycocotools.coco import COCO

ORDER = {False: ("train",), True: ("val", "valid", "test")}  # usual splits: to train, to measure


class Instances(Boxes):
    """One `instances_*.json` file, or all such files in a folder."""

    def __init__(self, paths: Sequence[Path], places: Sequence[Path] = ()):
        super().__init__(paths, places)
        self.path = self.paths[0]
        self.files = _files_of(self.path)

    @property
    def splits(self) -> list[str]:
        """The names of the splits (see the module)."""
        return list(self.files)

    def usual_split(self, test: bool) -> str | None:
        """The split of the file; of a folder, the first split that starts with a usual name."""
        if self.path.is_file():
            return _split_of(self.path)
        matching = (s for wanted in ORDER[test] for s in self.files if s.startswith(wanted))
        return next(matching, None)

    def has(self, part: str) -> bool:
        """Whether a split name starts with this name."""
        return any(name.startswith(part) for name in self.files)

    def read(self, split: str, names: Sequence[str] | None, limit: int | None) -> list[Sample]:
        """See `Boxes.read`."""
        samples: dict[tuple[str, Path], Sample] = {}  # a.jpg and a.png have one id
        own: tuple[str, ...] | None = None
        for part in split.split("+"):
            file = self._file(part)
            coco = _load(file)
            classes = _names_of(coco, file)
            if own not in (None, classes):
                raise DataError(
                    f"{file}: its classes differ from those of the other splits; expected the same"
                )
            own = classes
            left = None if limit is None else limit - len(samples)
            if left == 0:
                break
            for sample in _samples(coco, file, names or own, self._places(file), left):
                samples.setdefault((sample.id, sample.path), sample)
        return list(samples.values())

    def _file(self, split: str) -> Path:
        """The file of a split. The start of its name is enough: `train` finds `train2017`."""
        if split in self.files:
            return self.files[split]
        begun = [name for name in self.files if name.startswith(split)] if split else []
        if len(begun) != 1:
            available = list_choices(split, self.files) or "none"
            raise DataError(f"{self.path}: no split {shorten(split)!r}; there are {available}")
        return self.files[begun[0]]

    def _places(self, file: Path) -> list[Path]:
        """Folders that may contain the pictures of a file."""
        split = _split_of(file)
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        bare = re.sub(r"\d+$", "", split)
        names = [split, f"images/{split}", bare, f"images/{bare}", "images", "JPEGImages", "."]
        return [*self.places, *(root / name for name in names), file.parent]


def _files_of(path: Path) -> dict[str, Path]:
    """The annotation files of a path, by split."""
    if path.is_file():
        return {_split_of(path): path}
    patterns = ("annotations/instances_*.json", "instances_*.json", "*/_annotations.coco.json")
    files = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    return {_split_of(file): file for file in files[::-1]}


def _split_of(file: Path) -> str:
    """The split of a file: `val2017` for `instances_val2017.json`, else the name of its folder."""
    if file.name == "_annotations.coco.json":
        return file.absolute().parent.name
    return file.stem.removeprefix("instances_")


def _load(file: Path) -> COCO:
    """Read a file with pycocotools.

    Raises:
        DataError: The file is missing or damaged, has no COCO annotations, an annotation lacks an
            id, or two entries share an id.
    """
    from pycocotools.coco import COCO

    if file.exists() and not file.is_file():  # a pipe would wait for somebody to write into it
        raise DataError(f"{file}: is not a file; expected COCO's annotations")
    coco = COCO()
    try:
        with file.open() as opened:
            coco.dataset = json.load(opened)
        lists = [coco.dataset[key] for key in ("images", "annotations", "categories")]
        if not all(isinstance(entry, dict) for each in lists for entry in each):
            raise TypeError
        _expect_ids(coco.dataset["annotations"], file)
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({shorten(error)})") from None
    except (AssertionError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{file}: not COCO's annotations; expected images, annotations with boxes, categories"
        ) from None
    for kind, by_id in (("images", coco.imgs), ("categories", coco.cats)):
        # if two entries share an id, pycocotools takes the last one without a warning
        if any(by_id[entry["id"]] != entry for entry in coco.dataset[kind]):
            raise DataError(f"{file}: two {kind} have the same id; expected different ids")
    return coco


def _expect_ids(annotations: Sequence[dict[str, Any]], file: Path) -> None:
    """Check that each annotation has the ids by which pycocotools sorts it.

    Raises:
        DataError: One lacks an id. The message gives its place in the list, counted from 0.
    """
    for index, one in enumerate(annotations):
        for key in ("id", "image_id", "category_id"):
            if key not in one:
                which = _named(one) if "id" in one else f"annotations[{index}]"
                raise DataError(f"{file}: {which} has no {key}")


def _named(one: dict[str, Any]) -> str:
    """An annotation in a message, by its id."""
    return f"annotation {shorten(repr(one['id']), 40)}"


def _warn_of_lost(coco: COCO, file: Path) -> None:
    """Warn about annotations whose picture is not in the file.

    Raises:
        DataError: No annotation belongs to a picture of the file. This happens if ids are texts in
            one list and numbers in the other.
    """
    annotations = coco.dataset["annotations"]
    lost = [each for each in annotations if each["image_id"] not in coco.imgs]
    if not lost:
        return
    first = f"{_named(lost[0])}, image_id {shorten(repr(lost[0]['image_id']))}"
    if len(lost) == len(annotations):
        raise DataError(
            f"{file}: no annotation belongs to one of its pictures ({first} is not among the ids "
            "of images)"
        )
    number = counted(len(lost), "annotation")
    words = f"{_split_of(file)}: left out {number} for pictures that are not in it ({first})"
    warnings.warn(words, stacklevel=2)


def _names_of(coco: COCO, file: Path) -> tuple[str, ...]:
    """Class names in the order of the category ids."""
    try:
        ordered = [coco.cats[number]["name"] for number in sorted(coco.cats)]
    except (KeyError, TypeError):
        raise DataError(f"{file}: a category has no id or no name") from None
    return expect_names([str(name) for name in ordered], file)


def _samples(
    coco: COCO, file: Path, names: Sequence[str], places: Sequence[Path], limit: int | None
) -> list[Sample]:
    """Make the samples of a file, in the order of its pictures."""
    images = list(coco.imgs.values())[:limit]
    if not images:
        raise DataError(f"{file}: this file lists no pictures")
    _warn_of_lost(coco, file)
    labels = {}
    for number, category in coco.cats.items():
        name = str(category["name"])
        labels[number] = names.index(name) if name in names else name
    place = _place_of(images, file, places)
    samples, problems = [], []
    for image in images:
        try:
            samples.append(_sample(image, coco.imgToAnns[image["id"]], labels, names, place, file))
        except DataError as error:
            problems.append(error)
    if problems:
        raise first_error(problems)
    samples = without_empty_boxes(samples, _split_of(file))
    samples = fit_to_pictures(samples, _split_of(file), place)
    beyond = []
    for image, sample in zip(images, samples, strict=True):
        size = np.array([sample.width, sample.height])
        outside = ~((sample.boxes[:, :2] < size) & (sample.boxes[:, 2:] > 0)).all(1)
        wide = (sample.boxes[:, :2] < -1).any(1) | (sample.boxes[:, 2:] > size + 1).any(1)
        if not (outside | wide).any():
            continue
        own = [one for one in coco.imgToAnns[image["id"]] if not _is_empty(one)]
        if outside.any():
            raise DataError(
                f"{file}: {sample.path.name}: {_named(own[outside.argmax()])}: a box lies outside "
                f"its picture of {sample.width} x {sample.height} pixels"
            )
        beyond.append(f"{sample.path.name}, {_named(own[wide.argmax()])}")
    if beyond:
        number = counted(len(beyond), "picture")
        words = f"{_split_of(file)}: {number} with boxes outside the picture ({beyond[0]})"
        warnings.warn(words, stacklevel=2)
    return samples


def _is_empty(one: dict[str, Any]) -> bool:
    """Whether the box of an annotation was left out by `without_empty_boxes`."""
    return not (_edges(one)[2:] > _edges(one)[:2]).all()


def _edges(one: dict[str, Any]) -> np.ndarray:
    """The box of an annotation as float32 edges [4]: x1 y1 x2 y2, in pixels.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: It has no such box.
    """
    x, y, width, height = (float(value) for value in one["bbox"])
    if not (np.isfinite([x, y, width, height]).all() and width >= 0 and height >= 0):
        raise ValueError
    return np.array([x, y, x + width, y + height]).astype(np.float32)


def _place_of(images: Sequence[dict[str, Any]], file: Path, places: Sequence[Path]) -> Path:
    """Find the folder with the pictures: the first of `places` that has the first picture."""
    try:
        first = str(images[0]["file_name"])
    except KeyError:
        raise DataError(f"{file}: a picture has no file_name") from None
    folder = next((place for place in places if os.path.exists(place / first)), None)
    if folder is None:
        tried = ", ".join(dict.fromkeys(str(place) for place in places if place.is_dir()))
        raise DataError(
            f"{file}: its picture {shorten(first)} is not in {tried}; name its folder with --images"
        )
    return folder


def _sample(
    image: dict[str, Any],
    objects: Sequence[dict[str, Any]],
    labels: dict[int, int | str],
    names: Sequence[str],
    place: Path,
    file: Path,
) -> Sample:
    """Make a sample with the annotated size and boxes."""
    try:
        name = str(image["file_name"])
        size = int(image.get("width") or 0), int(image.get("height") or 0)
        stem = Path(name).with_suffix("").as_posix()
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"{file}: {shorten(json.dumps(image))}: the name or the size of this picture is "
            "missing or makes no sense"
        ) from None
    rows, numbers, crowd, areas = [], [], [], []
    for one in objects:
        where = f"{file}: {shorten(name)}: {_named(one)}"
        try:
            rows.append(_edges(one))
            label = labels[one["category_id"]]
            numbers.append(label if isinstance(label, int) else number_of(label, names, where))
            crowd.append(bool(one.get("iscrowd", 0)))
            _, _, width, height = map(float, one["bbox"])
            areas.append(float(one.get("area", width * height)))
            if not 0 <= areas[-1] < np.inf:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(
                f"{where}: a box, an area or a category is missing or makes no sense; expected "
                "bbox as x, y, width, height in pixels"
            ) from None
    return Sample(
        id=f"{_split_of(file)}/{stem}",
        path=place / name,
        width=size[0],
        height=size[1],
        boxes=np.array(rows, np.float32).reshape(-1, 4),
        labels=np.array(numbers, np.int64),
        difficult=np.zeros(len(numbers), bool),
        crowd=np.array(crowd, bool),
        areas=np.array(areas, np.float64),
        names=tuple(names),
    )


def fits(path: Path) -> bool:
    """Whether a file is JSON, or a folder has COCO annotations."""
    if path.is_file():
        return path.suffix.lower() == ".json"
    return path.is_dir() and bool(_files_of(path))


FORMAT = Format("COCO annotations", "detection", fits, Instances, elsewhere=True)
