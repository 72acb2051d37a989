"""PASCAL VOC: splits, annotations and what is wrong with them.

The official `VOCdevkit` layout is read in place and never written to. Boxes are kept as edges in
0-based pixels: VOC's inclusive 1-based `xmin ymin xmax ymax` become `xmin-1 ymin-1 xmax ymax`, so
width and height are plain differences.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.settings import SPLITS
from spikedet.errors import DataError
from spikedet.files import read_lines, write_atomic

CACHE_VERSION = 2


@dataclass(frozen=True)
class Sample:
    """One annotated picture.

    Attributes:
        id: `<dataset>/<picture id>`, for instance `VOC2007/000005`.
        path: The picture.
        width, height: Pixels, as the annotation states them.
        boxes: [N, 4] float32, x1 y1 x2 y2, 0-based edges in pixels.
        labels: [N] int64, indices into the class names.
        difficult: [N] bool.
    """

    id: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def parse_splits(splits: str) -> list[tuple[str, str]]:
    """`VOC2007:train+VOC2012:trainval` -> [("VOC2007", "train"), ("VOC2012", "trainval")].

    Raises:
        DataError: The list is not of that form.
    """
    pairs = []
    for part in splits.split("+"):
        match = re.fullmatch(r"\s*([\w.-]+):([\w.-]+)\s*", part)
        if match is None:
            raise DataError(
                f"split {splits!r}: {part!r} is not of the form VOC2007:train "
                "(several are joined by +, as in VOC2007:train+VOC2012:trainval)"
            )
        pairs.append((match[1], match[2]))
    return pairs


def read_annotation(
    path: Path, names: Sequence[str] = VOC_CLASSES
) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
    """Read one VOC annotation.

    Args:
        path: The XML file.
        names: Known classes, in the order of the labels.

    Returns:
        Width and height in pixels, boxes [N, 4] float32, labels [N] int64, difficult [N] bool.
        A box may reach one pixel beyond its picture (VOC 2012 has such boxes); it is clipped.

    Raises:
        DataError: No such file, not VOC XML, an unknown class, a box that is upside down or lies
            outside its picture.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path}: annotation is missing; expected a VOC XML file here") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not readable as VOC XML ({error})") from None
    boxes, labels, difficult = [], [], []
    try:
        width, height = (
            int(float(root.findtext(f"size/{key}", ""))) for key in ("width", "height")
        )
        for item in root.iter("object"):
            name = item.findtext("name", "").strip()
            if name not in names:
                raise DataError(
                    f"{path}: unknown class {name!r}; known classes are {', '.join(names)}"
                )
            x1, y1, x2, y2 = (
                float(item.findtext(f"bndbox/{key}", ""))
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
            if not np.isfinite((x1, y1, x2, y2)).all():
                raise ValueError
            where = f"{path}: box of {name} ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            if x2 < x1 or y2 < y1:
                raise DataError(f"{where} is upside down; expected xmin <= xmax and ymin <= ymax")
            # part of it must be inside, or nothing is left after clipping
            inside = 0 <= x1 <= width and 1 <= x2 <= width + 1
            if not (inside and 0 <= y1 <= height and 1 <= y2 <= height + 1):
                raise DataError(f"{where} lies outside its picture of {width} x {height} pixels")
            boxes.append((max(x1 - 1, 0), max(y1 - 1, 0), min(x2, width), min(y2, height)))
            labels.append(names.index(name))
            difficult.append(item.findtext("difficult", "0").strip() == "1")
    except ValueError:
        raise DataError(
            f"{path}: a size or a box is missing or not a number; expected size/width, "
            "size/height and bndbox/xmin ymin xmax ymax"
        ) from None
    return (
        width,
        height,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def read_ids(folder: Path, split: str) -> list[str]:
    """Picture ids of `folder/ImageSets/Main/<split>.txt`, in its order.

    Splits that data sets do not bring are those of `configs/splits`: `spikedet-val`, the pictures
    that the released detectors were measured on, and `spikedet-train`, which they were trained on
    (or, of VOC 2007, chosen by).

    VOC 2012 holds copies of VOC 2007 pictures under ids `2007_NNNNNN`; those are dropped, because
    some of them are evaluation pictures of the other year.
    """
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file() and (own := SPLITS / f"{folder.name}-{split}.txt").is_file():
        path = own
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        raise DataError(f"{path}: no such split; {folder.name} has {', '.join(there) or 'none'}")
    ids = [line.split()[0] for line in read_lines(path) if line]
    if not ids:
        raise DataError(f"{path}: the split is empty; expected one picture id a line")
    if folder.name != "VOC2007":
        ids = [i for i in ids if not is_copy_of_2007(i)]
    return ids


def is_copy_of_2007(number: str) -> bool:
    """Whether a picture of VOC 2012 is one of VOC 2007, by its id."""
    return re.fullmatch(r"2007_\d{6}", number) is not None


def read_voc(
    devkits: Path | Sequence[Path],
    splits: str,
    *,
    names: Sequence[str] = VOC_CLASSES,
    limit: int | None = None,
    cache: Path | None = None,
) -> list[Sample]:
    """Read annotated pictures.

    Args:
        devkits: One `VOCdevkit` folder or several; a data set is taken from the first that has it.
        splits: For instance `VOC2007:train+VOC2012:trainval`.
        names: Known classes.
        limit: Only the first so many pictures.
        cache: Folder for parsed annotations; `cache_folder()` by default.

    Returns:
        Samples in the order of the split files, each picture once.

    Raises:
        DataError: A missing folder, split, annotation or picture, or a damaged annotation. When
            several are wrong, the first is named and the others are counted.
    """
    devkits = [devkits] if isinstance(devkits, str | Path) else list(devkits)
    samples: dict[str, Sample] = {}
    for dataset, split in parse_splits(splits):
        folder = next((Path(d) / dataset for d in devkits if (Path(d) / dataset).is_dir()), None)
        if folder is None:
            raise DataError(
                f"{Path(devkits[0]) / dataset}: no such folder; expected the VOCdevkit layout "
                f"({dataset}/JPEGImages, {dataset}/Annotations, {dataset}/ImageSets/Main)"
            )
        ids = [i for i in read_ids(folder, split) if f"{dataset}/{i}" not in samples]
        if limit is not None:
            ids = ids[: limit - len(samples)]
        for sample in _read_folder(folder, ids, split, names, cache or cache_folder()):
            samples[sample.id] = sample
    return list(samples.values())


def trained_on(samples: Sequence[Sample]) -> int:
    """How many of the samples the released detectors were trained on, or chosen by."""
    known = {
        f"{path.name.split('-')[0]}/{number}"
        for path in SPLITS.glob("*-spikedet-train.txt")
        for number in read_lines(path)
    }
    return sum(sample.id in known for sample in samples)


def fingerprint(samples: Sequence[Sample]) -> str:
    """Twelve hexadecimal digits of ids, annotations and sizes of the picture files."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id} {sample.path.stat().st_size}\n".encode())
        for values in (sample.boxes, sample.labels, sample.difficult):
            digest.update(values.tobytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Folder for derived files: `$SPIKEDET_CACHE`, else `$XDG_CACHE_HOME/spikedet`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SPIKEDET_CACHE") or base / "spikedet")


def _read_folder(
    folder: Path, ids: list[str], split: str, names: Sequence[str], cache: Path
) -> list[Sample]:
    """Samples of one data set; parsed annotations are cached while their XML is unchanged."""
    key = hashlib.sha256(f"{folder.resolve()} {split} {','.join(names)}".encode()).hexdigest()
    cached_path = cache / f"{folder.name}-{split}-{key[:12]}.json"
    try:
        cached = json.loads(cached_path.read_text())
        known = cached["samples"] if cached["version"] == CACHE_VERSION else {}
    except (OSError, ValueError, KeyError):
        known = {}
    samples, problems, fresh = [], [], {}
    images = folder / "JPEGImages"
    pictures = {p.name for p in os.scandir(images)} if images.is_dir() else set()
    for name in ids:
        xml = folder / "Annotations" / f"{name}.xml"
        picture = folder / "JPEGImages" / f"{name}.jpg"
        try:
            if picture.name not in pictures:
                raise DataError(f"{picture}: picture is missing; {split}.txt lists it")
            try:
                stamp = [xml.stat().st_mtime_ns, xml.stat().st_size]
            except FileNotFoundError:
                stamp = None
            entry = known.get(name)
            if entry is None or entry[0] != stamp:
                parsed = read_annotation(xml, names)
                entry = [stamp, *parsed[:2], *(array.tolist() for array in parsed[2:])]
        except DataError as error:
            problems.append(error)
            continue
        fresh[name] = entry
        _, width, height, boxes, labels, difficult = entry
        samples.append(
            Sample(
                f"{folder.name}/{name}",
                picture,
                width,
                height,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(labels, np.int64),
                np.array(difficult, bool),
            )
        )
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    if fresh != {name: known.get(name) for name in fresh}:
        try:
            text = json.dumps({"version": CACHE_VERSION, "samples": {**known, **fresh}})
            write_atomic(cached_path, text.encode())
        except OSError:
            pass  # a read-only home: the annotations are parsed again next time
    return samples


def tuning_ids(path: Path) -> list[str]:
    """Sample ids of a committed list, one `VOC2007/000005` a line, `#` starts a comment.

    Raises:
        DataError: No such list, or not text.
    """
    lines = read_lines(path, "list of tuning pictures")
    lines = (line.split("#")[0].strip() for line in lines)
    return [line for line in lines if line]


def split_off_tuning(samples: list[Sample], tuning: Path) -> tuple[list[Sample], list[Sample]]:
    """Separate the tuning pictures from the ones to train on.

    Raises:
        DataError: Nothing is left on one of the sides.
    """
    ids = set(tuning_ids(tuning))
    train = [sample for sample in samples if sample.id not in ids]
    tune = [sample for sample in samples if sample.id in ids]
    if not train or not tune:
        raise DataError(
            f"{tuning}: {len(tune)} of the {len(samples)} pictures are tuning pictures; "
            "expected some of both kinds"
        )
    return train, tune
