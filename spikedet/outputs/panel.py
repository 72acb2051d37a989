"""The panel that the demos show: annotated pictures, firing rates and lines of text."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from spikedet.detection.draw import font_of

GROUND, INK, FAINT = 24, 235, 70  # grey
BAR = (60, 190, 250)
NARROWEST, WIDEST, HIGHEST = 480, 1600, 720  # pixels of the panel and its pictures
BARS, LETTERS = 64, 15  # height in pixels of bars and letters


def panel(
    pictures: Mapping[str, np.ndarray], rates: Mapping[str, float], lines: Sequence[str]
) -> np.ndarray:
    """Combine pictures, firing rates and text into one picture.

    Args:
        pictures: Pictures [H, W, 3] uint8 BGR by title. They are shown side by side.
        rates: Firing rate of each layer in spikes per neuron and step, in order. Full height is 1.
        lines: Lines of text below.

    Returns:
        [H, W, 3] uint8 BGR. The size depends only on the sizes of the pictures and the number of
        lines.
    """
    shown = _row([_titled(_fitted(p, len(pictures)), title) for title, p in pictures.items()])
    width = shown.shape[1]
    return np.concatenate([shown, firing_rates(rates, width), _text(lines, width)])


def _fitted(picture: np.ndarray, count: int) -> np.ndarray:
    """Resize a picture so that the panel is readable."""
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
    """Put pictures side by side. The row is at least `NARROWEST` pixels wide."""
    width = sum(picture.shape[1] for picture in pictures)
    height = max(picture.shape[0] for picture in pictures)
    row = np.full((height, max(width, NARROWEST), 3), GROUND, np.uint8)
    left = (row.shape[1] - width) // 2
    for picture in pictures:
        row[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1]
    return row


def firing_rates(rates: Mapping[str, float], width: int) -> np.ndarray:
    """Draw a bar for the firing rate of each layer, from the first layer to the last.

    Args:
        rates: Spikes per neuron and step of each layer.
        width: Width in pixels.

    Returns:
        [H, width, 3] uint8 BGR. Full height is 1 spike per neuron and step.
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
    """Draw lines of text. Lines that are too wide get a smaller font."""
    return np.concatenate([_line(line, width) for line in lines])


@functools.lru_cache(64)
def _line(line: str, width: int) -> np.ndarray:
    """Draw a line of text. Most lines of a panel are those of the panel before."""
    size = LETTERS
    while size > 6 and font_of(size).getlength(line) > width - 8:
        size -= 1
    canvas = Image.new("L", (width, LETTERS + 6), GROUND)
    ImageDraw.Draw(canvas).text((4, 1), line, INK, font_of(size))
    return np.repeat(np.asarray(canvas)[..., None], 3, 2)
