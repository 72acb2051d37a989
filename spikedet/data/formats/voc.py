"""PASCAL VOC: a `VOCdevkit` with one or more data sets, with VOC's classes or others.

    VOCdevkit/DATASET/JPEGImages/ID.jpg      or another picture, such as `.JPG` or `.png`
    VOCdevkit/DATASET/Annotations/ID.xml
    VOCdevkit/DATASET/ImageSets/Main/SPLIT.txt

Nothing is written to this folder. The module `voc_xml` reads its annotations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spikedet import resources
from spikedet.data.cache import read_each
from spikedet.data.formats.base import Boxes, Format
from spikedet.data.formats.voc_xml import Annotation, clipped, parse_annotation
from spikedet.data.samples import Sample, expect_names, first_error, number_of
from spikedet.data.sizes import fit_to_pictures
from spikedet.errors import DataError, list_choices
from spikedet.files import read_lines
from spikedet.pictures import HEIC, is_picture

SPLITS = resources.folder("configs") / "splits"  # our own, DATASET-SPLIT.txt
TRAIN, TEST = (("VOC2007", "train"), ("VOC2012", "trainval")), (("VOC2007", "val"),)
PARTS = ("JPEGImages", "Annotations", "ImageSets/Main")
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


# ---------------------------------------------------------------------- annotations


def read_annotation(
    path: Path, names: Sequence[str] = VOC_CLASSES
) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
    """Read one VOC annotation with known classes.

    Args:
        path: The XML file.
        names: Known class names in the order of the labels.

    Returns:
        Width and height in pixels, boxes [N, 4] float32, labels [N] int64, difficult [N] bool.

    Raises:
        DataError: See `parse_annotation`, or an object has an unknown class.
    """
    annotation = parse_annotation(path)
    return annotation.width, annotation.height, *_arrays(annotation, names, path)


def _arrays(
    annotation: Annotation, names: Sequence[str], where: Path | str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert an annotation to boxes [N, 4] float32, labels [N] int64 and difficult [N] bool."""
    return (
        np.array(annotation.boxes, np.float32).reshape(-1, 4),
        np.array([number_of(name, names, where) for name in annotation.names], np.int64),
        np.array(annotation.difficult, bool),
    )


# ---------------------------------------------------------------------- splits


