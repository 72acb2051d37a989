"""Draw detections on their picture. Labels are readable on small and on huge pictures."""

from __future__ import annotations

import colorsys
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spikedet.errors import shorten

if TYPE_CHECKING:
    from spikedet.detection.boxes import Detections

SMALLEST = 128  # pixels of the shorter side below which a picture is enlarged for its labels
LARGEST = 4096  # pixels of its longer side above which it is not enlarged
LONGEST = 60  # characters of a label
ENLARGED = 320  # pixels that it then has at least, if its other side allows it

Box = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels


def colour(label: int) -> tuple[int, int, int]:
    """The BGR colour of a class. Neighbouring numbers have very different colours."""
    hue = (label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw(detections: Detections, enlarge: bool = False) -> np.ndarray:
    """Draw boxes and labels on a copy of the picture. Their size depends on the picture.

    Labels are drawn on top of all boxes. A label is placed above its box, in it, below it, or
    further down, where it covers no other label if possible. Labels with higher scores are placed
    first.

    Args:
        detections: Detections with their picture. With `ids`, a label contains the number of its
            object, and each object has its own colour.
        enlarge: Enlarge a picture that is too small for labels, by an integer factor.

    Returns:
        [H, W, 3] uint8 BGR.

    Raises:
        ValueError: The detections have no picture.
    """
    if detections.picture is None:
        raise ValueError("these detections hold no picture to draw on")
    height, width = detections.picture.shape[:2]
    side = min(height, width)
    scale = 1
    if enlarge and side < SMALLEST:
        scale = max(1, min(-(-ENLARGED // side), LARGEST // max(height, width)))
    canvas = detections.picture.copy()
    if scale > 1:
        canvas = np.repeat(np.repeat(canvas, scale, 0), scale, 1)
    height, width = canvas.shape[:2]
    size = (width + height) / 2
    line, font = max(1, round(size / 250)), max(11, round(size / 45))
    boxes: list[Box] = []
    for edges in detections.boxes.tolist():
        x1, y1, x2, y2 = (round(v * scale) for v in edges)
        boxes.append((x1, y1, x2, y2))
    colours = [_colour_of(detections, number) for number in range(len(boxes))]
    for (x1, y1, x2, y2), ink in reversed(list(zip(boxes, colours, strict=True))):
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), ink, line)
    taken: list[Box] = []
    for number, (box, ink) in enumerate(zip(boxes, colours, strict=True)):
        label = _label(_text_of(detections, number), ink, font)
        place = _place(box, label.shape[1], label.shape[0], width, height, taken)
        taken.append(place)
        x1, y1, x2, y2 = place
        canvas[y1:y2, x1:x2] = label[: y2 - y1, : x2 - x1]
    return canvas


def _colour_of(detections: Detections, number: int) -> tuple[int, int, int]:
    return colour(detections.number_of(number) or int(detections.labels[number]))


def _text_of(detections: Detections, number: int) -> str:
    """The text of a label: class, number of the object if known, and score."""
    known = detections.number_of(number)
    name = detections.names[detections.labels[number]]
    name += f" #{known}" if known else ""
    return f"{shorten(' '.join(name.split()), LONGEST)} {detections.scores[number]:.2f}"


@functools.lru_cache(32)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font DejaVu Sans of matplotlib. It has Latin, Greek, Cyrillic and other letters."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


@functools.lru_cache(512)
def _label(text: str, ground: tuple[int, int, int], size: int) -> np.ndarray:
    """A text on a coloured background, [h, w, 3] uint8 BGR."""
    font = font_of(size)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    margin = max(2, size // 5)
    bright = np.dot(ground, (0.114, 0.587, 0.299)) > 140
    wide = round(right - left) + 2 * margin
    label = Image.new("RGB", (wide, ascent + descent), ground)
    ink = (0, 0, 0) if bright else (255, 255, 255)
    ImageDraw.Draw(label).text((margin - left, 0), text, ink, font)
    return np.asarray(label)


def _place(box: Box, w: int, h: int, width: int, height: int, taken: list[Box]) -> Box:
    """A position for a label of w x h pixels that covers as little of other labels as possible."""
    x1, y1, x2, y2 = box
    lines = [y1 - h, y1, y2, y2 - h, *range(y1 + h, y2, h), *range(y1 - 2 * h, -1, -h)]
    columns = [x1, x2 - w]
    best, least = None, None
    for y in lines:
        for x in columns:
            if y < 0 or y + h > height:
                continue
            left = max(0, min(x, width - w))
            place = (left, y, min(left + w, width), y + h)
            covered = sum(_shared(place, other) for other in taken)
            if not covered:
                return place
            if least is None or covered < least:
                best, least = place, covered
    if best is None:  # a picture lower than a line
        top = max(0, min(y1, height - h))
        left = max(0, min(x1, width - w))
        best = (left, top, min(left + w, width), min(top + h, height))
    return best


def _shared(one: Box, other: Box) -> int:
    """The number of pixels in the intersection of two rectangles."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, across) * max(0, down)
