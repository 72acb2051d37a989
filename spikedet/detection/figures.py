"""Plots of measured detection results, drawn without a display; T is in every title or legend."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from spikedet.analysis.plots import png
from spikedet.detection.boxes import Detections


def per_class(rows: Sequence[dict], title: str) -> bytes:
    """AP of each class, one bar a row, as PNG.

    Args:
        rows: With `method`, `T` and `per_class`, AP in 0..1 by class name, None where undefined.
        title: Of the plot.
    """
    names = list(rows[0]["per_class"])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, ylabel="AP (%)")
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        places = np.arange(len(names)) + (index - (len(rows) - 1) / 2) * width
        values = [100 * (row["per_class"][name] or 0) for name in names]
        label = row["method"] + (f" T={row['T']}" if row["T"] else "")
        axes.bar(places, values, width, label=label)
    axes.set_xticks(np.arange(len(names)), names, rotation=45, ha="right")
    axes.legend()
    return png(figure)


def grid(rows: Sequence[tuple[str, Sequence[Detections]]], side: int = 240) -> bytes:
    """Detections of one picture after several time steps, one row a method, as PNG.

    Args:
        rows: Name of a method, and its detections with their pictures.
        side: Width of each picture in pixels.
    """
    columns = max(len(detections) for _, detections in rows)
    size = (columns * side / 100, len(rows) * side / 90)
    figure = Figure(figsize=size, layout="constrained")
    table = figure.subplots(len(rows), columns, squeeze=False)
    for line, (method, detections) in zip(table, rows, strict=True):
        for axes, one in zip(line, detections, strict=False):
            axes.imshow(cv2.cvtColor(one.plot(), cv2.COLOR_BGR2RGB))
            axes.set_title(method if one.T is None else f"{method}, t={one.T}", fontsize=8)
        for axes in line:
            axes.axis("off")
    return png(figure)
