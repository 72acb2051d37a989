"""Labelled pictures: class folders, and torchvision's CIFAR files."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets

from spikedet.checkpoint import Checkpoint
from spikedet.classification.defaults import EndToEnd as ClassifierPass
from spikedet.classification.transforms import augmentation, view
from spikedet.data.formats import Classes, recognise
from spikedet.data.formats.folders import FORMAT as folders_format
from spikedet.data.formats.folders import expect_classes, pictures_of
from spikedet.errors import DataError, UsageError, message_of
from spikedet.pictures import from_loader, read_picture
from spikedet.settings import EndToEnd
from spikedet.task import Samples as TaskSamples

UNLABELLED = -100  # label of a picture without a class, as in torch's cross-entropy
TUNING_EVERY = 50  # every 50th training picture of a class is a tuning picture


class Samples(TaskSamples, Dataset):
    """Labelled pictures. They are decoded when they are first used. Small pictures are then cached.

    Args:
        names: Class names.
        labels: Class number of each picture, or `UNLABELLED`.
        sources: For each picture, a file, or the picture itself [3, H, W] uint8 RGB.
        aside: Whether each picture is a tuning picture. None: every 50th picture of a class.

    Attributes:
        decoded: Cached pictures by their number.
        transform: Transform that is applied to a picture when it is indexed.
    """

    KEPT = 64 * 64  # pixels up to which a decoded picture is kept in memory

    def __init__(
        self,
        names: tuple[str, ...],
        labels: list[int],
        sources: Sequence[Path | Tensor],
        aside: list[bool] | None = None,
    ):
        self.names, self.labels, self.sources = names, labels, list(sources)
        self.aside = _every_fiftieth(labels) if aside is None else aside
        self.decoded: dict[int, Tensor] = {}
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        picture = self.picture(number)
        return (self.transform(picture) if self.transform else picture), self.labels[number]

    def picture(self, number: int) -> Tensor:
        """Return a picture, [3, H, W] uint8 RGB.

        Raises:
            PictureError: The picture cannot be decoded.
        """
        source = self.decoded.get(number, self.sources[number])
        if isinstance(source, Tensor):
            return source
        picture = torch.from_numpy(read_picture(source)[..., ::-1].copy()).permute(2, 0, 1)
        if picture[0].numel() <= self.KEPT:
            self.decoded[number] = picture
        return picture

    def decode(self) -> None:
        """Decode small pictures now. Otherwise each loader process would do this in every epoch.

        Raises:
            PictureError: A picture cannot be decoded.
        """
        for number in range(len(self)):
            if self.picture(number)[0].numel() > self.KEPT:
                return

    def select(self, numbers: Sequence[int]) -> Samples:
        """The samples with these numbers, in this order."""
        return Samples(
            self.names,
            [self.labels[n] for n in numbers],
            [self.sources[n] for n in numbers],
            [self.aside[n] for n in numbers],
        )

    def transformed(self, transform: Any) -> Samples:
        """The same samples with a transform."""
        view = copy.copy(self)
        view.transform = transform
        return view

    def labelled(self) -> Samples:
        return self.select([n for n, label in enumerate(self.labels) if label != UNLABELLED])

    def classes(self) -> set[int]:
        return set(self.labels) - {UNLABELLED}

    def fingerprint(self) -> str:
        """A hash (12 hexadecimal digits) of class names, labels, and pixels or names and sizes."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for label, source in zip(self.labels, self.sources, strict=True):
            digest.update(f"\n{label} ".encode())
            if isinstance(source, Path):
                digest.update(f"{source.name} {source.stat().st_size}".encode())
            else:
                digest.update(source.numpy().tobytes())
        return digest.hexdigest()[:12]

    def split_off_tuning(self, tuning: Path | None = None) -> tuple[Samples, Samples]:
        """Split off the tuning samples: every 50th picture of each class.

        Returns:
            The training samples and the tuning samples.

        Raises:
            UsageError: `tuning` is not None. Classifiers have no list of tuning pictures.
            DataError: There are too few pictures for tuning samples.
        """
        if tuning is not None:
            raise UsageError(
                f"--tuning is no option of classification: every {TUNING_EVERY}th training "
                "picture of a class is a tuning picture"
            )
        train = [number for number, aside in enumerate(self.aside) if not aside]
        tune = [number for number, aside in enumerate(self.aside) if aside]
        if not tune:
            raise DataError(
                f"{len(self)} pictures are too few: every {TUNING_EVERY}th picture of a class is a "
                "tuning picture, and no class has so many; use more pictures"
            )
        return self.select(train), self.select(tune)

    def with_unlabelled(self, folders: Sequence[Path]) -> Samples:
        """Add all pictures in some folders, without labels.

        Raises:
            DataError: A folder has no pictures.
        """
        sources: list[Path] = []
        for folder in folders:
            pictures = pictures_of(Path(folder)) if Path(folder).is_dir() else []
            if not pictures:
                raise DataError(f"{folder}: no pictures in this folder")
            sources += pictures
        labels = self.labels + [UNLABELLED] * len(sources)
        aside = self.aside + [False] * len(sources)
        return Samples(self.names, labels, [*self.sources, *sources], aside)

    def pictures(self, checkpoint: Checkpoint, batch: int) -> Iterator[Tensor]:
        return batches(self, checkpoint.model, checkpoint.imgsz, batch)

    def augmented(
        self, checkpoint: Checkpoint, end: EndToEnd, seed: int, for_evaluation: bool = False
    ) -> Iterator[dict[str, Any]]:
        assert isinstance(end, ClassifierPass)
        jpeg = 0 if for_evaluation else end.jpeg
        return augmented(
            self, checkpoint.model, checkpoint.imgsz, end.batch, seed, end.workers, jpeg
        )


