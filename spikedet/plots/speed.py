"""Plots of the computing time of networks."""

from __future__ import annotations

import math
from collections.abc import Collection

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from spikedet.plots.figure import About, Rows, add_caption, group_by, render, style_axes

TITLE = "Time over that of the float32 network"


def passes(rows: Rows, about: About, floats: Collection[str] = (), form: str = "png") -> bytes:
    """Plot the computing time over T, in passes of the float network, with a line for each engine.

    There is a panel for each batch size and number of threads.

    Args:
        rows: Rows with `name`, `engine`, `T`, `batch`, `threads` and `passes`.
        about: Caption.
        floats: Names of the float networks, which are drawn as horizontal lines.
        form: `png` or `svg`.

    Returns:
        Data in this format.
    """
    groups = group_by([{**row, "panel": (row["batch"], row["threads"])} for row in rows], "panel")
    across = min(2, len(groups))
    down = math.ceil(len(groups) / across)
    figure = Figure(figsize=(7.5 * across, 4.4 * down + 0.4), layout="constrained")
    plots = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    for axes, ((batch, threads), own) in zip(plots, groups.items(), strict=False):
        style_axes(axes)
        number = f"batch {batch}, {threads} thread{'' if threads == 1 else 's'}"
        axes.set(title=f"{TITLE}: {number}", xlabel="time steps T", ylabel="passes")
        _panel(axes, own, floats)
    for axes in plots[len(groups) :]:
        axes.axis("off")
    add_caption(figure, about)
    return render(figure, form)


def _panel(axes: Axes, rows: Rows, floats: Collection[str]) -> None:
    """Draw the lines of one panel. Both axes are logarithmic."""
    named = [{**row, "line": f"{row['name']}, {row['engine']}"} for row in rows]
    spiking = [row for row in named if row["name"] not in floats]
    for label, own in group_by(spiking, "line").items():
        points = sorted((row["T"], row["passes"]) for row in own)
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    for row in named:
        if row["name"] not in floats:
            continue
        axes.axhline(row["passes"], color="black", linewidth=0.9, linestyle="--")
        axes.annotate(
            f"{row['name']} float", (1, row["passes"]), (-2, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", fontsize="x-small",
        )  # fmt: skip
    steps = sorted({row["T"] for row in spiking})
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    if spiking:
        axes.legend(fontsize="small")
