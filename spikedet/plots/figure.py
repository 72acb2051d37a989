"""Shared parts of all plots: colours, the caption, and the PNG and CSV files."""

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
# Okabe and Ito without yellow, for any colour vision. The dashes of lines differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = cycler(linestyle=["-", "--", "-.", ":"]) * cycler(color=COLOURS)
GREY = "0.75"
PACKAGE = f"spikedet {__version__}"
SCALE = "cividis"  # colour map of matrices, readable in greyscale too


@dataclass(frozen=True)
class About:
    """The source of the numbers in a plot, for its caption.

    Attributes:
        weights: Names of the weights files.
        data: Split and number of the pictures.
        T: Time steps. None for a float network.
        machine: Machine of the measurement, if it matters.
    """

    weights: str
    data: str
    T: int | Sequence[int] | None = None
    machine: str = ""

    def line(self) -> str:
        """The caption as one line."""
        parts = (self.steps(), self.data, self.weights, self.machine, PACKAGE)
        return "; ".join(filter(None, parts))

    def steps(self) -> str:
        """The time steps, such as `T=8` or `T=1, 2, 4, 8`. Empty if there are none."""
        if self.T is None:
            return ""
        several = [self.T] if isinstance(self.T, int) else self.T
        return "T=" + ", ".join(map(str, several)) if several else ""


Draw = Callable[[Rows, About], bytes]


def new_figure(
    title: str, x: str, y: str, about: About, size: tuple[float, float] = (8, 5)
) -> tuple[Figure, Axes]:
    """Make a figure with one plot.

    Args:
        title: Title of the plot.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        about: Caption below the plot.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    style_axes(axes)
    add_caption(figure, about)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give a plot a grid, and lines that differ in colour and dashes."""
    axes.set_prop_cycle(LINES)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def add_caption(figure: Figure, about: About) -> None:
    """Write the source of the numbers below a figure."""
    letters = int(figure.get_figwidth() * 15)
    figure.supxlabel("\n".join(textwrap.wrap(about.line(), letters)), fontsize="x-small")


def png(figure: Figure) -> bytes:
    """Convert a figure to PNG data."""
    return render(figure, "png")


def render(figure: Figure, form: str) -> bytes:
    """Convert a figure to data in the format `png` or `svg`."""
    data = io.BytesIO()
    dated = {"Date": None} if form == "svg" else None  # no date, so that the file is reproducible
    FigureCanvasAgg(figure).print_figure(data, format=form, dpi=120, metadata=dated)
    return data.getvalue()


def group_by(rows: Rows, column: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Group rows by the value of a column."""
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
    """Write a plot and its numbers, as `NAME.png` and `NAME.csv`.

    Args:
        folder: Folder for both files.
        name: File name without suffix. It contains T if the numbers depend on T.
        rows: The numbers.
        draw: Function that draws the rows as PNG.
        about: Caption of the plot.
        columns: Columns of the CSV file if there may be no rows.

    Returns:
        Path of the plot.
    """
    write_csv(folder / f"{name}.csv", rows, columns)
    path = folder / f"{name}.png"
    write_atomic(path, draw(rows, about))
    return path
