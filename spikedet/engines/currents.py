"""The current of one layer of neurons: the operations that add to it, and its scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikedet.engines.program import Move, Plus, Pool, Sums, Times, Weighted
from spikedet.engines.signals import SpikeSignals
from spikedet.engines.weights import (
    by_outputs,
    factor_of,
    largest_of,
    most_of,
    most_sum,
    times_inputs,
)
from spikedet.graph.graph import Node
from spikedet.graph.operations import AVERAGES, MOVES, WEIGHTED, Add, Scale, Shift, Subtract
from spikedet.graph.time import CONSTANT
from spikedet.neurons.layers import SpikingMaxPool, per_channel

LARGEST = 127  # largest integer weight
COARSEST = 2**20  # largest integer threshold, potential or bias


class MixedScales(Exception):
    """Several channels of neurons meet in one channel of a layer, so they need one scale."""


@dataclass
class Tree:
    """A part of the sum that makes a current: a node or a leaf, with the scale of its value.

    Attributes:
        make: Function of the scales [labels]. It adds the operations to the program, and returns
            the name of the last one.
    """

    make: Callable[[Tensor], str]


def scales_of(least: Tensor, most: Tensor) -> Tensor:
    """Choose scales, [C] float64: numbers with 8 significant bits, as in bfloat16.

    With so few bits, integer multiples of a scale up to 2**16 are exact in float32. So torch
    computes the same sums. The scale is the smallest such number above 127 / 127.49 of the needed
    one. Then the largest weight is always 127, and weights that are already rounded get the same
    scale again.

    Args:
        least: Scale that the weights need: the largest weight divided by 127.
        most: The largest threshold, potential or bias. It may be at most `COARSEST` scales.
    """
    mantissa, exponent = torch.frexp(least * (LARGEST / 127.49))
    of_weights = torch.ldexp((mantissa * 256).ceil() / 256, exponent)
    mantissa, exponent = torch.frexp(most / COARSEST)
    of_others = torch.ldexp(torch.ones_like(most), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.maximum(of_weights, of_others)


@dataclass(frozen=True)
class Part:
    """A weighted layer that adds to a current.

    Attributes:
        node: Name of the layer.
        labels: Number of the neuron's scale for each output channel, -1 for none, [C_out].
        factors: Factor from that scale to the scale of the channel, [C_out].
        amplitudes: Value of the integer 1 in each input channel, [C_in], for each term that the
            layer reads.
    """

    node: str
    labels: Tensor
    factors: Tensor
    amplitudes: list[Tensor]


@dataclass(frozen=True)
class Rounding:
    """The rounding of all weights that add to the current of one layer of neurons.

    Attributes:
        neuron: Name of the neurons' node.
        labels: Number of scales: one, or one for each channel.
        parts: Weighted layers that add to the current.
        offsets: Layers whose bias is added to the bias of the neurons, with the divisor of that
            bias.
        constant: Other constants that are added to the bias, [C].
        least: The smallest scale that shortcuts need, [labels].
    """

    neuron: str
    labels: int
    parts: list[Part]
    offsets: list[tuple[str, Tensor]]
    constant: Tensor
    least: Tensor


class Currents:
    """The tree of operations that make the current of one layer of neurons.

    Every element of a value has a label and a factor. The label is the number of one of the
    neurons' scales, or -1 if the element is not used. The scale of the element is scales[label] *
    factor.

    Attributes:
        least: The smallest scale that each label needs, [labels].
        bias: Sum of the biases of the layers, in units of the neurons, [C].
        rounding: The rounding of all weights in the tree.
    """

    def __init__(self, signals: SpikeSignals, node: Node, labels: int):
        self.signals, self.neuron = signals, node
        self.graph, self.emit = signals.graph, signals.emit
        self.least = torch.zeros(labels, dtype=torch.float64)
        channels = signals.graph.shapes[node.name][1]
        self.bias = torch.zeros(channels, dtype=torch.float64)
        constant, least = torch.zeros_like(self.bias), torch.zeros_like(self.least)
        self.rounding = Rounding(node.name, labels, [], [], constant, least)

    def tree(self, name: str, label: Tensor, factor: Tensor, near: bool) -> Tree:
        """Make the tree for the value of a node at a given scale.

        Args:
            name: Name of the node.
            label: Label of its value, [1, ...].
            factor: Factor of its value, [1, ...].
            near: Whether only sums and factors lie between the node and the neurons. Then its
                constants can be added to the bias of the neurons.
        """
        if self.signals.is_spikes(name):
            return self._spikes(name, label, factor)
        if name not in self.graph or self.signals.when[name] == CONSTANT:
            raise self.signals.refuse(name, "a current that has no time steps")
        node = self.graph.node(name)
        module = node.module
        if isinstance(module, Add | Subtract):
            return self._sum(node, label, factor, near)
        if isinstance(module, Scale):
            by = module.factor.double().cpu().expand(label.shape)
            return self.tree(node.inputs[0], label, factor / by, near)
        if isinstance(module, Shift):
            offset = module.offset.double().cpu().expand(label.shape)
            inner = self.tree(node.inputs[0], label, factor, near)
            return self._shifted(node, inner, offset, label, factor, near)
        if isinstance(module, WEIGHTED):
            return self._weighted(node, label, factor, near)
        if isinstance(module, MOVES):
            return self._moved(node, label, factor)
        if isinstance(module, AVERAGES):
            return self._average(node, label, factor)
        if isinstance(module, SpikingMaxPool):
            return self._pooled(node, label, factor)
        raise self.signals.refuse(name, f"a {node.kind}")

    # ------------------------------------------------------------------ leaves

    def _spikes(self, name: str, label: Tensor, factor: Tensor) -> Tree:
        """Spikes that are added to the current without a weighted layer."""
        labels, factors = self._channels(label), self._factors(label, factor)
        terms = self.signals.terms(name)
        each = [self.signals.each_channel(name, term.amplitude) for term in terms]
        for amplitude in each:  # 20 bits are enough for what is not multiplied
            needed = (amplitude / factors).abs() / COARSEST
            self._need(labels, needed)
            self._need(labels, needed, self.rounding.least)

        def make(scales: Tensor) -> str:
            parts = []
            for term, amplitude in zip(terms, each, strict=True):
                whole = (amplitude / self._scale(scales, labels, factors)).round()
                op = Times(f"{self.neuron.name}:{name}", (term.op,), whole.to(torch.int32))
                largest = self.signals.largest[term.op] * whole.abs().max().item()
                parts.append(self.emit(op, largest))
            return self._added(parts)

        return Tree(make)

    def _weighted(self, node: Node, label: Tensor, factor: Tensor, near: bool) -> Tree:
        module, (source,) = self.graph.weighted(node.name), node.inputs
        bias = torch.zeros(label.shape[1], dtype=torch.float64)
        if module.bias is not None:
            bias = module.bias.detach().double().cpu()
        offset = per_channel(bias, label.ndim).expand(label.shape)
        if not self.signals.is_spikes(source):
            by = factor_of(module)
            if by is None:
                raise self.signals.refuse(
                    node.name, "a layer whose input is not spikes (a linear bottleneck)"
                )
            by = per_channel(by, label.ndim).expand(label.shape)
            inner = self.tree(source, label, factor / by, near)
            return self._shifted(node, inner, offset, label, factor, near)
        if isinstance(module, nn.Linear) and label.ndim != 2:
            raise self.signals.refuse(node.name, "a linear layer that is applied at several places")
        labels, factors = self._channels(label), self._factors(label, factor)
        terms = self.signals.terms(source)
        amplitudes = [self.signals.each_channel(source, term.amplitude) for term in terms]
        self.rounding.parts.append(Part(node.name, labels, factors, amplitudes))
        weights = [times_inputs(module, amplitude) for amplitude in amplitudes]
        for weight in weights:
            self._need(labels, largest_of(module, weight) / factors.abs() / LARGEST)

        def make(scales: Tensor) -> str:
            parts, scale = [], self._scale(scales, labels, factors)
            for term, weight in zip(terms, weights, strict=True):
                whole = by_outputs(module, weight, 1 / scale).round()
                whole = whole.clamp(-LARGEST, LARGEST).to(torch.int8)
                op = Weighted(f"{self.neuron.name}:{node.name}", (term.op,), module, whole)
                largest = self.signals.largest[term.op] * most_sum(module, whole)
                parts.append(self.emit(op, largest))
            return self._added(parts)

        return self._shifted(node, Tree(make), offset, label, factor, near)

    # ------------------------------------------------------------------ on the way to them

    def _sum(self, node: Node, label: Tensor, factor: Tensor, near: bool) -> Tree:
        parts = []
        for i, source in enumerate(node.inputs):
            if self.graph.shapes[source] != tuple(label.shape):
                raise self.signals.refuse(node.name, "a sum of tensors with different shapes")
            sign = -1.0 if i and isinstance(node.module, Subtract) else 1.0
            parts.append(self.tree(source, label, factor * sign, near))
        return Tree(lambda scales: self._added([part.make(scales) for part in parts]))

    def _shifted(
        self,
        node: Node,
        inner: Tree,
        offset: Tensor,
        label: Tensor,
        factor: Tensor,
        near: bool,
    ) -> Tree:
        """A value plus a constant."""
        if not bool(offset.any()):
            return inner
        if near:
            flat = (offset / factor).expand(label.shape)
            each = flat.flatten(2)[0] if flat.ndim > 2 else flat[0].unsqueeze(1)
            if bool((each == each[:, :1]).all()):
                self.bias += each[:, 0]
                if isinstance(node.module, WEIGHTED) and bool((factor[0, :, ...] != 0).all()):
                    by = factor.flatten(2)[0, :, 0] if factor.ndim > 2 else factor[0]
                    self.rounding.offsets.append((node.name, by))
                else:
                    self.rounding.constant.add_(each[:, 0])
                return inner

        def make(scales: Tensor) -> str:
            source = inner.make(scales)
            whole = (offset / self._scale(scales, label, factor)).round()
            largest = self.signals.largest[source] + whole.abs().max().item()
            return self.emit(
                Plus(f"{self.neuron.name}:{node.name}", (source,), whole.to(torch.int32)), largest
            )

        return Tree(make)

    def _moved(self, node: Node, label: Tensor, factor: Tensor) -> Tree:
        shapes = [self.graph.shapes[source] for source in node.inputs]
        sizes = [math.prod(shape) for shape in shapes]
        places, start = [], 1
        for shape, size in zip(shapes, sizes, strict=True):
            places.append(torch.arange(start, start + size, dtype=torch.float64).view(shape))
            start += size
        where = node.module(*places).long()  # 0: padding
        labels = torch.full((start,), -1)
        factors = torch.ones(start, dtype=torch.float64)
        labels[where.flatten()] = label.flatten()
        factors[where.flatten()] = factor.flatten()
        inside = where > 0
        if not bool((labels[where] == label)[inside].all()):
            raise MixedScales
        if not bool((factors[where] == factor)[inside].all()):
            raise self.signals.refuse(node.name, "currents with different factors in one place")
        trees = []
        for source, place in zip(node.inputs, places, strict=True):
            at = place.long()
            trees.append(self.tree(source, labels[at], factors[at], False))

        def make(scales: Tensor) -> str:
            inputs = tuple(tree.make(scales) for tree in trees)
            largest = max(self.signals.largest[source] for source in inputs)
            return self.emit(Move(f"{self.neuron.name}:{node.name}", inputs, node.module), largest)

        return Tree(make)

    def _average(self, node: Node, label: Tensor, factor: Tensor) -> Tree:
        times = self.signals.times(node)
        inner = self._of_windows(node, label, factor * times)

        def make(scales: Tensor) -> str:
            source = inner.make(scales)
            shape = self.graph.shapes[node.inputs[0]]
            largest = self.signals.largest[source] * most_of(node.module, shape) * times
            op = Sums(f"{self.neuron.name}:{node.name}", (source,), node.module, times)
            return self.emit(op, round(largest))

        return Tree(make)

    def _pooled(self, node: Node, label: Tensor, factor: Tensor) -> Tree:
        if not bool((factor > 0).all()):
            raise self.signals.refuse(node.name, "max-pooling of currents with a negative factor")
        inner, module = self._of_windows(node, label, factor), node.module
        assert isinstance(module, SpikingMaxPool)

        def make(scales: Tensor) -> str:
            source = inner.make(scales)
            op = Pool(f"{self.neuron.name}:{node.name}", (source,), module)
            return self.emit(op, self.signals.largest[source])

        return Tree(make)

    def _of_windows(self, node: Node, label: Tensor, factor: Tensor) -> Tree:
        """The input of pooling, which does not mix channels."""
        labels, factors = self._channels(label), self._factors(label, factor)
        shape = self.graph.shapes[node.inputs[0]]
        return self.tree(
            node.inputs[0],
            per_channel(labels, len(shape)).expand(shape),
            per_channel(factors, len(shape)).expand(shape),
            False,
        )

    # ------------------------------------------------------------------ scales

    def _added(self, names: list[str]) -> str:
        if len(names) == 1:
            return names[0]
        largest = sum(self.signals.largest[name] for name in names)
        return self.emit(Plus(f"{self.neuron.name}:sum", tuple(names)), largest)

    def _channels(self, label: Tensor) -> Tensor:
        """The label of each channel, [C].

        Raises:
            Mixed: A channel has several labels.
        """
        flat = label.flatten(2)[0] if label.ndim > 2 else label[0].unsqueeze(1)
        each = flat.amax(1)
        if not bool(((flat == each.unsqueeze(1)) | (flat < 0)).all()):
            raise MixedScales
        return each

    def _factors(self, label: Tensor, factor: Tensor) -> Tensor:
        """The factor of each channel, [C]."""
        flat = factor.flatten(2)[0] if factor.ndim > 2 else factor[0].unsqueeze(1)
        read = (label.flatten(2)[0] if label.ndim > 2 else label[0].unsqueeze(1)) >= 0
        place = read.int().argmax(1, keepdim=True)
        each = flat.gather(1, place)
        if not bool(((flat == each) | ~read).all()):
            raise self.signals.refuse(
                self.neuron.name, "currents with different factors within one channel"
            )
        return each[:, 0]

    def _need(self, labels: Tensor, least: Tensor, into: Tensor | None = None) -> None:
        need(self.least if into is None else into, labels, least)

    @staticmethod
    def _scale(scales: Tensor, label: Tensor, factor: Tensor) -> Tensor:
        """The scales of elements or channels; infinite for those that are not used."""
        return torch.where(label >= 0, scales[label.clamp(min=0)] * factor, torch.inf)


def need(scales: Tensor, labels: Tensor, least: Tensor) -> None:
    """Increase `scales` [labels] to at least the scales that the channels need, in place."""
    read = labels >= 0
    scales.scatter_reduce_(0, labels[read], least[read].nan_to_num(0.0), "amax")
