"""Windows that slide along a row: each event is read once and not once for every window over it.

An event of column c adds to all outputs whose windows hold c. Where few channels go out, reading
events takes as long as adding their weights, so that this pays. Columns of a stride are taken
together, and the kernel is padded with zeros to a multiple of the stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spikedet.engines.sources import Source
from spikedet.engines.views import Shape

NARROW = 64  # channels of outputs up to which it pays
TAPS = (2, 3)  # outputs of a column that kernels are built for
INT16 = 2**15 - 1


@dataclass(frozen=True)
class Slide:
    """How windows lie along a row.

    Attributes:
        taps: Outputs that a column adds to.
        stride: Columns that are taken together.
        lead: An output is complete so many of these later than its own number.
        before, behind: Columns of zeros that the kernel is padded with.
    """

    taps: int
    stride: int
    lead: int
    before: int
    behind: int


def slide_of(
    sources: Sequence[Source], bases: Sequence[Shape], most: Sequence[int]
) -> Slide | None:
    """How the windows of a layer slide, None where they do not.

    Args:
        sources: All inputs of the layer.
        bases: (C, H, W) of the tensor of each.
        most: How often an event of each can occur in a step.
    """
    first = sources[0]
    if first.window is None or len({(base[0], base[2]) for base in bases}) > 1:
        return None
    kernel, stride, padding, dilation = _along(first)
    if dilation != 1 or stride != 1:
        return None
    total = 0
    for source, times in zip(sources, most, strict=True):
        if source.window is None or source.window.transposed or _along(source) != _along(first):
            return None
        if source.weights is None or source.weights.shape[1] > NARROW:
            return None
        total = total + np.abs(source.weights.astype(np.int64)).sum(0) * times
    before = -padding % stride
    behind = -(before + kernel) % stride
    taps = (before + kernel + behind) // stride
    lead = taps - 1 - (padding + before) // stride
    if taps not in TAPS or lead < 0 or np.max(total) > INT16:
        return None
    return Slide(taps, stride, lead, before, behind)


def slid(source: Source, slide: Slide, channels: int) -> Source:
    """The same input with the kernel padded with columns of zeros."""
    assert source.window is not None and source.weights is not None
    kernel = source.window.kernel
    weights = source.weights.reshape(*kernel, channels, -1)
    weights = np.pad(weights, ((0, 0), (slide.before, slide.behind), (0, 0), (0, 0)))
    before, now = kernel[1] * channels, weights.shape[1] * channels
    rows = [[(y, row // before * now) for y, row in line] for line in source.rows]
    return replace(source, rows=rows, weights=weights.reshape(-1, weights.shape[-1]))


def _along(source: Source) -> tuple[int, int, int, int]:
    """Kernel, stride, padding and dilation along a row."""
    window = source.window
    assert window is not None
    return window.kernel[1], window.stride[1], window.padding[1], window.dilation[1]
