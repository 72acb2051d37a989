"""A penalty on the synaptic operations that spikes cause, for stage I and the end-to-end pass.

The cost of a spike is its fan-out: the number of additions that it causes, counted as in
`analysis.operations`. This costs time on a CPU with the events engine, and energy on a chip. A
spike of a layer with many outputs can cost a hundred times as much as a spike of the last layer. So
a penalty on the spike rate alone would silence the wrong neurons. The operations are counted in
units of the float network's multiplications, so that the numbers are comparable for all networks,
picture sizes and T. For example, 0.1 means a tenth of these multiplications in each time step.

In stage I there are no spikes yet. But a quantised activation of k / T becomes k spikes in T steps,
so the operations are known there too. Neurons that take back spikes send more spikes than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.graph.graph import Graph, Node
from spikedet.graph.time import STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, per_channel
from spikedet.neurons.quantize import QuantClip
from spikedet.precision import device_of
from spikedet.runtime.passes import Pass
from spikedet.runtime.watch import watching
from spikedet.synapses import Synapses, analog_multiplies


class Operations:
    """Synaptic operations per time step, relative to the multiplications of the float network.

    Args:
        graph: Spiking graph. Only layers that read spikes count. The layers before the first
            neurons and after the last neurons run once for all time steps.

    Attributes:
        fan_out: Mean number of additions for a spike, for each layer of neurons. It holds for the
            picture size at which the graph was recorded.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.fan_out = fan_out(graph)
        self._share = _shares(graph, self.fan_out)
        self._spikes: dict[str, list[Tensor]] = {}  # a neuron in the steps of each call
        self._steps: dict[str, int] = {}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the runs of the current thread inside the `with` block. `part` gives the result."""
        self._spikes, self._steps = {}, {}
        with watching(self.graph, self._watch):
            yield

    def part(self) -> Tensor:
        """Synaptic operations divided by multiplications, over all counted runs.

        It is a scalar with a gradient.
        """
        parts = [
            torch.stack(spikes).sum() / self._steps[name] * self._share[name]
            for name, spikes in self._spikes.items()
        ]
        return torch.stack(parts).sum()

    def _watch(self, now: Pass, node: Node, inputs: Sequence[Tensor], spikes: Tensor) -> None:
        neuron = node.module
        if not isinstance(neuron, IFNeuron):
            return
        rates = spikes.float().abs()
        if not neuron.folded:
            rates = rates / per_channel(neuron.threshold, rates.ndim)
        self._spikes.setdefault(node.name, []).append(rates.mean() * now.steps)
        self._steps[node.name] = self._steps.get(node.name, 0) + now.steps


_seen: ContextVar[list[Tensor] | None] = ContextVar("operations", default=None)


class StageOnePenalty:
    """A penalty on the synaptic operations that a stage-I network will cause when it is spiking.

    Every layer of quantisers of the graph gets a forward hook. The hook does something only inside
    `counted`, and only in the thread of that `with` block.

    Args:
        graph: Stage-I graph, with or without batch norm.
        weight: Weight of the penalty.

    Attributes:
        operations: Mean operations per time step of the last finished epoch (see `end_epoch`), in
            units of the float network's multiplications. None before.
    """

    def __init__(self, graph: Graph, weight: float):
        self.weight = weight
        self.operations: float | None = None
        self._counts: list[Tensor] = []
        shares = _shares(graph, fan_out(graph))
        for node in graph.of((QuantClip,)):
            node.module.register_forward_hook(_hook(shares[node.name]))

    @contextmanager
    def counted(self) -> Iterator[list[Tensor]]:
        """Count the operations of one run of the current thread inside the `with` block.

        Yields:
            The operations of each layer per time step, divided by the multiplications of the whole
            float network: scalars with gradients.
        """
        seen: list[Tensor] = []
        token = _seen.set(seen)
        try:
            yield seen
        finally:
            _seen.reset(token)

    def of(self, seen: list[Tensor]) -> Tensor:
        """The penalty for what `counted` has yielded, a scalar."""
        total = torch.stack(seen).sum()
        self._counts.append(total.detach())
        return self.weight * total

    def end_epoch(self) -> float:
        """Set `operations` to the mean over all runs since the last call, and return it."""
        self.operations = torch.stack(self._counts).mean().item()
        self._counts = []
        return self.operations


def _hook(share: float) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook of a quantiser. It is a plain function, so copies of a graph share it."""

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen = _seen.get()
        if seen is not None:
            assert isinstance(module, QuantClip)
            threshold = per_channel(module.threshold.abs().clamp(min=1e-6), output.ndim)
            seen.append((output.float().abs() / threshold).mean() * share)

    return count


def fan_out(graph: Graph) -> dict[str, float]:
    """The mean number of operations that a spike causes, for each layer of neurons or quantisers.

    Args:
        graph: Spiking graph, or stage-I graph.
    """
    return Synapses(graph, graph.shapes, device_of(graph)).costs()


def _shares(graph: Graph, fans: dict[str, float]) -> dict[str, float]:
    """The operations of a step in which every neuron of a layer sends a spike, for each layer.

    The unit is the multiplications of the float network's layers that run in every step.
    """
    operations = {name: number * math.prod(graph.shapes[name]) for name, number in fans.items()}
    when = phases(graph)
    by_layer = analog_multiplies(graph, graph.shapes).items()
    unit = float(sum(number for name, number in by_layer if when[name] == STEPWISE))
    unit = unit or sum(operations.values()) or 1.0  # no weights read spikes; nothing reads them
    return {name: number / unit for name, number in operations.items()}
