"""Plots of pictures side by side, such as the detections after each time step."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from spikedet.plots.figure import About, add_caption, png

Titled = tuple[str, np.ndarray]  # title and picture [H, W, 3] uint8 BGR
COLUMNS = 5  # most columns of a strip
WIDEST = 480  # most pixels of a side


def strip(pictures: Sequence[Titled], about: About, side: int = 300) -> bytes:
    """Plot the detections of one picture after each time step, with a panel for each step.

    Args:
        pictures: Title and picture for each step. The detections are drawn into the pictures.
        about: Caption.
        side: Width of a panel in pixels.

    Returns:
        PNG data.
    """
    rows = [pictures[n : n + COLUMNS] for n in range(0, len(pictures), COLUMNS)]
    return grid(rows, about, side)


def grid(rows: Sequence[Sequence[Titled]], about: About, side: int = 240) -> bytes:
    """Plot rows of pictures.

    Args:
        rows: Rows of pictures with their titles.
        about: Caption.
        side: Width of a picture in pixels.

    Returns:
        PNG data.
    """
    columns = max(map(len, rows))
    height, width = rows[0][0][1].shape[:2]
    shape = min(3.0, max(0.3, height / width))
    size = (columns * side / 100, len(rows) * (side * shape / 100 + 0.25) + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    table = figure.subplots(len(rows), columns, squeeze=False)
    for line, pictures in zip(table, rows, strict=True):
        for axes, (title, picture) in zip(line, pictures, strict=False):
            axes.imshow(shrink(picture)[0][..., ::-1])
            axes.set_title(title, fontsize=8)
        for axes in line:
            axes.axis("off")
    add_caption(figure, about)
    return png(figure)


def shrink(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """Shrink a picture [H, W, 3] to at most `WIDEST` pixels.

    Returns:
        The picture, and the scale factor (1 if the picture is unchanged).
    """
    height, width = picture.shape[:2]
    scale = min(1.0, WIDEST / max(height, width))
    if scale == 1:
        return picture, 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), scale
