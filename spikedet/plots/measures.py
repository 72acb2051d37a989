"""Plots of measured results of detectors, classifiers and trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spikedet.plots.figure import (
    COLOURS,
    GREY,
    SCALE,
    About,
    Rows,
    add_caption,
    group_by,
    new_figure,
    png,
    style_axes,
)

ALL = "all classes"
SHARES = ("average precision", "precision and recall", "accuracy")  # panels whose axis starts at 0
NAMED = 7  # most lines with a name in the legend; more lines are grey
WRITTEN = 12  # most classes of a matrix with numbers in its cells
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")  # bars of one colour differ in these
LETTERS = 30  # most letters of a class name
LABELLED = 40  # most classes of a matrix with class names


def value_curves(
    rows: Rows,
    key: str,
    value: str,
    title: str,
    source: float | None,
    about: About,
) -> bytes:
    """Plot a measured value over a column, with a line for each method.

    Args:
        rows: Rows with `method`, the column `key` and the value (0..1).
        key: Column of the horizontal axis: `T`, or the number of calibration pictures.
        value: Column of the value, such as `AP` or `top1`.
        title: Title of the plot.
        source: Value of the float network, drawn as a dashed line. None: no line.
        about: Caption.

    Returns:
        PNG data.
    """
    figure, axes = new_figure(title, "time steps T" if key == "T" else key, f"{value} (%)", about)
    for method, own in group_by(rows, "method").items():
        line = sorted((row[key], 100 * row[value]) for row in own)
        axes.plot(*zip(*line, strict=True), marker="o", label=method)
    _over_steps(axes, rows, key, source)
    return png(figure)


def energy_trade_off(rows: Rows, value: str, about: About) -> bytes:
    """Plot a measured value over the energy, for different penalties on spikes.

    Args:
        rows: Rows with `sparsity` (empty for the network before the training), `energy` as a
            fraction of the float network, the value (0..1), and `passes` if time was measured.
        value: Column of the value.
        about: Caption.

    Returns:
        PNG data.
    """
    title = f"{value} and energy with a penalty on spikes"
    figure, axes = new_figure(title, "energy, % of the float network", f"{value} (%)", about)
    line = sorted((100 * row["energy"], 100 * row[value]) for row in rows if row["sparsity"] != "")
    if line:
        axes.plot(*zip(*line, strict=True), marker="o", label="trained with the penalty")
    for row in rows:
        place = (100 * row["energy"], 100 * row[value])
        words = "" if row["sparsity"] == "" else f"{row['sparsity']:g}"
        words += f" ({row['passes']:.2f} passes)" if row.get("passes") else ""
        if row["sparsity"] == "":
            axes.plot(*place, marker="s", linestyle="", label="before")
        offset = (5, -12) if row["sparsity"] == "" else (5, 6)
        axes.annotate(words.strip(), place, offset, textcoords="offset points", fontsize="small")
    axes.margins(0.15)
    axes.legend()
    return png(figure)


def sizes(rows: Rows, about: About) -> bytes:
    """Plot the AP of small, medium and large objects: lines over T, or bars for a single T.

    Args:
        rows: Rows with `method`, `T`, `size` and `AP`. AP is None if no such object is annotated.
        about: Caption.

    Returns:
        PNG data.
    """
    known = [row for row in rows if row["AP"] is not None]
    if len({row["T"] for row in known}) > 1 and len({row["method"] for row in known}) == 1:
        shown = [{**row, "method": row["size"]} for row in known if row["T"] is not None]
        return value_curves(shown, "T", "AP", "AP by size of the objects", None, about)
    figure, axes = new_figure("AP by size of the objects", "", "AP (%)", about)
    _bars(axes, list(group_by(rows, "size")), _by_network(rows, "size", "AP"))
    return png(figure)


def classes(rows: Rows, about: About, value: str = "AP", title: str = "") -> bytes:
    """Plot a measured value of each class, with a bar for each method.

    Args:
        rows: Rows with `method`, `T`, `class` and the value (0..1, None if undefined).
        about: Caption.
        value: Column of the value.
        title: Title of the plot.

    Returns:
        PNG data.
    """
    names = list(group_by(rows, "class"))
    wide = min(40.0, max(6.0, 2 + 0.45 * len(names)))
    figure, axes = new_figure(title or f"{value} by class", "", f"{value} (%)", about, (wide, 4.4))
    _bars(axes, names, _by_network(rows, "class", value))
    axes.tick_params("x", labelsize="small", labelrotation=90)
    return png(figure)


def precision_recall(rows: Rows, about: About) -> bytes:
    """Plot precision over recall for each class at IoU 0.5.

    Args:
        rows: Rows with `class` (`ALL` for the mean), `recall` and `precision`.
        about: Caption.

    Returns:
        PNG data.
    """
    figure, axes = new_figure("Precision and recall at IoU 0.5", "recall", "precision", about)
    _lines(axes, rows, "recall", "precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return png(figure)


def f1(rows: Rows, about: About) -> bytes:
    """Plot F1 over the confidence threshold for each class at IoU 0.5, and mark the best mean F1.

    Args:
        rows: Rows with `class` (`ALL` for the mean), `confidence` and `f1`.
        about: Caption.

    Returns:
        PNG data.
    """
    figure, axes = new_figure(
        "F1 over the confidence threshold, IoU 0.5", "confidence", "F1", about
    )
    _lines(axes, rows, "confidence", "f1")
    best = max((row for row in rows if row["class"] == ALL), key=lambda row: row["f1"])
    axes.axvline(best["confidence"], color="black", linewidth=0.8, linestyle=":")
    words = f"best {best['f1']:.2f} at {best['confidence']:.2f}"
    axes.annotate(words, (best["confidence"], best["f1"]), (4, 6), textcoords="offset points")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return png(figure)


def short_name(name: str) -> str:
    """Shorten a class name to at most `LETTERS` characters."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..."


