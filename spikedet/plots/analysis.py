"""Plots of the error analysis: errors of a spiking network by layer and over time."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedet.plots.figure import About, Rows, group_by, new_figure, png, style_axes


def residual(rows: Rows, about: About) -> bytes:
    """Plot the share of neurons with residual potential error in each layer (figure 4).

    Args:
        rows: Rows with `network`, `layer`, `share` and `share_max` (worst picture).
        about: Caption.

    Returns:
        PNG data.
    """
    title = f"Residual potential error, {about.steps()}"
    figure, axes = new_figure(title, "layer", "share of neurons", about)
    for network, layers in group_by(rows, "network").items():
        names = [row["layer"] for row in layers]
        (line,) = axes.plot(names, [row["share"] for row in layers], "o-", label=network)
        most = [row["share_max"] for row in layers]
        axes.plot(names, most, ":", color=line.get_color(), label=f"{network}, worst picture")
    return _png(figure, axes)


def similarity(rows: Rows, about: About) -> bytes:
    """Plot the cosine similarity of firing rates and stage-I activations in each layer (figure 5b).

    Args:
        rows: Rows with `network`, `layer` and `cosine`.
        about: Caption.

    Returns:
        PNG data.
    """
    figure, axes = new_figure(f"Similarity to stage I, {about.steps()}", "layer", "cosine", about)
    for network, layers in group_by(rows, "network").items():
        axes.plot([r["layer"] for r in layers], [r["cosine"] for r in layers], "o-", label=network)
    return _png(figure, axes)


def layers(rows: Rows, about: About) -> bytes:
    """Plot the error of each layer before and after stage II.

    Args:
        rows: Rows with `layer`, `before` and `after`.
        about: Caption.

    Returns:
        PNG data.
    """
    label = r"mean squared error / $\theta^2$ (readouts: / variance)"
    title = f"Error to stage I before and after stage II, {about.steps()}"
    figure, axes = new_figure(title, "layer", label, about)
    for column in ("before", "after"):
        axes.plot([r["layer"] for r in rows], [r[column] for r in rows], "o-", label=column)
    axes.set_yscale("log")
    return _png(figure, axes)


def rates(rows: Rows, about: About) -> bytes:
    """Plot the firing rate of each layer, and below it the error to stage I if it was measured.

    Args:
        rows: Rows with `network`, `layer`, `rate` (spikes per neuron and step) and perhaps `error`.
        about: Caption.

    Returns:
        PNG data.
    """
    measured = any(row.get("error") is not None for row in rows)
    figure, first = new_figure(
        f"Firing rate by layer, {about.steps()}", "layer", "spikes a step", about
    )
    several = [("rate", first)]
    if measured:
        figure.set_figheight(8)
        first.remove()
        upper, lower = figure.subplots(2, sharex=True)
        upper.set(title=first.get_title(), ylabel=first.get_ylabel())
        lower.set(xlabel="layer", ylabel=r"error to stage I / $\theta^2$", yscale="log")
        style_axes(upper)
        style_axes(lower)
        several = [("rate", upper), ("error", lower)]
    for column, axes in several:
        for network, own in group_by(rows, "network").items():
            shown = [row for row in own if row.get(column) is not None]
            axes.plot([r["layer"] for r in shown], [r[column] for r in shown], "o-", label=network)
    several[0][1].set_ylim(bottom=0)
    several[0][1].legend(fontsize="small")
    several[-1][1].tick_params("x", rotation=90, labelsize="small")
    return png(figure)


def raster(rows: Rows, about: About) -> bytes:
    """Plot the spikes of some neurons at one position of each layer over the time steps.

    Args:
        rows: Rows with `layer`, `channel`, `row`, `column`, `T` (the step) and `spike` (0 or 1).
        about: Caption.

    Returns:
        PNG data.
    """
    lines = group_by([{**row, "neuron": (row["layer"], row["channel"])} for row in rows], "neuron")
    height = min(40.0, 1.5 + 0.13 * len(lines))
    title = f"Spikes at one place of one picture, {about.steps()}"
    figure, axes = new_figure(title, "time step", "", about, (8, height))
    spikes = [[row["T"] for row in own if row["spike"]] for own in lines.values()]
    numbers = {layer: number for number, layer in enumerate(group_by(rows, "layer"))}
    cycle = ("#0072B2", "#D55E00")
    colours = [cycle[numbers[layer] % 2] for layer, _ in lines]
    axes.eventplot(spikes, colors=colours, lineoffsets=range(len(lines)), linelengths=0.8)
    places: dict[str, list[int]] = {}
    for number, (layer, _) in enumerate(lines):
        places.setdefault(layer, []).append(number)
    axes.set_yticks([float(np.mean(own)) for own in places.values()], list(places))
    axes.tick_params("y", labelsize="x-small")
    steps = max(row["T"] for row in rows)
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_ylim(len(lines) - 0.5, -0.5)  # the first layer at the top
    axes.grid(axis="y", visible=False)
    return png(figure)


def periodic(rows: Rows, about: About) -> bytes:
    """Plot the firing rate over the quantiser's output for each course of the current (figure 5a).

    Args:
        rows: Rows with `course`, `T`, `quantiser` and `rate`.
        about: Caption.

    Returns:
        PNG data.
    """
    title = f"Quantiser against neuron, {about.steps()}"
    figure, axes = new_figure(title, "quantiser of the mean current", "rate", about)
    courses, T = group_by(rows, "course"), rows[0]["T"]
    for number, (course, points) in enumerate(courses.items()):
        shift = (number / len(courses) - 0.5) / (
            2 * T
        )  # shifted, so that the points do not overlap
        x = [row["quantiser"] + shift for row in points]
        axes.plot(x, [row["rate"] for row in points], ".", label=course)
    axes.plot([0, 1], [0, 1], "k-", linewidth=0.8, label="equal")
    return _png(figure, axes)


def gap(rows: Rows, about: About) -> bytes:
    """Plot the error of the outputs over the time steps of one run (figure 5c).

    Args:
        rows: Rows with `reference`, `network`, `T` and `error`.
        about: Caption.

    Returns:
        PNG data.
    """
    title = f"Error of the outputs in one run, {about.steps()}"
    figure, axes = new_figure(title, "time step", "error / variance", about)
    for reference, some in group_by(rows, "reference").items():
        for network, steps in group_by(some, "network").items():
            label, values = f"{network} to {reference}", [row["error"] for row in steps]
            axes.plot([row["T"] for row in steps], values, marker=".", label=label)
    axes.set_yscale("log")
    return _png(figure, axes)


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.legend(fontsize="small")
    if axes.get_xlabel() == "layer":
        axes.tick_params("x", rotation=90, labelsize="small")
    return png(figure)
