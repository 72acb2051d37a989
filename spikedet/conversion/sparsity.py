"""A penalty on spikes: the synaptic operations that they cause.

What a spike costs is the number of weights that it is added with, its fan-out: on a CPU with the
events engine that is time, on a chip energy. A spike of a shallow layer of many outputs costs a
hundred times as much as one of the last layer, so that a penalty on the rate alone would silence
the wrong ones. The operations are counted in units of those of the float network, with which they
do not depend on the network, the pictures or T: 0.1 is a tenth of its multiplications in each step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import WEIGHTED
from spikedet.graph.time import CONSTANT, STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool, per_channel
from spikedet.runtime.network import Pass, watching


class Operations:
    """Synaptic operations of passes, in units of what the float network multiplies in each step.

    Args:
        graph: Spiking. Layers that read spikes count; those before the first neuron and behind the
            last run once for all steps.

    Attributes:
        fan_out: Weights that a spike of each layer of neurons is added with on average, at the
            picture size that the graph was recorded at.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.fan_out = fan_out(graph)
        operations = {
            name: number * math.prod(graph.shapes[name]) for name, number in self.fan_out.items()
        }
        most = sum(operations.values()) or 1.0
        self._share = {name: number / most for name, number in operations.items()}
        self._spikes: dict[str, list[Tensor]] = {}  # a neuron in the steps of each call
        self._steps: dict[str, int] = {}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the passes of this thread in the `with` block; `part` has what they come to."""
        self._spikes, self._steps = {}, {}
        with watching(self.graph, self._watch):
            yield

    def part(self) -> Tensor:
        """Operations over multiplications, a scalar with a gradient; over all that was counted."""
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


def fan_out(graph: Graph) -> dict[str, float]:
    """Weights that a spike of each layer of neurons is added with on average, by its name.

    The derivative of all sums of the layers that read spikes, their weights all 1, with respect to
    the spikes: right for strides, borders, groups, up-sampling and concatenations alike.
    """
    when = phases(graph)
    during = [name for name in graph.edges if when[name] == STEPWISE]
    leaves: dict[str, Tensor] = {}
    total: list[Tensor] = []
    device = next(graph.buffers()).device

    def call(node: Node, inputs: list[Tensor]) -> Tensor:
        module = node.module
        if isinstance(module, IFNeuron):
            leaves[node.name] = torch.ones(graph.shapes[node.name], device=device)
            return leaves[node.name].requires_grad_(True)
        if isinstance(module, WEIGHTED):
            ones = {"weight": torch.ones_like(module.weight)}
            if module.bias is not None:
                ones["bias"] = torch.zeros_like(module.bias)
            output = torch.func.functional_call(module, ones, (inputs[0],))
            total.append(output.sum())
            return torch.zeros_like(output)
        if isinstance(module, SpikingMaxPool):
            return module.pool(inputs[0])
        return module(*inputs)

    known = {
        name: torch.zeros(graph.shapes[name], device=device)
        for name in (INPUT, *graph.edges)
        if when[name] == CONSTANT
    }
    with torch.enable_grad():
        graph.run(during, known, (), call)
        names = list(leaves)
        tensors = [leaves[name] for name in names]
        if not total:
            return dict.fromkeys(names, 0.0)
        gradients = torch.autograd.grad(torch.stack(total).sum(), tensors, allow_unused=True)
    return {
        name: 0.0 if grad is None else grad.mean().item()
        for name, grad in zip(names, gradients, strict=True)
    }