def parse_splits(splits: str) -> list[tuple[str, str]]:
    """`VOC2007:train+VOC2012:trainval` -> [("VOC2007", "train"), ("VOC2012", "trainval")].

    Raises:
        DataError: The text does not have this form.
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


def read_ids(folder: Path, split: str) -> list[str]:
    """Read the picture ids of `folder/ImageSets/Main/<split>.txt`, in order.

    Splits that the data set does not have are read from `configs/splits`. `spikedet-val` lists the
    pictures that the released detectors were measured on. `spikedet-train` lists those that they
    were trained on, or in VOC 2007 chosen with.

    VOC 2012 contains copies of VOC 2007 pictures, with the ids `2007_NNNNNN`. They are left out,
    because some of them are evaluation pictures of VOC 2007.

    Raises:
        DataError: The split does not exist or is empty.
    """
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file() and (own := SPLITS / f"{folder.name}-{split}.txt").is_file():
        path = own
    if not path.is_file():
        available = (
            sorted(p.stem for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        )
        raise DataError(
            f"{path}: no such split; {folder.name} has {list_choices(split, available) or 'none'}"
        )
    ids = [line.split()[0] for line in read_lines(path) if line]
    if not ids:
        raise DataError(f"{path}: the split is empty; expected one picture id a line")
    if folder.name != "VOC2007":
        ids = [i for i in ids if not is_copy_of_2007(i)]
    return ids


def is_copy_of_2007(number: str) -> bool:
    """Whether a picture id of VOC 2012 belongs to a copy of a VOC 2007 picture."""
    return re.fullmatch(r"2007_\d{6}", number) is not None


def files_of(folder: Path) -> dict[str, str]:
    """Find the names of the picture files of a data set, by picture id.

    If several files have the same id, the picture is `ID.jpg`.
    """
    images = folder / "JPEGImages"
    entries = sorted(entry.name for entry in os.scandir(images)) if images.is_dir() else []
    files: dict[str, str] = {}
    for name in entries:
        stem, suffix = os.path.splitext(name)
        if suffix == ".jpg":
            files[stem] = name
        elif is_picture(Path(name)) or suffix.lower() in HEIC:  # and says why it cannot be read
            files.setdefault(stem, name)
    return files


# ---------------------------------------------------------------------- samples


def read_voc(
    devkits: Path | Sequence[Path],
    splits: str,
    *,
    names: Sequence[str] | None = VOC_CLASSES,
    limit: int | None = None,
    cache: Path | None = None,
) -> list[Sample]:
    """Read annotated pictures.

    Args:
        devkits: One or more `VOCdevkit` folders. A data set is read from the first folder that has
            it.
        splits: Splits, such as `VOC2007:train+VOC2012:trainval`.
        names: Known class names. None: VOC's classes if all objects have one of them, else the
            classes of the objects, sorted.
        limit: Largest number of pictures. None: all pictures.
        cache: Folder for parsed annotations. None: `cache_folder()`.

    Returns:
        Samples in the order of the split files. Each picture occurs once.

    Raises:
        DataError: A folder, split, annotation or picture is missing, or an annotation is damaged.
            If there are several errors, the message has the first one and counts the others.
    """
    devkits = [devkits] if isinstance(devkits, str | Path) else list(devkits)
    parts: list[tuple[Path, str, list[str]]] = []
    taken: set[str] = set()
    for dataset, split in parse_splits(splits):
        folder = next((Path(d) / dataset for d in devkits if (Path(d) / dataset).is_dir()), None)
        if folder is None:
            raise DataError(
                f"{Path(devkits[0]) / dataset}: no such folder; expected the VOCdevkit layout "
                f"({', '.join(f'{dataset}/{part}' for part in PARTS)})"
            )
        ids = [i for i in dict.fromkeys(read_ids(folder, split)) if f"{dataset}/{i}" not in taken]
        if limit is not None and names is not None:  # else their classes would depend on it
            ids = ids[: limit - len(taken)]
        taken |= {f"{dataset}/{i}" for i in ids}
        parts.append((folder, split, ids))
    read = [_annotations(*part, cache) for part in parts]
    if names is None:
        names = _own_names([each for part in read for each in part])
    samples: list[Sample] = []
    for (folder, split, ids), parsed in zip(parts, read, strict=True):
        left = None if limit is None else limit - len(samples)
        own = _samples(folder, split, ids[:left], parsed[:left], tuple(names))
        fitted = fit_to_pictures(own, f"{folder.name}-{split}", folder, cache)
        pairs = zip(own, fitted, strict=True)
        samples += [_checked(two) if one.width == 0 else two for one, two in pairs]
    return samples


def _annotations(
    folder: Path, split: str, ids: list[str], cache: Path | None
) -> list[Annotation | DataError]:
    """Read the annotations of one data set. A damaged annotation gives its error."""
    place = folder / "Annotations"
    paths = [place / f"{name}.xml" for name in ids]
    entries = read_each(paths, parse_annotation, f"{folder.name}-{split}", folder, cache)
    return [each if isinstance(each, DataError) else Annotation(*each) for each in entries]


def _own_names(annotations: Sequence[Annotation | DataError]) -> tuple[str, ...]:
    """VOC's class names if all objects have one of them, else their own classes, sorted."""
    read = [each for each in annotations if isinstance(each, Annotation)]
    found = {name for each in read for name in each.names}
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _samples(
    folder: Path,
    split: str,
    ids: list[str],
    parsed: Sequence[Annotation | DataError],
    names: tuple[str, ...],
) -> list[Sample]:
    """Make the samples of one data set, with the annotated sizes and boxes."""
    files, images, annotations = files_of(folder), folder / "JPEGImages", folder / "Annotations"
    samples, problems = [], []
    for name, annotation in zip(ids, parsed, strict=True):
        picture = images / files.get(name, f"{name}.jpg")
        try:
            if name not in files:
                raise DataError(f"{picture}: picture is missing; {split}.txt lists it")
            if isinstance(annotation, DataError):
                raise annotation
            size = annotation.width, annotation.height
            arrays = _arrays(annotation, names, f"{annotations}{os.sep}{name}.xml")
        except DataError as error:
            problems.append(error)
            continue
        samples.append(Sample(f"{folder.name}/{name}", picture, *size, *arrays, names=names))
    if problems:
        raise first_error(problems)
    return samples


