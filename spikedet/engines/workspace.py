"""What a run of the kernels writes: events of every tensor, and the counts of their rows.

Events of a layer are needed until the last layer that reads them is done. Others take their memory
then, which is less than half in the released detector.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from ctypes import POINTER
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spikedet.engines.layout import LINE, LOOSE, POOL, LayerStruct, SourceStruct, TensorStruct

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


class Memory:
    """Memory for the runs of a plan; that of the last two sizes is kept for the next ones.

    Args:
        plan: Whose runs.

    Attributes:
        bytes_of_a_step: What the events of one picture and step may need, if all neurons fired; by
            whether all events are there after the run.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.bytes_of_a_step = {kept: self.arranged(1, kept).total for kept in (False, True)}
        self._free: OrderedDict[tuple[int, int, bool], list[Workspace]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, batch: int, steps: int, kept: bool = False) -> Workspace:
        """Memory for some pictures and steps; give it back afterwards.

        Args:
            batch: Pictures.
            steps: Of each.
            kept: All events are there after the run.
        """
        with self._lock:
            free = self._free.get((batch, steps, kept))
            if free:
                return free.pop()
        return Workspace(self, batch, steps, kept)

    def give(self, workspace: Workspace) -> None:
        """Keep what `take` gave for the next run."""
        with self._lock:
            key = (workspace.batch, workspace.steps, workspace.kept)
            self._free.setdefault(key, []).append(workspace)
            self._free.move_to_end(key)
            while len(self._free) > 2:
                self._free.popitem(last=False)

    def arranged(self, frames: int, kept: bool) -> Arrangement:
        """Where the events of each tensor lie.

        Args:
            frames: Steps times pictures.
            kept: All events are there after the run.
        """
        plan = self.plan
        sizes = [-(-sum(self.bytes(name, frames)) // LINE) * LINE for name in plan.tensors]
        if kept or any(stage.layer is None for stage in plan.stages):  # or looked at in between
            return arranged(sizes, [[]] * len(sizes), shared=False)
        return arranged(sizes, self._users(), shared=True)

    def room(self, name: str) -> int:
        """Events that a row of a tensor has room for: all its neurons may fire."""
        channels, _, width = self.plan.maps[name]
        return width * channels * self.plan.most[self.plan.tensors[name]] + LOOSE

    def bytes(self, name: str, frames: int) -> tuple[int, int]:
        """Bytes of a tensor's events, and of where those of each place begin, which follow."""
        _, height, width = self.plan.maps[name]
        rows = self.plan.planes[self.plan.tensors[name]] * height * frames
        return 2 * self.room(name) * rows, 2 * (width + 1) * rows

    def _users(self) -> list[list[int]]:
        """Numbers of the layers that write or read the events of each."""
        plan = self.plan
        users = users_of(plan.stages)
        for terms in plan.program.means.values():
            for base in {base for op, _ in terms for base in plan.program.base(op)}:
                number = plan.tensors[base]
                if plan.stages[number].kernel.kind == POOL:  # means of others are the kernel's
                    users[number].append(len(plan.stages) + 2)  # behind all layers
        return users


class Workspace:
    """What a run over some pictures and steps writes.

    Args:
        memory: Of the plan.
        batch: Pictures.
        steps: Of each.
        kept: All events are there after the run.

    Attributes:
        tensors: Where the events of each tensor lie.
        layers: The kernel of each stage of the plan; what changes from run to run is filled in.
        fired: Spikes of each row, [B, steps, H] int32, by the names of the stages.
    """

    def __init__(self, memory: Memory, batch: int, steps: int, kept: bool):
        self.batch, self.steps, self.kept = batch, steps, kept
        plan = memory.plan
        self.tensors = (TensorStruct * max(1, len(plan.planes)))()
        place = memory.arranged(batch * steps, kept)
        self._memory = np.empty(place.total + LINE, np.uint8)
        start = self._memory.ctypes.data
        start += -start % LINE
        for name, number in plan.tensors.items():
            channels, height, width = plan.maps[name]
            events = start + place.starts[number]
            first = events + memory.bytes(name, batch * steps)[0]
            self.tensors[number] = TensorStruct(
                channels, height, width, plan.planes[number], memory.room(name), events, first
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
