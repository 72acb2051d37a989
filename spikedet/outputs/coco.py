"""Results in the format of COCO's evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikedet.detection.boxes import Detections
from spikedet.errors import DataError
from spikedet.outputs.text import EntryFile, json_list, json_text
from spikedet.sources import Frame


class CocoResults:
    """A JSON file of results in COCO's format, with the source file of each object as extra keys.

    Without `annotations`, picture ids count from 1 in the order of the frames, and category ids
    count from 1 in the order of the class names.

    Args:
        path: File to write.
        annotations: An `instances_*.json` file. Its picture ids and category ids are used.

    Raises:
        DataError: `annotations` cannot be read.
    """

    def __init__(self, path: Path, annotations: Path | None = None):
        self._file: EntryFile = json_list(path)
        self._images: dict[str, list[tuple[tuple[str, ...], int]]] | None = None
        self._categories: dict[str, int] | None = None
        self._sources: dict[int, str] = {}  # source by image id
        if annotations is not None:
            self._images, self._categories = _numbers(annotations)
        self._pictures = 0

    def add(self, frame: Frame, detections: Detections) -> None:
        """Append the objects of a frame.

        Raises:
            DataError: The picture or a class is not in the annotations, or several images could
                be the picture.
            OSError: The file cannot be written, for example because the disk is full.
        """
        self._pictures += 1
        image = self._pictures if self._images is None else self._image_of(frame.source)
        for entry in detections.to_coco(image, self._numbers_of(detections.names)):
            entry |= {"file_name": frame.source, "frame": frame.index}
            self._file.add(json_text(entry))

    def _image_of(self, source: str) -> int:
        """The id of the image of a file. Of several images, the longest matching path wins."""
        assert self._images is not None
        parts = Path(os.path.abspath(source)).parts
        images = self._images.get(parts[-1], [])
        if len(images) > 1:
            images = [(path, number) for path, number in images if parts[-len(path) :] == path]
            longest = max((len(path) for path, _ in images), default=0)
            images = [(path, number) for path, number in images if len(path) == longest]
        if not images:
            raise DataError(f"{source}: is not among the images of the annotations")
        if len(images) > 1:
            raise DataError(f"{source}: two images of the annotations have this name")
        number = images[0][1]
        other = self._sources.setdefault(number, source)
        if other != source:
            raise DataError(
                f"{source}: {other} has this name too, and the annotations have it once"
            )
        return number

    def _numbers_of(self, names: Sequence[str]) -> list[int]:
        """The category ids of class names."""
        if self._categories is None:
            return list(range(1, len(names) + 1))
        missing = [name for name in names if name not in self._categories]
        if missing:
            raise DataError(f"{missing[0]}: is not among the categories of the annotations")
        return [self._categories[name] for name in names]

    def close(self) -> None:
        """Complete the file."""
        self._file.close()


def _numbers(
    path: Path,
) -> tuple[dict[str, list[tuple[tuple[str, ...], int]]], dict[str, int]]:
    """Read the paths and ids of images by file name, and the category ids by class name."""
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
