"""Fold thresholds into the weights of the next layers, so that the spikes are 0 or 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import (
    WEIGHTED,
    Add,
    Mean,
    Scale,
    Shift,
    Subtract,
    Sum,
    WeightedLayer,
)
from spikedet.graph.time import CONSTANT, phases
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool

NOTHING, REAL = 0.0, -1.0  # label of a position that is always zero; label of a real current


@torch.no_grad()
def fold_thresholds(graph: Graph) -> None:
    """Scale weights so that the signals between layers are 0/1, in place.

    A spike stands for the value theta. This value is multiplied into the weights that read the
    spike. Labels find the neurons that each input channel of a layer reads: each channel of each
    layer of neurons has a number, and the numbers pass all operations that only move values
    (up-sampling, pooling, slices, concatenations, reshaping).

    There are two cases in which this is not possible. If two numbers meet at one position, as after
    the sum of two branches, one weight cannot contain both thresholds. If a number reaches other
    neurons directly, there is no weight at all. The neurons before such a position send theta times
    their spikes (`IFNeuron.folded` is False). Which neurons these are depends only on the graph,
    not on the values of the thresholds.
    """
    labels = _Labels(graph)
    while more := labels.conflicts():
        for name in more:
            _neuron(graph.node(name)).folded = False
    for node in graph.of(WEIGHTED):
        if (heard := labels.heard.get(node.name)) is not None:
            assert isinstance(node.module, WEIGHTED)
            _scale_inputs(node.module, labels.thresholds(heard).to(node.module.weight))


def _neuron(node: Node) -> IFNeuron:
    assert isinstance(node.module, IFNeuron)
    return node.module


class _Labels:
    """The labels of one spiking graph.

    Attributes:
        heard: Label of each input channel of each weighted layer, [C]. `conflicts` sets it.
    """

    def __init__(self, graph: Graph):
        self.graph, self.when = graph, phases(graph)
        self.owners: list[str] = []  # of each label, from 1 on
        self.values: list[Tensor] = []
        self.first: dict[str, int] = {}
        for node in graph.of((IFNeuron,)):
            channels = graph.shapes[node.name][1]
            self.first[node.name] = len(self.owners) + 1
            self.owners += [node.name] * channels
            self.values.append(_neuron(node).threshold.cpu().double().expand(channels))
        self.heard: dict[str, Tensor] = {}
        self.in_conflict: set[str] = set()

    def thresholds(self, heard: Tensor) -> Tensor:
        """The factor for each channel, from its label, [C]."""
        table = torch.cat([torch.ones(1, dtype=torch.float64), *self.values])
        return table[heard.clamp(min=0).long()]

    def conflicts(self) -> set[str]:
        """Neurons that send 0/1, but whose theta cannot be folded into weights."""
        self.in_conflict, self.heard = set(), {}
        names = [n for n in self.graph.edges if self.when[n] != CONSTANT]
        known = {
            name: torch.full(self.graph.shapes[name], REAL, dtype=torch.float64)
            for name in (INPUT, *self.graph.edges)
            if self.when[name] == CONSTANT
        }
        outputs = [name for name in self.graph.outputs if self.when[name] != CONSTANT]
        sent = self.graph.run(names, known, outputs, self._follow)
        self._mark(*sent.values())  # no weight follows that could stand for theta
        return self.in_conflict

    def _mark(self, *labels: Tensor) -> None:
        """Mark the neurons of some labels as conflicts."""
        for label in labels:
            for number in label[label > 0].unique().tolist():
                self.in_conflict.add(self.owners[int(number) - 1])

    def _follow(self, node: Node, inputs: list[Tensor]) -> Tensor:
        module, shape = node.module, self.graph.shapes[node.name]
        if isinstance(module, IFNeuron):
            self._mark(inputs[0])
            return self._of_neuron(node, shape)
        if isinstance(module, WEIGHTED):
            if module.weight.ndim > 2 or inputs[0].ndim == 2:
                self.heard[node.name] = self._channels(inputs[0])
            return torch.full(shape, REAL, dtype=torch.float64)
        if isinstance(module, Add | Subtract):
            total = inputs[0].expand(shape)
            for other in inputs[1:]:
                total = self._joined(total, other.expand(shape))
            return total
        if isinstance(module, Shift):
            apart = module.offset.ne(0).cpu().expand(shape)
            self._mark(inputs[0].expand(shape)[apart])
            return torch.where(apart, REAL, inputs[0].expand(shape))
        if isinstance(module, Scale):
            return inputs[0].expand(shape).clone()
        if isinstance(module, MeanOverTime):
            return inputs[0]
        if (largest := _windows(module)) is not None:
            return self._one_of(largest, inputs[0])
        return module(*inputs)

    def _of_neuron(self, node: Node, shape: tuple[int, ...]) -> Tensor:
        if not _neuron(node).folded:
            return torch.full(shape, REAL, dtype=torch.float64)
        first = self.first[node.name]
        numbers = torch.arange(first, first + shape[1], dtype=torch.float64)
        return numbers.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        """Labels of a sum. Where the two labels differ, their neurons are marked."""
        apart = (x != y) & (x != NOTHING) & (y != NOTHING)
        self._mark(x[apart], y[apart])
        return torch.where(apart, REAL, torch.where(x == NOTHING, y, x))

    def _one_of(self, largest: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Labels of windows. Where a window has different labels, their neurons are marked."""
        high = largest(torch.where(x == NOTHING, -torch.inf, x))
        low = -largest(-torch.where(x == NOTHING, torch.inf, x))
        empty = high.isinf()
        apart = (high != low) & ~empty
        self._mark(high[apart], low[apart])
        return torch.where(empty, NOTHING, torch.where(apart, REAL, high))

    def _channels(self, x: Tensor) -> Tensor:
        """The label of each channel of [1, C, ...], [C]."""
        return self._one_of(lambda y: y.flatten(2).amax(2), x.view(*x.shape, 1))[0]


def _windows(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A function for the largest value of each window of pooling or a sum; None for others."""
    if isinstance(module, SpikingMaxPool):
        return module.pool
    if isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
        function = F.max_pool2d if isinstance(module, nn.AvgPool2d) else F.max_pool1d
        return lambda x: function(
            x, module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode
        )
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveMaxPool2d(module.output_size)
    if isinstance(module, nn.AdaptiveAvgPool1d):
        return nn.AdaptiveMaxPool1d(module.output_size)
    if isinstance(module, Mean | Sum):
        return lambda x: x.amax(module.dims, module.keepdim)
    return None


def _scale_inputs(layer: WeightedLayer, scale: Tensor) -> None:
    """Multiply the weights of a layer by a scale for each of its input channels, [C]."""
    tail = [1] * (layer.weight.ndim - 2)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):  # [in, out / groups, ...]
        layer.weight.data *= scale.view(-1, 1, *tail)
        return
    groups = getattr(layer, "groups", 1)
    rows = scale.view(groups, 1, -1).expand(-1, len(layer.weight) // groups, -1)
    layer.weight.data *= rows.reshape(len(layer.weight), -1, *tail)
