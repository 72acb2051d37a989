"""Spikes as bytes instead of events: 1, 0 or -1 for each neuron and time step.

Max-pooling reads them, layers that add each channel to the output of its own number, and the matrix
unit (`matrix`). They lie as the unit reads them: the columns of all steps of a row one behind the
other, with zeros at the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spikedet.engines.layout import POOL
from spikedet.engines.matrix import TILE, Grid

if TYPE_CHECKING:
    from spikedet.engines.plan import Plan


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


def stride_in(grid: Grid, rows: Rows) -> int:
    """The stride of a grid in the memory of a tensor: that of a single window is a whole step."""
    return rows.columns if len(grid.columns) == grid.taps else grid.stride


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
    slack = (TILE * stride_in(grid, rows) + grid.taps for grid, _ in leads)
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
                source.direct, source.lead, source.stride = 1, lead, stride_in(grid, rows)
                pitches[-1] = rows.columns // source.stride
        stage.kernel.pitch = max(pitches)
        for pitch, source in zip(pitches, sources, strict=True):
            source.direct = int(source.direct and pitch == stage.kernel.pitch)
    return chosen