def read(
    folders: Sequence[Path],
    split: str,
    limit: int | None = None,
    names: tuple[str, ...] | None = None,
) -> Samples:
    """Read the labelled pictures of a data set.

    Args:
        folders: Folders with `SPLIT/CLASS/**/picture` (the usual layout of ImageNet), or with
            torchvision's CIFAR-10 or CIFAR-100 files.
        split: `train`, `test` or `val`; several are joined by +.
        limit: Use only the first pictures of a fixed shuffle, so that all classes appear. The
            choice of tuning pictures does not depend on it.
        names: Class names of a network, which the data must have.

    Raises:
        DataError: The data is missing or damaged, or its classes differ from `names` or from those
            of another split.
    """
    places = [(Path(folder), part) for folder in folders for part in split.split("+")]
    parts = [_source(folder).read(part) for folder, part in places]
    first = parts[0]
    for (folder, where), other in zip(places, parts, strict=True):
        expect_classes(other.names, first.names, folder / where, f"{Path(*places[0])} has")
    labels = [label for part in parts for label in part.labels]
    sources = [picture for part in parts for picture in part.sources]
    samples = Samples(first.names, labels, sources)
    if names is not None:
        expect_classes(samples.names, names, folders[0], "the network knows")
    if limit is not None and limit < len(samples):
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
        samples = samples.select(order[:limit].tolist())
    return samples


def _source(folder: Path) -> Classes:
    """The data of a folder. If its format is unknown, it is read as class folders."""
    format = recognise(folder)
    if format is None or format.task != "classification":
        format = folders_format
    source = format.source([folder], [])
    assert isinstance(source, Classes)
    return source


def download(name: str, folder: Path) -> Path:
    """Download `cifar10` or `cifar100` from its authors, with torchvision's checksums.

    Returns:
        The folder of the files, inside `folder`.

    Raises:
        DataError: The download fails, or the archive is damaged.
        UsageError: There is no such data set.
    """
    kinds = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    if name not in kinds:
        raise UsageError(f"no data set {name!r} to download; there are {', '.join(kinds)}")
    try:
        dataset = kinds[name](str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: {name} could not be downloaded ({message_of(error)})") from None
    return Path(folder) / dataset.base_folder


def _every_fiftieth(labels: list[int]) -> list[bool]:
    """Whether each picture is the 50th, 100th and so on of its class."""
    seen: Counter[int] = Counter()
    aside = []
    for label in labels:
        seen[label] += 1
        aside.append(seen[label] % TUNING_EVERY == 0)
    return aside


def batches(
    samples: Samples, description: dict[str, Any], imgsz: int, batch: int
) -> Iterator[Tensor]:
    """Yield batches of pictures [B, 3, imgsz, imgsz] without augmentation, in order."""
    transform = view(description, imgsz)
    for start in range(0, len(samples), batch):
        pictures = [samples.picture(n) for n in range(start, min(start + batch, len(samples)))]
        if len({picture.shape for picture in pictures}) == 1:
            yield transform(torch.stack(pictures))
        else:
            yield torch.stack([transform(picture) for picture in pictures])


def augmented(
    samples: Samples,
    description: dict[str, Any],
    imgsz: int,
    batch: int,
    seed: int = 0,
    workers: int = 0,
    jpeg: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yield training batches without end: `img` [B, 3, imgsz, imgsz] and `label` [B].

    The pictures are cropped and mirrored at random, and compressed with the quality `jpeg` (see
    `augmentation`). `workers` is the number of loader processes. With 0, this process makes the
    batches.
    """
    if workers:
        samples.decode()
    single, whole = augmentation(description, imgsz, jpeg=jpeg)
    generator = torch.Generator().manual_seed(seed)
    size = min(batch, len(samples))
    loader = DataLoader(
        samples.transformed(single),
        size,
        shuffle=True,
        drop_last=True,
        generator=generator,
        num_workers=workers,
    )
    while True:
        with from_loader():
            for pictures, labels in loader:
                yield {"img": whole(pictures), "label": labels}
