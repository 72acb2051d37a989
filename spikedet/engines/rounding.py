"""Round the tensors of a spiking graph to the values that the integer engines use.

The weights of a layer between neurons become q s / a. q is an integer in -127..127, s is the scale
of the neurons, and a is the value of a spike of the input. Biases, thresholds and initial
potentials become multiples of s (see `integers`). When the graph is compiled again, it gives the
same integers. All other weights, before the first neurons and after the last neurons, are rounded
to half precision, as in files.

Some tensors are not rounded: thresholds that are part of the neurons' output (see
`IFNeuron.folded`), layers that read sums of spikes with different thresholds, layers that two
layers of neurons read, and neurons with a constant current.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from spikedet.engines.currents import LARGEST, Part, Rounding, need
from spikedet.engines.integers import Parameters, compile_integers
from spikedet.engines.weights import by_inputs, by_outputs, largest_of
from spikedet.graph.graph import Graph
from spikedet.graph.operations import WEIGHTED


@dataclass(frozen=True)
class IntegerWeight:
    """The integers of one weight tensor: weight = numbers * scale / amplitude.

    Attributes:
        numbers: int8, in the shape of the weight.
        scale, amplitude: float32, broadcastable to the weight.
    """

    numbers: Tensor
    scale: Tensor
    amplitude: Tensor

    def value(self) -> Tensor:
        """The weight, float32."""
        return (self.numbers.double() * self.scale.double() / self.amplitude.double()).float()


class Rounder:
    """The rounding of the tensors of a spiking graph.

    Args:
        graph: Spiking graph. Its weights may change afterwards, but its thresholds may not.

    Raises:
        NoIntegers: The integer engines do not support the graph.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.roundings: list[Rounding] = compile_integers(graph).rounding
        readers: dict[str, int] = {}
        for rounding in self.roundings:
            for name in {*(p.node for p in rounding.parts), *(n for n, _ in rounding.offsets)}:
                readers[name] = readers.get(name, 0) + 1
        self.shared = {name for name, number in readers.items() if number > 1}
        self.parts = {
            part.node: part
            for rounding in self.roundings
            for part in rounding.parts
            if part.node not in self.shared and len(part.amplitudes) == 1
        }

    def expand_parameters(self) -> None:
        """Expand thresholds and initial potentials to one value for each channel."""
        for rounding in self.roundings:
            neuron = self.graph.neuron(rounding.neuron)
            channels = len(rounding.constant)
            if neuron.folded and not neuron.threshold.ndim:
                neuron.threshold = neuron.threshold.expand(channels).clone()
            if not neuron.initial.ndim:
                neuron.initial.data = neuron.initial.data.expand(channels).clone()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the rounded tensors inside the `with` block; afterwards, restore the old values.

        Gradients inside the block are those at the rounded values. An optimiser then applies them
        to the unrounded values (straight-through estimator).
        """
        before = []
        try:
            for tensor, value in self.rounded():
                before.append((tensor, tensor.data))
                tensor.data = torch.empty_like(tensor.data).copy_(value)
            yield
        finally:
            for tensor, value in reversed(before):
                tensor.data = value

    @torch.no_grad()
    def write(self) -> None:
        """Round the tensors permanently."""
        for tensor, value in self._half_precision():
            tensor.copy_(value)
        fresh = Rounder(self.graph)  # some of these are factors of what follows
        fresh.expand_parameters()
        for rounding in fresh.roundings:
            for tensor, value in fresh._of_neuron(rounding):
                tensor.copy_(value)

    @torch.no_grad()
    def rounded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each tensor of the graph with its rounded value. Call `expand_parameters` first."""
        for rounding in self.roundings:
            yield from self._of_neuron(rounding)
        yield from self._half_precision()

    @torch.no_grad()
    def integer_weights(self) -> dict[str, IntegerWeight]:
        """The integers of all weights that have them, by the names of their nodes."""
        return {
            part.node: self._integer_weight(part, self._scales(rounding))
            for rounding in self.roundings
            for part in rounding.parts
            if part.node in self.parts
        }

    def _half_precision(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weights that have no integers, with their values in half precision."""
        for node in self.graph.of(WEIGHTED):
            if node.name not in self.parts:
                weight = self.graph.weighted(node.name).weight
                half = weight.half().float()
                yield weight, torch.where(half.isfinite(), half, weight)

    # ------------------------------------------------------------------ one layer of neurons

    def _scales(self, rounding: Rounding) -> Tensor:
        """The scales [C] of a layer of neurons for the current weights."""
        least = rounding.least.clone()
        for part in rounding.parts:
            module = self.graph.weighted(part.node)
            weight = module.weight.detach().double().cpu()
            for amplitude in part.amplitudes:
                largest = largest_of(module, by_inputs(module, weight, amplitude))
                need(least, part.labels, largest / part.factors.abs() / LARGEST)
        return self._parameters(rounding).scales(least, self._bias(rounding))

    def _parameters(self, rounding: Rounding) -> Parameters:
        return Parameters.of(self.graph.neuron(rounding.neuron), len(rounding.constant))

    def _bias(self, rounding: Rounding) -> Tensor:
        total = rounding.constant.clone()
        for name, factor in rounding.offsets:
            total += self._bias_of(name).detach().double().cpu() / factor
        return total

    def _bias_of(self, name: str) -> Tensor:
        bias = self.graph.weighted(name).bias
        assert bias is not None  # or it would be no offset
        return bias

    def _integer_weight(self, part: Part, scales: Tensor) -> IntegerWeight:
        module = self.graph.weighted(part.node)
        read = part.labels >= 0
        scale = torch.where(read, scales[part.labels.clamp(min=0)] * part.factors, 1.0).float()
        amplitude = part.amplitudes[0].float()
        amplitude = torch.where(amplitude == 0, 1.0, amplitude)
        weight = module.weight.detach().double().cpu()
        ones = torch.ones(*weight.shape[:2], *[1] * (weight.ndim - 2), dtype=torch.float64)
        scale = by_outputs(module, ones, scale.double())
        amplitude = by_inputs(module, ones, amplitude.double())
        numbers = (weight * amplitude / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return IntegerWeight(numbers, _narrow(scale).float(), _narrow(amplitude).float())

    def _of_neuron(self, rounding: Rounding) -> Iterator[tuple[Tensor, Tensor]]:
        scales = self._scales(rounding)
        for part in rounding.parts:
            if part.node in self.parts:
                yield (
                    self.graph.weighted(part.node).weight,
                    self._integer_weight(part, scales).value(),
                )
        neuron = self.graph.neuron(rounding.neuron)
        if neuron.folded:
            steps = (neuron.threshold.double().cpu() / scales).round().clamp(min=1)
            yield neuron.threshold, (steps * scales).float()
        initial = neuron.initial.detach().double().cpu()
        each = scales.view(-1, *[1] * (initial.ndim - 1))
        yield neuron.initial, ((initial / each).round() * each).float()
        free = [(name, by) for name, by in rounding.offsets if name not in self.shared]
        total = (self._bias(rounding) / scales).round() * scales
        for name, by in rounding.offsets:  # the last one makes the sum a multiple
            bias = self._bias_of(name)
            own = bias.detach().double().cpu() / by
            if free and name == free[-1][0]:
                last = bias, by
                continue
            if name not in self.shared:
                own = (own / scales).round() * scales
                yield bias, (own * by).float()
            total = total - own
        if free:
            bias, by = last
            yield bias, ((total - rounding.constant) * by).float()


def _narrow(factor: Tensor) -> Tensor:
    """Reduce [A, B, 1, ...] to one row or one column if all rows or columns are equal."""
    for dim in (0, 1):
        first = factor.narrow(dim, 0, 1)
        if bool((factor == first).all()):
            factor = first
    return factor
