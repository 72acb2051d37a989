"""Sliding windows along a row: each event is read once, not once for every window.

An event in a column is added to all outputs whose windows contain it. If a layer has few output
channels, reading the events takes as long as adding their weights, so this saves time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from spikedet.engines.sources import Source
from spikedet.engines.views import Shape

NARROW = 64  # most output channels for which sliding is faster
COLUMNS = (2, 3)  # window widths that the kernels support
INT16 = 2**15 - 1


def slide_of(
    sources: Sequence[Source], bases: Sequence[Shape], most: Sequence[int]
) -> tuple[int, int] | None:
    """The width of a layer's window and its `slide_lead`; None if the layer does not slide.

    Args:
        sources: All inputs of the layer.
        bases: (codes, H, W) of the tensor of each input: its channels, twice as many if it has
            negative spikes.
        most: How often an event of each input can occur in one time step.
    """
    windows = {source.window for source in sources}
    window = sources[0].window
    if window is None or len(windows) > 1 or len({(base[0], base[2]) for base in bases}) > 1:
        return None
    columns, padding = window.kernel[1], window.padding[1]
    lead = columns - 1 - padding
    still = window.stride[1] == window.dilation[1] == 1 and not window.transposed
    if not still or columns not in COLUMNS or lead < 0:
        return None
    total = np.zeros(1, np.int64)  # the largest sum of a window, by output
    for source, times in zip(sources, most, strict=True):
        if source.weights is None or source.weights.shape[1] > NARROW:
            return None
        sums = np.abs(source.weights.astype(np.int64)).sum(0)
        total = total + sums * times * _repeats(source)
    return (columns, lead) if total.max() <= INT16 else None


def _repeats(source: Source) -> int:
    """Number of rows of a tensor that use one row of weights; several if rows are averaged."""
    counts = (Counter(weight_row for _, weight_row in line) for line in source.rows)
    return max((max(count.values(), default=1) for count in counts), default=1)
