"""Plots of measured detection results; T is in every title, axis or legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import cv2  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from spikedet.detection.boxes import Detections  # noqa: E402


def per_class(rows: Sequence[dict], path: Path, title: str) -> None:
    """AP of each class, one bar a row.

    Args:
        rows: With `method`, `T` and `per_class`, AP in 0..1 by class name, None where undefined.
        path: PNG to write.
        title: Of the plot.
    """
    names = list(rows[0]["per_class"])
    figure, axes = plt.subplots(figsize=(11, 4.2))
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        places = np.arange(len(names)) + (index - (len(rows) - 1) / 2) * width
        values = [100 * (row["per_class"][name] or 0) for name in names]
        label = row["method"] + (f" T={row['T']}" if row["T"] else "")
        axes.bar(places, values, width, label=label)
    axes.set_xticks(np.arange(len(names)), names, rotation=45, ha="right")
    axes.set(ylabel="AP (%)", title=title)
    axes.legend()
    _save(figure, path)


def grid(rows: Sequence[tuple[str, Sequence[Detections]]], path: Path, side: int = 240) -> None:
    """Detections of one picture after several time steps, one row a method.

    Args:
        rows: Name of a method, and its detections with their pictures.
        path: PNG to write.
        side: Width of each picture in pixels.
    """
    columns = max(len(found) for _, found in rows)
    figure, table = plt.subplots(
        len(rows), columns, squeeze=False, figsize=(columns * side / 100, len(rows) * side / 90)
    )
    for line, (method, found) in zip(table, rows, strict=True):
        for axes, one in zip(line, found, strict=False):
            axes.imshow(cv2.cvtColor(one.plot(), cv2.COLOR_BGR2RGB))
            axes.set_title(method if one.T is None else f"{method}, t={one.T}", fontsize=8)
        for axes in line:
            axes.axis("off")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
