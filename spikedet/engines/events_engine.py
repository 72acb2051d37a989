"""The `events` engine: integers, computed by compiled kernels. `events` describes one run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedet.engines.events import Means, Run
from spikedet.engines.integer_engine import IntegerEngine
from spikedet.engines.layout import LANES
from spikedet.engines.plan import Plan
from spikedet.graph.graph import Graph
from spikedet.graph.structure import join
from spikedet.kernels import library

MEMORY = 64 * 2**20  # most bytes for the events of the time steps that are computed at once
MOST_STEPS = 256  # most time steps at once: each thread needs memory for every step


class EventsEngine(IntegerEngine):
    """Runs the integer program with compiled kernels. They add a row of weights for each spike.

    Args:
        graph: Spiking graph to compile.
        kernels: One of the names of `library.kernels()`. None: `library.chosen()`.

    Attributes:
        bounds_memory: True: the engine limits the memory of a run itself, for any number of steps.

    Raises:
        NoLibrary: There are no kernels.
        NoIntegers: The integer engines do not support the network.
    """

    bounds_memory = True

    def __init__(self, graph: Graph, kernels: str | None = None):
        library.library()
        super().__init__(graph)
        self.kernels = kernels
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.graph, self.kernels)

    def plan(self, sizes: dict[str, tuple[int, ...]]) -> Plan:
        """The plan for these shapes [1, ...] of the constant nodes. The last plans are cached."""
        key = tuple(sorted(sizes.items()))
        with self._lock:
            if key not in self._plans:
                self._plans[key] = Plan(self.program, sizes, self.kernels)
            self._plans.move_to_end(key)
            while len(self._plans) > 4:
                self._plans.popitem(last=False)
            return self._plans[key]

    def describe(self) -> list[str]:
        """The name of the kernels, and one line for each layer that they do not support."""
        sizes = {name: self.graph.shapes[name] for name in self._currents}
        plan = self.plan(sizes)
        return [f"integers, {plan.kernels} kernels", *plan.describe()]

    def simulate(self, pictures, parts, each_step, on_counts=None, on_spikes=None):
        """Like `IntegerEngine.simulate`, one picture at a time, so that events fit the cache."""
        if len(pictures) < 2 or each_step or on_spikes is not None:
            yield from super().simulate(pictures, parts, each_step, on_counts, on_spikes)
            return
        told: dict[tuple[str, int], tuple[Tensor, int]] = {}

        def gather(name: str, first: int, counts: Tensor, neurons: int) -> None:
            others, size = told.get((name, first), (0, 0))
            told[name, first] = counts + others, neurons + size

        parts = list(parts)
        runs = [
            super(EventsEngine, self).simulate(picture, parts, False, on_counts and gather)
            for picture in pictures.split(1)
        ]
        for several in zip(*runs, strict=True):
            for (name, first), (counts, neurons) in told.items():
                on_counts(name, first, counts, neurons)
            told.clear()
            yield several[0][0], lambda reads=several: join([read() for _, read in reads])

    def _start(self, currents: dict[str, Tensor], batch: int) -> Run:
        sizes = {name: (1, *value.shape[1:]) for name, value in currents.items()}
        return Run(self.plan(sizes), currents, batch)

    def _at_once(self, run: Run, kept: bool) -> int:
        step = run.plan.memory.bytes_of_a_step[kept] * run.batch
        return max(1, min(MOST_STEPS, MEMORY // max(1, step)))

    def _part(self, run, part, each_step, before, on_counts, on_spikes):
        steps, done = part.steps, part.first
        plan, batch = run.plan, run.batch
        totals: dict[Any, Any] = {}
        masses, sums = {}, {}
        later = []  # a second mean of the same spikes
        by_node = self._masses(done, steps)
        for node, weights in by_node.items():
            totals[node] = self._mass(node, weights, before, each_step)
            for base in self._reading[node]:
                channels, height, width = plan.maps[base]
                padded = -(-channels // LANES) * LANES
                shape = (batch, height, width, padded)
                into = np.zeros((steps, *shape) if each_step else shape, np.float32)
                if (base, node) in before:
                    old = before["sums", base, node]
                    (into[0] if each_step else into)[...] = old[-1] if each_step else old
                totals["sums", base, node] = into
                totals[base, node] = _as_values(into, channels, self._shape(plan, base))
                if base in sums:
                    later.append((base, weights, into))
                else:
                    masses[base], sums[base] = np.ascontiguousarray(weights), into
        kept = on_spikes is not None or bool(later)
        memory = run.advance(steps, part.last, Means(masses, sums, each_step), kept)
        for base, weights, into in later:
            values = run.dense(self.program.ops[base], memory)
            run._add_mean(base, values, weights, into, each_step)
        if on_counts is not None:
            for op in self.program.neurons:
                number = memory.fired[op.name].sum((0, 2), dtype=np.int64)
                channels, height, width = plan.maps[op.name]
                neurons = batch * channels * height * width
                on_counts(op.name, done, torch.from_numpy(number).double(), neurons)
        if on_spikes is not None:
            for name in self._fire:
                on_spikes(name, done, run.dense(self.program.ops[name], memory))
        plan.memory.give(memory)
        return totals

    @staticmethod
    def _shape(plan: Plan, base: str) -> tuple[int, ...]:
        return plan.shapes[base][1:]


def _as_values(sums: np.ndarray, channels: int, shape: tuple[int, ...]) -> Tensor:
    """Convert [..., B, H, W, padded] to [N, C, ...], without a copy if possible."""
    values = torch.from_numpy(sums)[..., :channels].flatten(0, -4).permute(0, 3, 1, 2)
    return values if len(shape) == 3 else values.reshape(len(values), *shape)
