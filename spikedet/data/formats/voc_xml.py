"""VOC's annotation files: XML with the size of a picture, and a box and a class for each object.

Boxes are stored as edges in 0-based pixels. VOC's `xmin ymin xmax ymax` are 1-based and inclusive;
they become `xmin-1 ymin-1 xmax ymax`. So the width is x2 - x1 and the height is y2 - y1.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spikedet.errors import DataError, shorten


class Annotation(NamedTuple):
    """The content of a VOC XML file.

    Attributes:
        width, height: Size of the picture in pixels. 0 if the file does not give it.
        boxes: Box of each object, [x1, y1, x2, y2], 0-based edges in pixels.
        names: Class name of each object.
        difficult: Whether each object is marked as difficult.
    """

    width: int
    height: int
    boxes: list[list[float]]
    names: list[str]
    difficult: list[bool]


def parse_xml(path: Path) -> ElementTree.Element:
    """Read the root element of a VOC XML file.

    Raises:
        DataError: The file does not exist, is not XML, or has an unknown encoding.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a file; expected a VOC XML file here")
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path}: annotation is missing; expected a VOC XML file here") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not readable as VOC XML ({shorten(error)})") from None
    except (LookupError, ValueError) as error:  # an unknown or a wrong encoding
        raise DataError(
            f"{path}: its encoding is not readable ({shorten(error)}); expected VOC XML in UTF-8"
        ) from None


# What tools write into `difficult`; an object without it is not difficult.
MARKS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def parse_annotation(path: Path) -> Annotation:
    """Read one VOC annotation with any classes.

    A box that reaches one pixel beyond its picture is clipped. VOC 2012 has such boxes.

    Raises:
        DataError: The file does not exist or is not VOC XML, a box is upside down or lies outside
            its picture, or `difficult` of an object is not 0 or 1.
    """
    root = parse_xml(path)
    boxes, names, difficult = [], [], []
    try:
        width, height = (
            int(float(root.findtext(f"size/{key}", ""))) for key in ("width", "height")
        )
        if min(width, height) < 0:
            raise ValueError
        for item in root.iter("object"):
            name = item.findtext("name", "").strip()
            box = [
                float(item.findtext(f"bndbox/{key}", ""))
                for key in ("xmin", "ymin", "xmax", "ymax")
            ]
            if not np.isfinite(box).all():
                raise ValueError
            x1, y1, x2, y2 = box
            where = f"{path}: box of {shorten(name)} ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            if x2 < x1 or y2 < y1:
                raise DataError(f"{where} is upside down; expected xmin <= xmax and ymin <= ymax")
            box = [x1 - 1, y1 - 1, x2, y2]
            boxes.append(clipped(box, width, height, where) if (width, height) != (0, 0) else box)
            names.append(name)
            mark = item.findtext("difficult", "").strip()
            if mark.lower() not in MARKS:
                raise DataError(
                    f"{path}: difficult is {shorten(repr(mark))} in an object; expected 0 or 1"
                )
            difficult.append(MARKS[mark.lower()])
    except (ValueError, OverflowError):
        raise DataError(
            f"{path}: a size or a box is missing or not a number; expected size/width, "
            "size/height and bndbox/xmin ymin xmax ymax"
        ) from None
    return Annotation(width, height, boxes, names, difficult)


def clipped(box: Sequence[float], width: int, height: int, where: str) -> list[float]:
    """Clip a box [x1, y1, x2, y2] that reaches at most one pixel beyond its picture.

    Raises:
        DataError: The box lies outside the picture.
    """
    x1, y1, x2, y2 = box
    # part of it must be inside, or nothing is left after clipping
    inside = -1 <= x1 <= width - 1 and 1 <= x2 <= width + 1
    if not (inside and -1 <= y1 <= height - 1 and 1 <= y2 <= height + 1):
        raise DataError(f"{where} lies outside its picture of {width} x {height} pixels")
    return [max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)]
