"""The picture that the demos show: annotated pictures, spike rates and lines of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from spikedet.detection.draw import font_of

GROUND, INK, BAR, FAINT = (24, 24, 24), (235, 235, 235), (60, 190, 250), (70, 70, 70)
NARROWEST, WIDEST, HIGHEST = 480, 1600, 720  # pixels: of a panel, and of its pictures
BARS, LETTERS = 64, 15  # pixels of the height of the bars, and of letters


def panel(
    pictures: Mapping[str, np.ndarray], rates: Mapping[str, float], lines: Sequence[str]
) -> np.ndarray:
    """One picture of everything.

    Args:
        pictures: By title, [H, W, 3] uint8 BGR each, beside each other.
        rates: Spikes per neuron and step of each layer, in their order; full height is 1.
        lines: Text below.

    Returns:
        [H, W, 3] uint8 BGR, its size the same for the same sizes of pictures and number of lines.
    """
    shown = _row([_titled(_fitted(p, len(pictures)), title) for title, p in pictures.items()])
    width = shown.shape[1]
    return np.concatenate([shown, firing_rates(rates, width), _text(lines, width)])


def _fitted(picture: np.ndarray, count: int) -> np.ndarray:
    """A picture at a size at which the panel can be read."""
    height, width = picture.shape[:2]
    most = min(HIGHEST / height, WIDEST / count / width)
    scale = min(most, max(1.0, NARROWEST / count / width))
    if scale == 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    return cv2.resize(picture, size, interpolation=way)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    return np.concatenate([_text([title], picture.shape[1]), picture])


def _row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures beside each other, at least as wide as a panel."""
    width = sum(picture.shape[1] for picture in pictures)
    height = max(picture.shape[0] for picture in pictures)
    row = np.full((height, max(width, NARROWEST), 3), GROUND, np.uint8)
    left = (row.shape[1] - width) // 2
    for picture in pictures:
        row[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1]
    return row


def firing_rates(rates: Mapping[str, float], width: int) -> np.ndarray:
    """A bar for each layer, the first layer on the left.

    Args:
        rates: Spikes per neuron and step of each layer.
        width: Pixels.

    Returns:
        [h, width, 3] uint8 BGR; full height is 1 spike per neuron and step.
    """
    strip = np.full((BARS, width, 3), GROUND, np.uint8)
    strip[:: BARS // 4] = FAINT  # 1, 3/4, 1/2, 1/4
    edges = np.linspace(0, width, len(rates) + 1).round().astype(int)
    for rate, left, right in zip(rates.values(), edges[:-1], edges[1:], strict=True):
        high = round(min(1.0, rate) * (BARS - 1))
        gap = 1 if right - left > 3 else 0
        strip[BARS - 1 - high :, left + gap : right - gap] = BAR
    title = "firing rate of each layer, first to last (lines: 1/4, 1/2, 3/4, 1 spike a step)"
    return np.concatenate([_text([title], width), strip])


def _text(lines: Sequence[str], width: int) -> np.ndarray:
    """Lines of text, shrunk where they are wider than they may be."""
    high = LETTERS + 6
    canvas = Image.new("RGB", (width, high * len(lines)), GROUND)
    for number, line in enumerate(lines):
        size = LETTERS
        while size > 6 and font_of(size).getlength(line) > width - 8:
            size -= 1
        ImageDraw.Draw(canvas).text((4, high * number + 1), line, INK, font_of(size))
    return np.asarray(canvas)
