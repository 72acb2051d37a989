"""Compare a spiking network with the networks it was made from, layer by layer and over T.

Pictures are processed in batches. Only sums, and one number for each layer and picture, are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from spikedet.analysis.record import Layer, Recorder, outputs
from spikedet.analysis.residual import residual_error
from spikedet.graph.graph import Graph, Node
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.time import readouts
from spikedet.neurons.layers import IFNeuron, per_channel
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.network import SpikingNetwork


class Reference:
    """A float or stage-I network to compare a spiking network with.

    Args:
        graph: The network's graph in evaluation mode.

    Attributes:
        activations: Outputs of its quantisers for the last pictures, [B, C, ...] each.
        results: Outputs of its readouts for the last pictures, [B, C, ...] each.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        activations = graph.of(ACTIVATIONS)
        self.quantisers = [n for n in activations if isinstance(n.module, QuantClip | IFNeuron)]
        self.readouts = readouts(graph)
        self.activations: list[Tensor] = []
        self.results: list[Tensor] = []

    def run(self, pictures: Tensor) -> None:
        """Run the network on pictures [B, C, H, W]."""
        names = [node.name for node in self.quantisers]
        values = outputs(self.graph, names + self.readouts, pictures)
        self.activations, self.results = values[: len(names)], values[len(names) :]

    def thresholds(self) -> list[Tensor]:
        """The thresholds of each layer of quantisers, broadcastable to [B, C, ...]."""
        return [
            per_channel(_threshold(node).detach().abs().clamp(min=1e-6), activation.ndim)
            for node, activation in zip(self.quantisers, self.activations, strict=True)
        ]


def _threshold(node: Node) -> Tensor:
    assert isinstance(node.module, QuantClip | IFNeuron)
    return node.module.threshold


class ReadoutError:
    """The squared error of readouts, normalised by the standard deviation of each output channel.

    The unit is the same as in calibration: the standard deviation of the target over pictures and
    positions.
    """

    def __init__(self):
        self.count: dict[int, int] = {}
        self.sums: dict[int, Tensor] = {}  # [3, C]: of squared errors, wanted, squared wanted

    def add(self, results: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        """Add a batch: the outputs of all readouts and their targets, [B, C, ...] each."""
        for index, pair in enumerate(zip(results, wanted, strict=True)):
            x, y = (part.double().transpose(0, 1).flatten(1) for part in pair)
            new = torch.stack([(x - y).square().sum(1), y.sum(1), y.square().sum(1)])
            self.sums[index] = self.sums.get(index, 0) + new
            self.count[index] = self.count.get(index, 0) + x.shape[1]

    def each(self) -> list[float]:
        """The normalised mean squared error of each readout."""
        errors = []
        for index, (error, total, squares) in self.sums.items():
            count = self.count[index]
            variance = (squares - total.square() / count) / max(1, count - 1)
            errors.append((error / count / variance.clamp(min=1e-12)).mean().item())
        return errors

    def mean(self) -> float:
        """The mean of these errors over the readouts."""
        values = self.each()
        return sum(values) / len(values)


@dataclass
class LayerResult:
    """Results of one layer of neurons, with one value for each of N pictures.

    Attributes:
        neurons: Number of neurons.
        above, below: Share of neurons whose rate is above or below the quantiser of their mean
            current (figure 4).
        cosine: Cosine of theta times the rates and the stage-I activations (figure 5b).
        error: Mean squared difference of these two in units of theta, as in calibration.
        rate: Spikes per neuron and time step.
    """

    neurons: int
    above: list[float] = field(default_factory=list)
    below: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


class Comparison:
    """The comparison of a spiking network with stage I and the float network, over all pictures.

    Args:
        spiking: The network.
        T: Time steps.

    Attributes:
        layers: Results of each layer of neurons, in the order of execution.
        readouts: Names of the readouts.
        to_stage1, to_float: Error of the readouts after each time step 1..T of one run (figure 5c).
            Empty without this reference.
    """

    def __init__(self, spiking: SpikingNetwork, T: int):
        self.recorder, self.T = Recorder(spiking), T
        self.layers: dict[str, LayerResult] = {}
        self.readouts: list[str] = []
        self.to_stage1: dict[int, ReadoutError] = {}
        self.to_float: dict[int, ReadoutError] = {}

    @torch.no_grad()
    def add(
        self, pictures: Tensor, stage1: Reference | None = None, source: Reference | None = None
    ) -> None:
        """Add pictures [B, C, H, W], which `stage1` and the float `source` have seen already."""
        for t in self.recorder.run(pictures, self.T):
            results = self.recorder.read
            for gaps, reference in ((self.to_stage1, stage1), (self.to_float, source)):
                if reference is not None:
                    gaps.setdefault(t, ReadoutError()).add(results, reference.results)
        self.readouts = self.recorder.readouts
        for layer in self.recorder.neurons:
            self._residual(layer)
        if stage1 is not None:
            pairs = zip(stage1.activations, stage1.thresholds(), strict=True)
            for layer, (activation, theta) in zip(self.recorder.neurons, pairs, strict=True):
                self._likeness(layer, activation, theta)

    def _residual(self, layer: Layer) -> None:
        result = self.layers.setdefault(layer.name, LayerResult(layer.sent[0].numel()))
        above, below = residual_error(layer.module, layer.received, layer.sent, self.T)
        result.above += above.tolist()
        result.below += below.tolist()
        result.rate += (layer.fired.flatten(1).mean(1) / self.T).tolist()

    def _likeness(self, layer: Layer, activation: Tensor, theta: Tensor) -> None:
        rate = layer.sent / self.T
        result = self.layers[layer.name]
        result.cosine += cosine(rate * theta, activation).tolist()
        result.error += (rate - activation / theta).square().flatten(1).mean(1).tolist()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """The cosine similarity for each picture, [B, ...] -> [B]. It is 1 if both are all zero."""
    a, b = first.flatten(1).double(), second.flatten(1).double()
    silent = ~(a.any(1) | b.any(1))
    return F.cosine_similarity(a, b) + silent
