"""One run of the `events` engine: for each spike, one row of integer weights is added.

Between layers there are only events: for every time step and every row of a map, a list of the
neurons that fired, and of the signs of their spikes. For each position and each time step, a kernel
collects the events in its window. It adds their rows of weights in registers, computes which
neurons fire, and appends the indices of these neurons to the list. For a matrix unit spikes are
bytes instead (`matrix`). Operations without a kernel run in the reference code between two kernel
calls.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_void_p
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spikedet.engines.layout import CURRENT, POOL, LayerStruct, RunStruct
from spikedet.engines.plan import Plan, Stage
from spikedet.engines.program import Current, Neuron, Op, Pool
from spikedet.engines.reference import Reference, at_once
from spikedet.engines.views import Shape
from spikedet.engines.workspace import Workspace
from spikedet.kernels import library

SIZE = ctypes.sizeof(LayerStruct)


@dataclass
class Means:
    """Weighted sums over time that a run adds to, by the names of the operations.

    Attributes:
        masses: Weight of each time step of the run, [steps] float32.
        sums: Arrays for the sums, [B, H, W, padded] float32. With `each` they are
            [steps, B, H, W, padded], and the first entry contains the sum before.
        each: Store the sum after every step.
    """

    masses: dict[str, np.ndarray] = field(default_factory=dict)
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    each: bool = False


class Run:
    """One run of a plan over a batch of pictures.

    Args:
        plan: The plan to run.
        currents: Values of the constant nodes, float32 [B, ...], by their names.
        batch: Batch size B.
    """

    def __init__(self, plan: Plan, currents: dict[str, Tensor], batch: int):
        self.plan, self.batch = plan, batch
        self.currents = {
            name: value.float().movedim(1, -1).contiguous() for name, value in currents.items()
        }
        self.reference = Reference(plan.program, currents, batch)
        self.state: dict[str, np.ndarray] = {}
        self.first_part = True

    def advance(
        self,
        steps: int,
        last: bool = True,
        means: Means | None = None,
        kept: bool = False,
    ) -> Workspace:
        """Run the next time steps.

        Args:
            steps: Number of time steps.
            last: True if no steps follow. Then the potentials need not be stored.
            means: Sums over time to add to. None: no sums.
            kept: Keep all events until the end of the run.

        Returns:
            The memory with the events. Give it back to `plan.memory`.
        """
        plan = self.plan
        memory = plan.memory.take(self.batch, steps, kept)
        means = means or Means()
        begin = 0
        for number, stage in enumerate(plan.stages):
            if stage.layer is None:
                self._kernels(begin, number, memory, last, means)
                self._by_reference(stage, memory, means)
                begin = number + 1
        self._kernels(begin, len(plan.stages), memory, last, means)
        self.first_part = False
        return memory

    def _kernels(
        self,
        begin: int,
        end: int,
        memory: Workspace,
        last: bool,
        means: Means,
    ) -> None:
        """Run the stages from `begin` up to `end`, all of them layers of kernels."""
        plan = self.plan
        stages = plan.stages[begin:end]
        if not stages:
            return
        maker = np.full(len(plan.signs), -1, np.int32)
        hands_on = not (last and self.first_part)  # a part is before or after
        for i, stage in enumerate(stages):
            name = stage.op.name
            maker[plan.tensors[name]] = i
            self._fill(memory.layers[begin + i], stage, means, hands_on)
        threads = max(1, torch.get_num_threads())
        run = RunStruct(
            self.batch,
            memory.steps,
            int(self.first_part),
            int(last),
            len(stages),
            len(plan.signs),
            threads,
            ctypes.cast(ctypes.byref(memory.layers, begin * SIZE), POINTER(LayerStruct)),
            memory.tensors,
            maker.ctypes.data,
            library.threads_of_torch(),
        )
        run.scratch_bytes = plan.library.sd_scratch_bytes(ctypes.byref(run), plan.number)
        run.scratch = memory.scratch(threads * run.scratch_bytes)
        if plan.library.sd_run_layers(ctypes.byref(run), plan.number):
            raise MemoryError("no memory for the events engine")
        for stage in stages:
            name = stage.op.name
            if name in means.sums and stage.kernel.kind == POOL:
                values = self._spikes(name, memory)
                self._add_mean(name, values, means.masses[name], means.sums[name], means.each)

    def _fill(
        self,
        layer: LayerStruct,
        stage: Stage,
        means: Means,
        hands_on: bool,
    ) -> None:
        """Fill the struct of one kernel call with what it reads and writes.

        `hands_on` is True if there is a part before or after this one.
        """
        name = stage.op.name
        if stage.kernel.kind == CURRENT:
            source = self.plan.program.ops[stage.op.inputs[0]]
            assert isinstance(source, Current)
            layer.current = self.currents[source.node].data_ptr()
        layer.state = layer.counts = self._state(stage).ctypes.data if hands_on else None
        layer.mean = layer.step_mass = None
        if name in means.sums and stage.kernel.kind != POOL:
            layer.mean, layer.mean_each = means.sums[name].ctypes.data, int(means.each)
            layer.step_mass = means.masses[name].ctypes.data

    def _state(self, stage: Stage) -> np.ndarray:
        """The state of a layer between two parts.

        Potentials, with the counts of neurons that correct themselves; of pooling, counts and their
        maxima.
        """
        name = stage.op.name
        if name not in self.state:
            channels, height, width = self.plan.maps[name]
            if stage.kernel.kind == POOL:
                number = stage.sources[0].tensor
                inside = self.plan.maps[list(self.plan.tensors)[number]]
                size = stage.kernel.rows_most * inside[2] * inside[0] + width * channels
                self.state[name] = np.zeros((self.batch, height, size), np.int16)
            else:
                kept = 2 if stage.kernel.negative == 2 else 1
                shape = (self.batch, height, width, kept * stage.kernel.padded)
                self.state[name] = np.zeros(shape, np.int32)
        return self.state[name]

    def _by_reference(self, stage: Stage, memory: Workspace, means: Means) -> None:
        name = stage.op.name
        values = self.dense(stage.op, memory, own=True)
        frames = values.reshape(memory.steps, self.batch, *values.shape[1:])
        memory.fired[name][:] = 0
        number = frames.abs().flatten(2).sum(2).T.numpy()
        memory.fired[name][:, :, 0] = number
        self._pack(name, frames, memory)
        if name in means.sums:
            self._add_mean(name, values, means.masses[name], means.sums[name], means.each)

    def _add_mean(
        self, name: str, values: Tensor, masses: np.ndarray, sums: np.ndarray, each: bool
    ) -> None:
        """Add values [steps*B, ...] to the sums over time, in the same way as the kernels."""
        frames = values.reshape(len(masses), self.batch, *values.shape[1:])
        last = channels_last(frames, self.plan.maps[name]).numpy()
        for t, mass in enumerate(masses):
            if each and t:
                sums[t] = sums[t - 1]
            into = sums[t] if each else sums
            into[..., : last.shape[-1]] += last[t].astype(np.float32) * mass

    def dense(self, op: Op, memory: Workspace, own: bool = False) -> Tensor:
        """The value of an operation, [steps*B, ...] float64: from its events, or computed."""
        if op.name in self.plan.tensors and not own:
            return self._spikes(op.name, memory).double()
        if isinstance(op, Current):
            return self.reference.value(op, [], memory.steps)
        ops = self.plan.program.ops
        inputs = [self.dense(ops[source], memory) for source in op.inputs]
        if isinstance(op, Neuron | Pool):
            return self.reference.value(op, inputs, memory.steps)
        return at_once(op, inputs)

    def _spikes(self, name: str, memory: Workspace) -> Tensor:
        """The spikes of a tensor as a dense one, [steps*B, ...] int16."""
        plan, steps = self.plan, memory.steps
        number = plan.tensors[name]
        channels, height, width = plan.maps[name]
        values = np.empty((self.batch, steps, height, width, channels), np.int16)
        tensor = memory.tensors[number]
        plan.library.sd_unpack(
            ctypes.byref(tensor), self.batch, steps, c_void_p(values.ctypes.data)
        )
        dense = torch.from_numpy(values).permute(1, 0, 4, 2, 3).flatten(0, 1)
        return dense.reshape(steps * self.batch, *plan.shapes[name][1:])

    def _pack(self, name: str, frames: Tensor, memory: Workspace) -> None:
        plan = self.plan
        number = plan.tensors[name]
        last = channels_last(frames, plan.maps[name]).transpose(0, 1)
        values = np.ascontiguousarray(last.numpy().astype(np.int16))
        tensor = memory.tensors[number]
        if plan.library.sd_pack(
            ctypes.byref(tensor), self.batch, memory.steps, c_void_p(values.ctypes.data)
        ):
            raise RuntimeError(f"{name}: more events than its row has room for")


def channels_last(frames: Tensor, shape: Shape) -> Tensor:
    """[T, B, C, ...] -> [T, B, H, W, C]."""
    return frames.reshape(*frames.shape[:2], *shape).movedim(2, -1)
