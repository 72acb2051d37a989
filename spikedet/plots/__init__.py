"""Plots of results. Only this package draws plots. It needs no display.

Each function takes the rows of a table and returns PNG data. `write` stores the same rows as CSV
next to the plot.
"""

from spikedet.plots.figure import About, Draw, Rows, write

__all__ = ["About", "Draw", "Rows", "write"]
