"""The interface of data formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spikedet.data.samples import Sample


class Source(ABC):
    """Data of one format, of which a split can be read.

    Attributes:
        paths: As they were given.
        places: Folders of its pictures that were given beside it, where a format looks in them.
    """

    def __init__(self, paths: Sequence[Path], places: Sequence[Path] = ()):
        self.paths, self.places = [Path(path) for path in paths], [Path(p) for p in places]

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """The splits there are, as `--split` names them."""

    @abstractmethod
    def usual_split(self, test: bool) -> str | None:
        """The split that is trained on, or measured; None where none is the usual one."""

    def has(self, part: str) -> bool:
        """Whether a part of `--split` can be one of these data."""
        return ":" not in part


class Boxes(Source):
    """Pictures with boxes."""

    @abstractmethod
    def read(self, split: str, names: Sequence[str] | None, limit: int | None) -> list[Sample]:
        """Annotated pictures.

        Args:
            split: Splits of these data, joined by +.
            names: The classes, in the order of the labels; those of the data when None.
            limit: Only the first so many.

        Raises:
            DataError: Something is missing or damaged, or of a class that is not among `names`.
        """


class Labelled(NamedTuple):
    """Pictures with one class each.

    Attributes:
        names: Class names.
        labels: Number of the class of each picture.
        sources: A file, or the picture itself [3, H, W] uint8 RGB, for each.
    """

    names: tuple[str, ...]
    labels: list[int]
    sources: list[Any]


class Classes(Source):
    """Pictures with one class each."""

    @abstractmethod
    def read(self, split: str) -> Labelled:
        """Labelled pictures of one split.

        Raises:
            DataError: Nothing of that kind there, or damaged.
        """


@dataclass(frozen=True)
class Format:
    """A way of keeping annotated pictures.

    Attributes:
        name: For messages.
        task: What can be learned from it: `detection` or `classification`.
        fits: Whether a file or a folder is of this format.
        source: Its data, from paths that fit, several of which it can merge, and the folders that
            `--images` names.
        merges: Whether several paths are one source.
        elsewhere: Whether pictures may be in folders that `--images` names.
    """

    name: str
    task: str
    fits: Callable[[Path], bool]
    source: Callable[[Sequence[Path], Sequence[Path]], Source]
    merges: bool = False
    elsewhere: bool = False
