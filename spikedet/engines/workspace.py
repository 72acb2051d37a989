"""What a run of the kernels writes: events of every tensor, and the counts of their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spikedet.engines.layout import LOOSE, TensorStruct

if TYPE_CHECKING:
    from spikedet.engines.plan import Plan


class Workspace:
    """What a run over some pictures and steps writes."""

    def __init__(self, plan: Plan, batch: int, steps: int):
        self.batch, self.steps = batch, steps
        self.tensors = (TensorStruct * max(1, len(plan.planes)))()
        self.events: list[np.ndarray] = []
        self.first: list[np.ndarray] = []
        for name, number in plan.tensors.items():
            channels, height, width = plan.maps[name]
            room = width * channels * plan.most[number] + LOOSE
            rows = plan.planes[number] * batch * steps * height
            events = np.empty((rows, room), np.uint16)
            first = np.empty((rows, width + 1), np.uint16)
            self.events.append(events)
            self.first.append(first)
            self.tensors[number] = TensorStruct(
                channels,
                height,
                width,
                plan.planes[number],
                room,
                events.ctypes.data,
                first.ctypes.data,
            )
        self.fired: dict[str, np.ndarray] = {}
        self.done: dict[str, np.ndarray] = {}
        for stage in plan.stages:
            height = plan.maps[stage.op.name][1]
            self.fired[stage.op.name] = np.zeros((batch, steps, height), np.int32)
            self.done[stage.op.name] = np.zeros(batch * height, np.int32)
