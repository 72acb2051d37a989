"""What a run of the kernels writes: events of every tensor, and the counts of their rows.

Events of a layer are needed until the last layer that reads them is done. Others take their memory
then, which is less than half in the released detector.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spikedet.engines.layout import LINE, SourceStruct, TensorStruct

if TYPE_CHECKING:
    from spikedet.engines.plan import Plan, Stage


@dataclass(frozen=True)
class Arrangement:
    """Where the events of each tensor lie in the memory of a run.

    Attributes:
        starts: Byte at which each tensor begins.
        total: Bytes of all of them together.
        after: For each tensor the numbers of the layers that must be done before it is written,
            as they write or read what is in its place until then.
    """

    starts: list[int]
    total: int
    after: list[list[int]]


def arranged(sizes: list[int], users: list[list[int]], shared: bool) -> Arrangement:
    """Give every tensor its place.

    A tensor that is not used any more makes room for the next but one: threads are at work on two
    layers at a time, and none of them has to wait.

    Args:
        sizes: Bytes of each tensor, in the order in which they are made.
        users: Numbers of the layers that write or read each of them.
        shared: Whether one may take the place of another.
    """
    starts: list[int] = []
    after: list[list[int]] = []
    for now, size in enumerate(sizes):
        before = range(now)
        alive = [t for t in before if not shared or max(users[t]) > now - 2]
        start = 0
        for t in sorted(alive, key=lambda t: starts[t]):
            if start + size <= starts[t]:
                break
            start = max(start, starts[t] + sizes[t])
        over = [t for t in before if starts[t] < start + size and start < starts[t] + sizes[t]]
        starts.append(start)
        after.append(sorted({layer for t in over for layer in users[t]}))
    ends = (start + size for start, size in zip(starts, sizes, strict=True))
    return Arrangement(starts, max(ends, default=0), after)


def users_of(stages: list[Stage]) -> list[list[int]]:
    """Numbers of the stages that write or read the events of each stage of kernels."""
    users = [[number] for number in range(len(stages))]
    for number, stage in enumerate(stages):
        sources = ctypes.cast(stage.kernel.sources, POINTER(SourceStruct))
        for i in range(stage.kernel.sources_number):
            users[sources[i].tensor].append(number)
    return users


class Workspace:
    """What a run over some pictures and steps writes.

    Args:
        plan: Whose run.
        batch: Pictures.
        steps: Of each.
        kept: All events are there after the run.
    """

    def __init__(self, plan: Plan, batch: int, steps: int, kept: bool):
        self.batch, self.steps, self.kept = batch, steps, kept
        self.tensors = (TensorStruct * max(1, len(plan.planes)))()
        place = plan.arranged(batch * steps, kept)
        self._memory = np.empty(place.total + LINE, np.uint8)
        start = self._memory.ctypes.data
        start += -start % LINE
        for name, number in plan.tensors.items():
            channels, height, width = plan.maps[name]
            room, events = plan.room(name), start + place.starts[number]
            first = events + 2 * room * plan.rows_of_a_step(name) * batch * steps
            self.tensors[number] = TensorStruct(
                channels, height, width, plan.planes[number], room, events, first
            )
        self.after = [np.array(layers, np.int32) for layers in place.after]
        self.fired: dict[str, np.ndarray] = {}
        self.done: dict[str, np.ndarray] = {}
        for stage in plan.stages:
            height = plan.maps[stage.op.name][1]
            self.fired[stage.op.name] = np.zeros((batch, steps, height), np.int32)
            self.done[stage.op.name] = np.zeros(batch * height, np.int32)
