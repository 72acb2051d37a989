"""The memory of a kernel run: the spikes of every tensor, and the number of spikes in each row.

The spikes of a layer are needed until the last layer has read them. Then other tensors use the same
memory. For the released detector, this needs less than half of the memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spikedet.engines.layout import LOOSE, POOL, LayerStruct, TensorStruct
from spikedet.engines.storage import LINE, block, lines

if TYPE_CHECKING:
    from spikedet.engines.plan import Plan, Stage


@dataclass(frozen=True)
class Arrangement:
    """The positions of all tensors in the memory of a run.

    Attributes:
        starts: First byte of each tensor.
        total: Total number of bytes.
        after: For each tensor, the numbers of the layers that must finish before it is written,
            because they use a tensor in the same memory.
    """

    starts: list[int]
    total: int
    after: list[list[int]]


def arranged(sizes: list[int], users: list[list[int]], shared: bool) -> Arrangement:
    """Choose the position of every tensor in memory.

    The memory of a tensor that is no longer used is given to the layer after the next one. Threads
    work on two layers at a time, so no thread has to wait.

    Args:
        sizes: Bytes of each tensor, in the order of computation.
        users: Numbers of the layers that write or read each tensor.
        shared: Whether tensors may share memory.
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
    """The numbers of the stages that write or read the events of each stage."""
    users = [[number] for number in range(len(stages))]
    for number, stage in enumerate(stages):
        for source in stage.sources:
            users[source.tensor].append(number)
    return users


class Memory:
    """Memory for the runs of a plan. The memory of the last two sizes is kept for later runs.

    Args:
        plan: The plan.

    Attributes:
        bytes_of_a_step: Bytes for the events of one picture and time step if all neurons fire; by
            whether all events are kept until the end of the run.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.bytes_of_a_step = {kept: self.arranged(1, 1, kept).total for kept in (False, True)}
        self._free: OrderedDict[tuple[int, int, bool], list[Workspace]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, batch: int, steps: int, kept: bool = False) -> Workspace:
        """Take memory for a run. Give it back with `give`.

        Args:
            batch: Number of pictures.
            steps: Number of time steps.
            kept: Keep all events until the end of the run.
        """
        with self._lock:
            free = self._free.get((batch, steps, kept))
            if free:
                return free.pop()
        return Workspace(self, batch, steps, kept)

    def give(self, workspace: Workspace) -> None:
        """Give memory of `take` back, for later runs."""
        with self._lock:
            key = (workspace.batch, workspace.steps, workspace.kept)
            self._free.setdefault(key, []).append(workspace)
            self._free.move_to_end(key)
            while len(self._free) > 2:
                self._free.popitem(last=False)

    def arranged(self, batch: int, steps: int, kept: bool) -> Arrangement:
        """The positions of all tensors.

        Args:
            batch: Number of pictures.
            steps: Number of time steps.
            kept: Keep all events until the end of the run.
        """
        plan = self.plan
        sizes = [sum(self.bytes(name, batch, steps)) for name in plan.tensors]
        if kept or any(stage.layer is None for stage in plan.stages):  # or looked at in between
            return arranged(sizes, [[]] * len(sizes), shared=False)
        return arranged(sizes, self._users(), shared=True)

    def room(self, name: str) -> int:
        """Largest number of events in a row of a tensor: all its neurons may fire."""
        channels, _, width = self.plan.maps[name]
        return width * channels * self.plan.most[self.plan.tensors[name]] + LOOSE

    def bytes(self, name: str, batch: int, steps: int) -> tuple[int, int]:
        """Bytes of a tensor: of its spikes, and of the starts of all columns or numbers of rows."""
        channels, height, width = self.plan.maps[name]
        rows = height * batch * steps
        if layout := self.plan.bytes.get(name):
            spikes = height * batch * self.row_bytes(name, steps) + layout.slack * channels + LINE
            return lines(spikes), lines(2 * rows)
        return lines(2 * self.room(name) * rows), lines(2 * (width + 1) * rows)

    def row_bytes(self, name: str, steps: int) -> int:
        """Bytes of a row of all steps, if a tensor is bytes."""
        layout = self.plan.bytes[name]
        return lines((steps * layout.columns + layout.lead) * self.plan.maps[name][0])

    def _users(self) -> list[list[int]]:
        """The numbers of the layers that write or read the events of each tensor."""
        plan = self.plan
        users = users_of(plan.stages)
        for terms in plan.program.means.values():
            for base in {base for op, _ in terms for base in plan.program.base(op)}:
                number = plan.tensors[base]
                if plan.stages[number].kernel.kind == POOL:  # means of others are the kernel's
                    users[number].append(len(plan.stages) + 2)  # behind all layers
        return users


class Workspace:
    """The memory of one run.

    Args:
        memory: Memory of the plan.
        batch: Number of pictures.
        steps: Number of time steps.
        kept: Keep all events until the end of the run.

    Attributes:
        tensors: Position of the spikes of each tensor.
        layers: Kernel struct of each stage of the plan. Each run fills in what changes.
        fired: Spikes of each row, [B, steps, H] int32, by the names of the stages.
    """

    def __init__(self, memory: Memory, batch: int, steps: int, kept: bool):
        self.batch, self.steps, self.kept = batch, steps, kept
        plan = memory.plan
        self.tensors = (TensorStruct * max(1, len(plan.signs)))()
        place = memory.arranged(batch, steps, kept)
        self._memory = block(place.total)
        self._scratch = np.empty(0, np.uint8)
        start = self._memory.ctypes.data
        for name, number in plan.tensors.items():
            channels, height, width = plan.maps[name]
            spikes = start + place.starts[number]
            layout = plan.bytes.get(name)
            self.tensors[number] = TensorStruct(
                channels,
                height,
                width,
                plan.signs[number] * channels,
                memory.room(name),
                None if layout else spikes,
                spikes + memory.bytes(name, batch, steps)[0],
                spikes if layout else None,
                memory.row_bytes(name, steps) if layout else 0,
                layout.columns if layout else 0,
                layout.lead if layout else 0,
            )
        self.fired: dict[str, np.ndarray] = {}
        self.layers = (LayerStruct * max(1, len(plan.stages)))()
        self._done: list[np.ndarray] = []
        self._after = [np.array(layers, np.int32) for layers in place.after]
        for layer, stage in zip(self.layers, plan.stages, strict=False):
            name = stage.op.name
            height = plan.maps[name][1]
            self.fired[name] = np.zeros((batch, steps, height), np.int32)
            if stage.layer is None:
                continue
            ctypes.memmove(ctypes.byref(layer), ctypes.byref(stage.layer), ctypes.sizeof(layer))
            self._done.append(np.zeros(batch * height, np.int32))
            layer.fired, layer.done = self.fired[name].ctypes.data, self._done[-1].ctypes.data
            after = self._after[plan.tensors[name]]
            layer.after_number, layer.after = len(after), after.ctypes.data

    def scratch(self, size: int) -> int:
        """The address of so many bytes for what threads compute in between."""
        if self._scratch.size < size:
            self._scratch = block(size)
        return self._scratch.ctypes.data
