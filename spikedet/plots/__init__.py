"""Plots of results. Only this package draws plots; it needs no display.

Each function takes the rows of a table and returns a PNG, so that the same numbers lie beside the
plot as CSV (`write`).
"""

from spikedet.plots.figure import About, Draw, Rows, write

__all__ = ["About", "Draw", "Rows", "write"]