def _checked(sample: Sample) -> Sample:
    """Clip the boxes of a sample to its picture. Annotations without a size may need this."""
    limit = [sample.width, sample.height] * 2
    if (sample.boxes >= 0).all() and (sample.boxes <= limit).all():
        return sample
    boxes = [
        clipped(box, sample.width, sample.height, f"{sample.path}: a box")
        for box in sample.boxes.tolist()
    ]
    edges = np.array(boxes, np.float32).reshape(-1, 4)
    return replace(sample, boxes=edges, areas=None)  # type: ignore[arg-type]  # those of the boxes


# ---------------------------------------------------------------------- as a format


def _datasets(folder: Path) -> list[str]:
    """Names of the data sets in a devkit."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else ()
    return [path.name for path in inside if path.is_dir() and _is_dataset(path)]


def _is_dataset(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in ("JPEGImages", "Annotations"))


def fits(path: Path) -> bool:
    """Whether a folder is a devkit, or a data set in a devkit."""
    return path.is_dir() and (
        _is_dataset(path) or bool(_datasets(path)) or any(p.is_dir() for p in path.glob("VOC*"))
    )


class Devkits(Boxes):
    """One or more `VOCdevkit` folders."""

    def __init__(self, paths: Sequence[Path], places: Sequence[Path] = ()):
        super().__init__(paths, places)
        self.devkits = [
            Path(os.path.abspath(path)).parent if _is_dataset(path) else path for path in self.paths
        ]

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets."""
        named = [Path(os.path.abspath(path)).name for path in self.paths if _is_dataset(path)]
        return named or sorted({name for devkit in self.devkits for name in _datasets(devkit)})

    @property
    def splits(self) -> list[str]:
        """Splits of all data sets, without the lists of single classes (`cat_train`)."""
        lists = (
            (dataset, path.stem)
            for dataset in self.datasets
            for devkit in self.devkits
            for path in sorted((devkit / dataset / "ImageSets" / "Main").glob("*.txt"))
        )
        return [f"{dataset}:{split}" for dataset, split in lists if "_" not in split]

    def has(self, part: str) -> bool:
        """See `Source.has`. With a single data set, its name may be left out."""
        return ":" in part or (len(self.datasets) == 1 and self._listed(self.datasets[0], part))

    def _listed(self, dataset: str, split: str) -> bool:
        """Whether one of the devkits has a file for this split."""
        places = (devkit / dataset / "ImageSets" / "Main" for devkit in self.devkits)
        return any((place / f"{split}.txt").is_file() for place in places)

    def usual_split(self, test: bool) -> str | None:
        """The split of VOC's challenges. See `Source.usual_split`.

        For a single other data set, it is `train` or else `trainval`. To measure, it is `val` or
        else `test`.
        """
        datasets = self.datasets
        known = [f"{name}:{split}" for name, split in (TEST if test else TRAIN) if name in datasets]
        if known:
            return "+".join(known)
        if len(datasets) != 1:
            return None
        wanted = ("val", "test") if test else ("train", "trainval")
        split = next((split for split in wanted if self._listed(datasets[0], split)), None)
        return split and f"{datasets[0]}:{split}"

    def read(self, split: str, names: Sequence[str] | None, limit: int | None) -> list[Sample]:
        """See `Boxes.read`. With a single data set, its name may be left out of `split`."""
        datasets = self.datasets
        if len(datasets) == 1:  # whose name need not be said
            parts = [part if ":" in part else f"{datasets[0]}:{part}" for part in split.split("+")]
            split = "+".join(parts)
        samples = read_voc(self.devkits, split, names=names, limit=limit)
        expect_names(samples[0].names, self.paths[0])
        return samples


FORMAT = Format("VOCdevkit", "detection", fits, Devkits, merges=True)