def confusion(rows: Rows, about: About) -> bytes:
    """Plot a confusion matrix. The colour shows the share of the true class.

    Args:
        rows: Rows with `truth`, `predicted` and `count`.
        about: Caption.

    Returns:
        PNG data.
    """
    truths, answers = list(group_by(rows, "truth")), list(group_by(rows, "predicted"))
    names = list(dict.fromkeys([*truths, *answers]))
    if "background" in names:  # the last one
        names = [*(name for name in names if name != "background"), "background"]
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for row in rows:
        counts[place[row["truth"]], place[row["predicted"]]] += row["count"]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, max(5.0, 2.5 + 0.36 * len(names)))
    figure, axes = new_figure(
        "Confusion matrix", "predicted", "true class", about, (side + 1, side)
    )
    axes.grid(visible=False)
    shown = axes.imshow(shares, cmap=SCALE, vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, label="share of the true class", fraction=0.046)
    if len(names) <= LABELLED:
        labels = [*map(short_name, names)]
        axes.set_xticks(range(len(names)), labels, rotation=90)
        axes.set_yticks(range(len(names)), labels)
    if len(names) <= WRITTEN:
        for (line, column), count in np.ndenumerate(counts):
            colour = "black" if shares[line, column] > 0.5 else "white"
            axes.text(column, line, f"{count:.0f}", ha="center", va="center", color=colour)
    return png(figure)


def reliability(rows: Rows, about: About) -> bytes:
    """Plot the share of correct answers over their score, and the number of answers.

    Args:
        rows: A row for each bin with `low`, `high`, `count`, the mean `score`, and the share of
            correct answers `right`. The last two are None for an empty bin.
        about: Caption.

    Returns:
        PNG data.
    """
    known = [row for row in rows if row["count"]]
    total = sum(row["count"] for row in known)
    error = sum(row["count"] * abs(row["score"] - row["right"]) for row in known) / max(total, 1)
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        style_axes(axes)
    upper.set(title=f"Reliability of scores: calibration error {error:.3f}", ylabel="share right")
    upper.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8, label="score = share right")
    upper.plot([r["score"] for r in known], [r["right"] for r in known], "o-", color=COLOURS[0])
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(fontsize="small")
    width = rows[0]["high"] - rows[0]["low"]
    middle = [(row["low"] + row["high"]) / 2 for row in rows]
    lower.bar(middle, [row["count"] for row in rows], 0.9 * width, color=COLOURS[0])
    lower.set(xlabel="score", ylabel="answers", yscale="log" if total else "linear")
    if total:
        lower.set_ylim(bottom=0.5)  # so that a single answer is visible
    add_caption(figure, about)
    return png(figure)


