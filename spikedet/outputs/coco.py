"""Results in the format of COCO's evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikedet.detection.boxes import Detections
from spikedet.errors import DataError
from spikedet.outputs.text import Growing, json_list, json_text
from spikedet.sources import Frame


class CocoResults:
    """A file of results, one entry an object, with the file of each beside COCO's own keys.

    Without `annotations` the first picture is 1, the next 2 and so on, and categories count from 1
    in the order of the class names.

    Args:
        path: To write.
        annotations: An `instances_*.json`, whose numbers of pictures and classes are taken.

    Raises:
        DataError: `annotations` cannot be read.
    """

    def __init__(self, path: Path, annotations: Path | None = None):
        self._file: Growing = json_list(path)
        self._images: dict[str, list[tuple[tuple[str, ...], int]]] | None = None
        self._categories: dict[str, int] | None = None
        self._sources: dict[int, str] = {}  # by the number of their image
        if annotations is not None:
            self._images, self._categories = _numbers(annotations)
        self._pictures = 0

    def add(self, frame: Frame, detections: Detections) -> None:
        """Append the objects of a frame.

        Raises:
            DataError: The picture or a class is not among the annotations, or it is not clear which
                of their images the picture is.
            OSError: The disk is full.
        """
        self._pictures += 1
        image = self._pictures if self._images is None else self._image_of(frame.source)
        for entry in detections.to_coco(image, self._numbers_of(detections.names)):
            entry |= {"file_name": frame.source, "frame": frame.index}
            self._file.add(json_text(entry))

    def _image_of(self, source: str) -> int:
        """The number of the image that a file is: the one with the longest end of its path."""
        assert self._images is not None
        parts = Path(os.path.abspath(source)).parts
        there = self._images.get(parts[-1], [])
        if len(there) > 1:
            there = [(way, number) for way, number in there if parts[-len(way) :] == way]
            longest = max((len(way) for way, _ in there), default=0)
            there = [(way, number) for way, number in there if len(way) == longest]
        if not there:
            raise DataError(f"{source}: is not among the images of the annotations")
        if len(there) > 1:
            raise DataError(f"{source}: two images of the annotations have this name")
        number = there[0][1]
        other = self._sources.setdefault(number, source)
        if other != source:
            raise DataError(
                f"{source}: {other} has this name too, and the annotations have it once"
            )
        return number

    def _numbers_of(self, names: Sequence[str]) -> list[int]:
        if self._categories is None:
            return list(range(1, len(names) + 1))
        missing = [name for name in names if name not in self._categories]
        if missing:
            raise DataError(f"{missing[0]}: is not among the categories of the annotations")
        return [self._categories[name] for name in names]

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def _numbers(
    path: Path,
) -> tuple[dict[str, list[tuple[tuple[str, ...], int]]], dict[str, int]]:
    """Numbers of the images by their names, each with its path, and of the categories by name."""
    images: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    try:
        content: Any = json.loads(path.read_bytes())
        for image in content["images"]:
            way = Path(image["file_name"]).parts
            images.setdefault(way[-1], []).append((way, image["id"]))
        return images, {category["name"]: category["id"] for category in content["categories"]}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DataError(f"{path}: expected COCO's annotations with images and categories") from None
