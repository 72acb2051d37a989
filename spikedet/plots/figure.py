"""Shared parts of all plots: colours, the description of the data, and the PNG file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spikedet import __version__
from spikedet.files import write_atomic, write_csv

Rows = Sequence[Mapping[str, Any]]
# Okabe and Ito, without yellow: told apart with any colour vision; lines change as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = cycler(linestyle=["-", "--", "-.", ":"]) * cycler(color=COLOURS)
GREY = "0.75"
PACKAGE = f"spikedet {__version__}"
SCALE = "cividis"  # of matrices: its lightness says all


@dataclass(frozen=True)
class About:
    """What the numbers of a plot are of.

    Attributes:
        weights: Names of the files.
        data: The pictures: split and number.
        T: Time steps, None without.
        machine: What it was measured on, where that matters.
    """

    weights: str
    data: str
    T: int | Sequence[int] | None = None
    machine: str = ""

    def line(self) -> str:
        """One line below a plot."""
        parts = (self.steps(), self.data, self.weights, self.machine, PACKAGE)
        return "; ".join(filter(None, parts))

    def steps(self) -> str:
        """`T=8`, or `T=1, 2, 4, 8`; empty without."""
        if self.T is None:
            return ""
        several = [self.T] if isinstance(self.T, int) else self.T
        return "T=" + ", ".join(map(str, several)) if several else ""


Draw = Callable[[Rows, About], bytes]


def new_figure(
    title: str, x: str, y: str, about: About, size: tuple[float, float] = (8, 5)
) -> tuple[Figure, Axes]:
    """A figure with one plot.

    Args:
        title: Of the plot.
        x: Name of the horizontal axis.
        y: Name of the vertical one.
        about: What stands below it.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    style_axes(axes)
    add_caption(figure, about)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give a plot a grid, and lines that are told apart."""
    axes.set_prop_cycle(LINES)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def add_caption(figure: Figure, about: About) -> None:
    """Say below a figure what its numbers are of."""
    letters = int(figure.get_figwidth() * 15)
    figure.supxlabel("\n".join(textwrap.wrap(about.line(), letters)), fontsize="x-small")


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    return render(figure, "png")


def render(figure: Figure, form: str) -> bytes:
    """A figure as `png` or `svg`."""
    data = io.BytesIO()
    dated = {"Date": None} if form == "svg" else None  # the same file every time
    FigureCanvasAgg(figure).print_figure(data, format=form, dpi=120, metadata=dated)
    return data.getvalue()


def group_by(rows: Rows, column: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Rows in groups of one value of a column."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def write(
    folder: Path,
    name: str,
    rows: Rows,
    draw: Draw,
    about: About,
    columns: Sequence[str] = (),
) -> Path:
    """Write a plot and its numbers.

    Args:
        folder: Where `NAME.png` and `NAME.csv` go.
        name: Of both; holds T where they depend on it.
        rows: The numbers.
        draw: Draws them.
        about: What they are of.
        columns: Of the numbers, where there may be none.

    Returns:
        The plot.
    """
    write_csv(folder / f"{name}.csv", rows, columns)
    path = folder / f"{name}.png"
    write_atomic(path, draw(rows, about))
    return path