def training(rows: Rows, about: About) -> bytes:
    """Plot the columns of a training's `results.csv` over the epochs.

    Similar columns share a panel.

    Args:
        rows: Rows with `epoch`. The other columns are numbers.
        about: Caption.

    Returns:
        PNG data.
    """
    columns = [name for name in rows[0] if name != "epoch" and _numbers(rows, name)]
    panels: dict[str, list[str]] = {}
    for name in columns:
        panels.setdefault(_panel(name), []).append(name)
    across = min(3, max(1, len(panels)))
    down = max(1, math.ceil(len(panels) / across))
    figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.4), layout="constrained")
    plots = figure.subplots(down, across, squeeze=False).flatten()
    epochs = [float(row["epoch"]) for row in rows]
    for axes, (title, names) in zip(plots, panels.items(), strict=False):
        style_axes(axes)
        for name in names:
            label = name.removeprefix("metrics/").removesuffix(
                "(B)"
            )  # ultralytics marks boxes with (B)
            axes.plot(epochs, [float(row[name]) for row in rows], marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if title in SHARES:
            axes.set_ylim(bottom=0)
        axes.legend(fontsize="x-small")
    for axes in plots[len(panels) :]:
        axes.axis("off")
    add_caption(figure, about)
    return png(figure)


def _panel(name: str) -> str:
    """The title of the panel for a column of `results.csv`."""
    lower = name.lower()
    for sign, title in {
        "loss": "loss", "map": "average precision", "precision": "precision and recall",
        "recall": "precision and recall", "top": "accuracy", "lr": "learning rate",
        "rate": "learning rate", "time": "time (s)", "seconds": "time (s)",
    }.items():  # fmt: skip
        if sign in lower:
            return title
    return name


def _numbers(rows: Rows, name: str) -> bool:
    """Whether a column has finite numbers only."""
    try:
        return all(math.isfinite(float(row[name])) for row in rows)
    except (KeyError, TypeError, ValueError):
        return False


def _lines(axes: Axes, rows: Rows, x: str, y: str) -> None:
    """Draw a line for each class and a thick line for the mean. Many classes are drawn in grey."""
    groups = group_by(rows, "class")
    many = len(groups) - 1 > NAMED
    for name, own in groups.items():
        how: dict[str, Any] = {"label": short_name(name)}
        if name == ALL:
            how |= {"color": "black", "linewidth": 2.5, "linestyle": "-", "zorder": 3}
        elif many:
            how |= {"color": GREY, "linewidth": 0.8, "linestyle": "-"}
            how["label"] = "each class" if name == next(iter(groups)) else None
        axes.plot([row[x] for row in own], [row[y] for row in own], **how)
    axes.legend(fontsize="small")


def _by_network(rows: Rows, name: str, value: str) -> dict[tuple[str, int | None], dict[str, Any]]:
    """The values by name, for each method and T."""
    networks: dict[tuple[str, int | None], dict[str, Any]] = {}
    for row in rows:
        networks.setdefault((row["method"], row["T"]), {})[row[name]] = row[value]
    return networks


def _named(method: str, T: int | None) -> str:
    return method + (f" T={T}" if T else "")


def _bars(
    axes: Axes, names: Sequence[str], bars: Mapping[tuple[str, int | None], Mapping[str, Any]]
) -> None:
    """Draw groups of bars in percent. The label of a group without any value says `(none)`.

    A method has one colour. Its time steps differ in the hatching.

    Args:
        axes: Plot to draw into.
        names: Names of the groups.
        bars: Values (0..1) by name, for each method and T.
    """
    methods = list(dict.fromkeys(method for method, _ in bars))
    times = sorted({T for _, T in bars if T is not None})
    width = 0.8 / len(bars)
    for index, ((method, T), values) in enumerate(bars.items()):
        places = np.arange(len(names)) + (index - (len(bars) - 1) / 2) * width
        heights = [100 * (values.get(name) or 0) for name in names]
        turn, colour = divmod(methods.index(method), len(COLOURS))
        hatch = HATCHES[(turn + (times.index(T) if T in times else 0)) % len(HATCHES)]
        label = _named(method, T)
        axes.bar(
            places, heights, width, label=label, color=COLOURS[colour], hatch=hatch,
            edgecolor="white", linewidth=0,  # of the hatching
        )  # fmt: skip
    empty = {n for n in names if all(values.get(n) is None for values in bars.values())}
    shown = [short_name(name) + (" (none)" if name in empty else "") for name in names]
    axes.set_xticks(np.arange(len(names)), shown)
    axes.grid(axis="x", visible=False)
    axes.legend(
        fontsize="small", loc="upper left", bbox_to_anchor=(1, 1)
    )  # to the right of the bars


def _over_steps(axes: Axes, rows: Rows, key: str, source: float | None) -> None:
    """Set a tick at each value of the column, and draw the line of the float network."""
    if source is not None:
        axes.axhline(100 * source, color="black", linestyle="--", label="float")
    ticks = sorted({row[key] for row in rows})
    if min(ticks) > 0:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small")
