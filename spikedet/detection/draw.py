"""Detections drawn on their picture."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from spikedet.detection.boxes import Detections

FONT = cv2.FONT_HERSHEY_SIMPLEX


def colour(label: int) -> tuple[int, int, int]:
    """A BGR colour of its own for each class; neighbours are far apart on the colour circle."""
    hue = (label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw(detections: Detections) -> np.ndarray:
    """A copy of the picture with boxes and labels, sized to the picture.

    Args:
        detections: With their picture.

    Returns:
        [H, W, 3] uint8 BGR.

    Raises:
        ValueError: The detections hold no picture.
    """
    if detections.picture is None:
        raise ValueError("these detections hold no picture to draw on")
    canvas = detections.picture.copy()
    height, width = canvas.shape[:2]
    size = max(0.3, (width + height) / 2 / 1000)
    line = max(1, round(size * 2))
    for box, score, label in reversed(
        list(zip(detections.boxes, detections.scores, detections.labels, strict=True))
    ):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour(label), line)
        text = f"{detections.names[label]} {score:.2f}"
        (text_width, text_height), below = cv2.getTextSize(text, FONT, size, line)
        left = max(0, min(x1, width - text_width))
        bottom = max(text_height + below, y1)
        cv2.rectangle(
            canvas,
            (left, bottom - text_height - below),
            (left + text_width, bottom),
            colour(label),
            cv2.FILLED,
        )
        bright = np.dot(colour(label), (0.114, 0.587, 0.299)) > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        cv2.putText(canvas, text, (left, bottom - below // 2), FONT, size, ink, line, cv2.LINE_AA)
    return canvas


def status(picture: np.ndarray, text: str) -> np.ndarray:
    """A copy of the picture with a line of text on a dark strip at its lower edge.

    Args:
        picture: [H, W, 3] uint8 BGR.
        text: ASCII, shrunk to the width of the picture.

    Returns:
        [H, W, 3] uint8 BGR.
    """
    canvas = picture.copy()
    height, width = canvas.shape[:2]
    size = max(0.4, (width + height) / 2 / 1200)
    line = max(1, round(size * 2))
    (text_width, _), _ = cv2.getTextSize(text, FONT, size, line)
    size *= min(1.0, 0.95 * width / text_width)
    (_, text_height), below = cv2.getTextSize(text, FONT, size, line)
    top = max(0, height - text_height - 2 * below)
    canvas[top:] //= 4
    cv2.putText(canvas, text, (below, height - below), FONT, size, (255,) * 3, line, cv2.LINE_AA)
    return canvas
