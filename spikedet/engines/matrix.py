"""Layers for a processor's matrix unit (`kernels/csrc/matrix.inc`).

The unit multiplies blocks of small integers. For it spikes are bytes, the columns of a row one
behind the other on a grid: the window of output x begins at place x * stride of the grid. Layers
write their spikes as bytes that are such grids already if they can (`byte_spikes`). Otherwise the
grid is made from events or from other bytes. The weights are stored in tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikedet.engines.layout import SourceStruct
from spikedet.engines.sources import Source
from spikedet.engines.storage import Storage

MOST = 127  # most spikes of a neuron in one time step that a byte holds
WIDE = 64  # inputs of a tile of weights
TILE = 16  # output positions of a tile
STRIDES = 8  # largest stride that is looked for
ALWAYS = False  # use the unit even if adding is faster, for tests


@dataclass(frozen=True)
class Grid:
    """The columns of an input as the matrix unit reads them.

    Attributes:
        stride: Places between the windows of two outputs.
        columns: Input column of each place, -1 for none.
        taps: Places of a window.
    """

    stride: int
    columns: list[int]
    taps: int

    @property
    def pitch(self) -> int:
        """Outputs for which there are places."""
        return -(-len(self.columns) // self.stride)


def grid_of(columns: Sequence[Sequence[tuple[int, int, int]]]) -> Grid | None:
    """The grid of a source; None if its windows do not lie at equal distances.

    Args:
        columns: (first input column, how many, first tap) for each output column.
    """
    windows = [
        [(tap + i, first + i) for first, number, tap in line for i in range(number)]
        for line in columns
    ]
    taps = 1 + max((tap for window in windows for tap, _ in window), default=0)
    read = [dict(window) for window in windows]
    if any(len(one) < len(window) for one, window in zip(read, windows, strict=True)):
        return None  # two columns with the same weights
    for stride in [taps] if len(windows) == 1 else range(1, STRIDES + 1):
        places = [-1] * ((len(windows) - 1) * stride + taps)
        for x, window in enumerate(windows):
            for tap, column in window:
                places[x * stride + tap] = column
        if all(
            one.get(tap, -1) == places[x * stride + tap]
            for x, one in enumerate(read)
            for tap in range(taps)
        ):
            return Grid(stride, places, taps)
    return None


def grids_of(
    sources: Sequence[Source], most: Sequence[int], channels: int
) -> list[Grid | None] | None:
    """The grids of all inputs of a layer; None if the matrix unit cannot compute the layer.

    Inputs that add to their own channels have no grid: they are added.

    Args:
        sources: The inputs.
        most: How often an event of each input can occur in one time step.
        channels: Channels of the layer.
    """
    grids: list[Grid | None] = []
    for source, number in zip(sources, most, strict=True):
        grid = None
        if source.weights is not None and number <= MOST:
            grid = grid_of(source.columns)
        if grid is None and not source.adds_each(channels):
            return None
        grids.append(grid)
    return grids if any(grids) else None


def fill(
    struct: SourceStruct, source: Source, grid: Grid, channels: int, padded: int, storage: Storage
) -> None:
    """Fill the struct of a source with its grid and its tiles of weights.

    Args:
        struct: The struct.
        source: The source.
        grid: Its grid.
        channels: Channels of the input.
        padded: Channels of the output in the kernels, a multiple of 32.
        storage: For the arrays that the struct points to.
    """
    struct.stride, struct.grid_number = grid.stride, len(grid.columns)
    struct.grid = storage.put(np.array(grid.columns, np.int32))
    assert source.weights is not None
    starts = sorted({start for line in source.rows for _, start in line})
    inputs = grid.taps * channels
    chunks = -(-inputs // WIDE)
    tiles = np.zeros((max(len(starts), 1), chunks * WIDE, padded), np.int8)
    for number, start in enumerate(starts):
        block = source.weights[start : start + inputs]
        tiles[number, : len(block), : block.shape[1]] = block
    tiles = tiles.reshape(-1, chunks, 16, 4, padded // 16, 16).transpose(0, 1, 4, 2, 5, 3)
    places = {start: number for number, start in enumerate(starts)}
    row_taps = np.array([places[start] for line in source.rows for _, start in line], np.int32)
    struct.columns_most, struct.chunks = grid.taps, chunks
    struct.row_taps = storage.put(row_taps)
    struct.tiles = storage.put(tiles)
