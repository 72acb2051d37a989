"""Layers for a processor's matrix unit (`kernels/csrc/matrix.inc`).

The unit multiplies blocks of small integers. For it spikes are bytes, the columns of a row one
behind the other on a grid: the window of output x begins at place x * stride of the grid. Layers
write their spikes as bytes that are such grids already (`Rows`) if all layers that read them can
use the unit. Otherwise the grid is made from events or from other bytes. The weights are stored in
tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spikedet.engines.layout import POOL, SourceStruct
from spikedet.engines.sources import Source
from spikedet.engines.storage import Storage

if TYPE_CHECKING:
    from spikedet.engines.plan import Plan

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

    def stride_in(self, rows: Rows) -> int:
        """The stride in the memory of a tensor: that of a single window is a whole step."""
        return rows.columns if len(self.columns) == self.taps else self.stride


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


@dataclass(frozen=True)
class Rows:
    """How a tensor lies in memory as bytes: [steps, columns, channels] for each row.

    Attributes:
        lead: Columns of zeros before the first one of a step, and behind the last step.
        columns: Columns of a step, those of zeros included.
        slack: Columns behind the last row that are read, but have no influence.
    """

    lead: int
    columns: int
    slack: int


def lead_of(grid: Grid, width: int) -> int | None:
    """Places before column 0, if a grid has the columns of a map in order; None otherwise.

    Args:
        grid: The grid.
        width: Columns of the map.
    """
    lead = next((place for place, column in enumerate(grid.columns) if column >= 0), 0)
    for place, column in enumerate(grid.columns):
        if column != (place - lead if 0 <= place - lead < width else -1):
            return None
    return lead


def rows_of(width: int, readers: Sequence[Grid]) -> Rows:
    """The memory of a tensor whose bytes are the grids of its readers, of as many as possible.

    A window may end in the zeros before the next step, or lie there.

    Args:
        width: Columns of the map.
        readers: The grids of all layers that read it.
    """
    leads = [(grid, lead) for grid in readers if (lead := lead_of(grid, width)) is not None]
    most = max((lead for _, lead in leads), default=0)
    ends = [len(grid.columns) - lead for grid, lead in leads]
    stride = math.lcm(*(grid.stride for grid, _ in leads if len(grid.columns) > grid.taps))
    rows = Rows(most, -(-max([most + width, *ends]) // stride) * stride, 0)
    slack = (TILE * grid.stride_in(rows) + grid.taps for grid, _ in leads)
    return replace(rows, slack=max(slack, default=0))


def tensors_of_bytes(plan: Plan) -> dict[str, Rows]:
    """Choose the tensors that are bytes: those that all layers read in this form.

    The structs of the layers for the matrix unit get the places of the grids in the bytes.

    Args:
        plan: The plan. Its stages have the grids of their inputs.
    """
    chosen: dict[str, Rows] = {}
    names = list(plan.tensors)
    readers: list[list[Grid]] = [[] for _ in names]
    of_events: set[int] = set()
    for stage in plan.stages:
        if stage.layer is not None and stage.layer.kind == POOL:
            continue  # reads both
        grids = stage.grids or [None] * len(stage.sources)
        for source, grid in zip(stage.sources, grids, strict=True):
            if grid is not None:
                readers[source.tensor].append(grid)
            elif not source.each:
                of_events.add(source.tensor)
    for number, stage in enumerate(plan.stages):
        if stage.layer is None or number in of_events:
            continue
        if stage.layer.kind == POOL and names[stage.sources[0].tensor] not in chosen:
            continue  # an event may occur several times
        chosen[stage.op.name] = rows_of(plan.maps[stage.op.name][2], readers[number])
    for stage in plan.stages:
        if not stage.grids:
            continue
        pitches, sources = [], stage.sources
        for grid, source in zip(stage.grids, sources, strict=True):
            if grid is None:  # what it adds has a place for each output
                pitches.append(stage.kernel.width)
                continue
            name = names[source.tensor]
            rows, lead = chosen.get(name), lead_of(grid, plan.maps[name][2])
            pitches.append(grid.pitch)
            if rows is not None and lead is not None:
                source.direct, source.lead, source.stride = 1, lead, grid.stride_in(rows)
                pitches[-1] = rows.columns // source.stride
        stage.kernel.pitch = max(pitches)
        for pitch, source in zip(pitches, sources, strict=True):
            source.direct = int(source.direct and pitch == stage.kernel.pitch)
    return chosen


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
