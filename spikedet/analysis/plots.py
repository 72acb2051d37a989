"""Plots of the error analysis, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]


def residual(rows: Rows, T: int) -> bytes:
    """Share of neurons with residual potential error in each layer (figure 4), as PNG."""
    figure, axes = _new(f"Residual potential error, T={T}", "layer", "share of neurons")
    for network, layers in _by(rows, "network").items():
        names = [row["layer"] for row in layers]
        (line,) = axes.plot(names, [row["share"] for row in layers], "o-", label=network)
        most = [row["share_max"] for row in layers]
        axes.plot(names, most, ":", color=line.get_color(), label=f"{network}, worst picture")
    return _png(figure, axes)


def similarity(rows: Rows, T: int) -> bytes:
    """Cosine of spiking rates and stage-I activations in each layer (figure 5b), as PNG."""
    figure, axes = _new(f"Similarity to stage I, T={T}", "layer", "cosine")
    for network, layers in _by(rows, "network").items():
        axes.plot([r["layer"] for r in layers], [r["cosine"] for r in layers], "o-", label=network)
    return _png(figure, axes)


def layers(rows: Rows, T: int) -> bytes:
    """Error of each layer before and after stage II, as PNG."""
    label = r"mean squared error / $\theta^2$ (readouts: / variance)"
    figure, axes = _new(f"Error to stage I before and after stage II, T={T}", "layer", label)
    for column in ("before", "after"):
        axes.plot([r["layer"] for r in rows], [r[column] for r in rows], "o-", label=column)
    axes.set_yscale("log")
    return _png(figure, axes)


def periodic(rows: Rows, T: int) -> bytes:
    """Firing rate over quantiser for each course of the current (figure 5a), as PNG."""
    figure, axes = _new(f"Quantiser against neuron, T={T}", "quantiser of the mean current", "rate")
    courses = _by(rows, "course")
    for number, (course, points) in enumerate(courses.items()):
        shift = (number / len(courses) - 0.5) / (2 * T)  # side by side, or they hide each other
        x = [row["quantiser"] + shift for row in points]
        axes.plot(x, [row["rate"] for row in points], ".", label=course)
    axes.plot([0, 1], [0, 1], "k-", linewidth=0.8, label="equal")
    return _png(figure, axes)


def gap(rows: Rows, T: int) -> bytes:
    """Error of the outputs over the time steps of one run (figure 5c), as PNG."""
    figure, axes = _new(
        f"Error of the outputs in one run of T={T}", "time step", "error / variance"
    )
    for reference, some in _by(rows, "reference").items():
        for network, steps in _by(some, "network").items():
            label, values = f"{network} to {reference}", [row["error"] for row in steps]
            axes.plot([row["T"] for row in steps], values, ".-", label=label)
    axes.set_yscale("log")
    return _png(figure, axes)


def over(rows: Rows, key: str, value: str, title: str, source: float | None = None) -> bytes:
    """A measured value of each method over a column, as PNG.

    Args:
        rows: With `method`, the value in 0..1 and the column.
        key: The column: `T`, or the number of calibration pictures.
        value: The column of the value: `AP`, `top1`.
        title: Of the plot.
        source: Value of the float network, a dashed line.
    """
    figure, axes = _new(title, "time steps T" if key == "T" else key, f"{value} (%)")
    for method, own in _by(rows, "method").items():
        line = sorted((row[key], 100 * row[value]) for row in own)
        axes.plot(*zip(*line, strict=True), marker="o", label=method)
    if source is not None:
        axes.axhline(100 * source, color="black", linestyle="--", label="float")
    ticks = sorted({row[key] for row in rows})
    if min(ticks) > 0:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    return _png(figure, axes)


def _by(rows: Rows, column: str) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def _new(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.legend(fontsize="small")
    if axes.get_xlabel() == "layer":
        axes.tick_params("x", rotation=90, labelsize="small")
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()
