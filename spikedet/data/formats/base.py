"""The interface of data formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spikedet.data.samples import Sample


class Source(ABC):
    """Data of one format. It has one or more splits.

    Args:
        paths: Files or folders of the data.
        places: Further folders with its pictures, for formats that look for pictures there.
    """

    def __init__(self, paths: Sequence[Path], places: Sequence[Path] = ()):
        self.paths, self.places = [Path(path) for path in paths], [Path(p) for p in places]

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits, as in `--split`."""

    @abstractmethod
    def usual_split(self, test: bool) -> str | None:
        """The usual split to measure on (`test`) or to train on. None if there is none."""

    def has(self, part: str) -> bool:
        """Whether a part of `--split` can be a split of these data."""
        return ":" not in part


class Boxes(Source):
    """Pictures with boxes."""

    @abstractmethod
    def read(self, split: str, names: Sequence[str] | None, limit: int | None) -> list[Sample]:
        """Read annotated pictures.

        Args:
            split: Splits of these data, joined by +.
            names: Class names in the order of the labels. None: the class names of the data.
            limit: Largest number of pictures. None: all pictures.

        Raises:
            DataError: Something is missing or damaged, or an object has a class that is not in
                `names`.
        """


class Labelled(NamedTuple):
    """Pictures with one class each.

    Attributes:
        names: Class names.
        labels: Class number of each picture.
        sources: Each picture as a file, or as an array [3, H, W] uint8 RGB.
    """

    names: tuple[str, ...]
    labels: list[int]
    sources: list[Any]


class Classes(Source):
    """Pictures with one class each."""

    @abstractmethod
    def read(self, split: str) -> Labelled:
        """Read the labelled pictures of one split.

        Raises:
            DataError: The split is missing, empty or damaged.
        """


@dataclass(frozen=True)
class Format:
    """A format of annotated pictures.

    Attributes:
        name: Name for messages.
        task: Task that the data are for: `detection` or `classification`.
        fits: Function that tells whether a file or folder has this format.
        source: Function that makes the source. Its arguments are paths that fit (several only if
            `merges`), and the folders of `--images`.
        merges: Whether several paths can form one source.
        elsewhere: Whether the pictures can be in the folders of `--images`.
    """

    name: str
    task: str
    fits: Callable[[Path], bool]
    source: Callable[[Sequence[Path], Sequence[Path]], Source]
    merges: bool = False
    elsewhere: bool = False
