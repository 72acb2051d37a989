"""Spike rates, synaptic operations and energy (section VI-E and table VII of the paper).

What is counted, for each picture and all its T steps:

- Accumulates: each spike counts its fan-out, which is the number of weights that read it. Borders,
  stride, dilation and groups are exact. An up-sampled spike counts at each of its copies. A spike
  also counts in each window of average pooling, because the factor of the average is part of the
  weights. A spike that is added without weights (an identity shortcut) counts one accumulate in the
  neurons that it reaches.
- Multiply-accumulates: one for each weight that reads an analog value, whatever the value is. For
  the layers before the first neurons, and for the readouts (which read the mean rates), they count
  once. A layer that follows another weighted layer without neurons between them counts in every
  time step.
- Weights that would read padding do not count. Biases, thresholds and resets do not count, in the
  spiking network and in the float network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.analysis.record import Recorder
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import (
    ACTIVATIONS,
    WEIGHTED,
    Mean,
    Scale,
    Shift,
    Subtract,
    WeightedLayer,
)
from spikedet.graph.time import STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.runtime.network import SpikingNetwork

PJ_ACCUMULATE, PJ_MULTIPLY = 0.9, 4.6  # pJ for 32-bit floating point, table VII


def fan_out(layer: WeightedLayer, shape: torch.Size) -> Tensor:
    """The number of weights that read each position of a layer's input.

    Args:
        layer: A convolution or a linear layer.
        shape: Shape of its input, [B, C, ...].

    Returns:
        [...], the same for every channel; for a linear layer a scalar.
    """
    if isinstance(layer, nn.Linear):
        return torch.tensor(float(layer.out_features), device=layer.weight.device)
    options = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        options["output_padding"] = layer.output_padding
    kind = next(kind for kind in WEIGHTED if isinstance(layer, kind))
    with torch.inference_mode(False), torch.enable_grad():  # reads are the gradient of a sum
        ones = nn.utils.skip_init(kind, 1, 1, layer.kernel_size, bias=False, **options)
        nn.init.ones_(ones.weight)
        place = torch.ones(1, 1, *shape[2:], requires_grad=True)
        (reads,) = torch.autograd.grad(ones(place).sum(), place)
    return (reads[0, 0] * (layer.out_channels // layer.groups)).to(layer.weight.device)


@torch.no_grad()
def multiply_accumulates(graph: Graph, picture: Tensor) -> dict[str, int]:
    """Count the multiply-accumulates of each weighted layer of a float network, for one picture.

    Args:
        graph: The network.
        picture: [B, C, H, W]. Only its size is used.
    """
    return _analog_uses(graph, shapes_of(graph, picture))


@torch.no_grad()
def shapes_of(graph: Graph, pictures: Tensor) -> dict[str, torch.Size]:
    """The output shape of each node in one time step, for pictures [B, ...]."""
    shapes = {INPUT: pictures.shape}

    def call(node: Node, inputs: list[Tensor]) -> Tensor:
        value = node.module(*inputs)
        shapes[node.name] = value.shape
        return value

    graph.run(graph.edges, {INPUT: pictures}, (), call)
    return shapes


def _analog_uses(graph: Graph, shapes: dict[str, torch.Size]) -> dict[str, int]:
    """The multiply-accumulates of each weighted layer for one picture with analog inputs."""
    by_layer: dict[str, int] = {}
    for node in graph.of(WEIGHTED):
        assert isinstance(node.module, WEIGHTED)
        shape = shapes[node.inputs[0]]
        uses = fan_out(node.module, shape).expand(shape).sum(dtype=torch.float64)
        by_layer[node.name] = round(uses.item() / shapes[INPUT][0])
    return by_layer


def picojoules(
    accumulates: Tensor | float,
    multiplies: Tensor | float,
    accumulate: float = PJ_ACCUMULATE,
    multiply: float = PJ_MULTIPLY,
) -> Tensor | float:
    """The energy of operations in pJ, at `accumulate` and `multiply` pJ for each."""
    return accumulates * accumulate + multiplies * multiply


@dataclass
class Cost:
    """Spikes and operations of a spiking network for each of N pictures.

    Attributes:
        T: Time steps.
        neurons: Number of neurons in each layer of neurons.
        rates: Spikes per neuron and time step in each layer of neurons, [N].
        accumulates: Accumulates of each layer, [N].
        multiplies: Multiply-accumulates of each layer, [N].
        float_multiplies: Multiply-accumulates of the same layers on analog values.
    """

    T: int
    neurons: dict[str, int]
    rates: dict[str, Tensor]
    accumulates: dict[str, Tensor]
    multiplies: dict[str, Tensor]
    float_multiplies: dict[str, int]

    def rate(self) -> Tensor:
        """Spikes per neuron and time step over all layers, [N]."""
        spikes = (self.rates[name] * size for name, size in self.neurons.items())
        return sum(spikes, torch.zeros(())) / sum(self.neurons.values())


@torch.no_grad()
def measure_cost(spiking: SpikingNetwork, batches: Iterable[Tensor], T: int) -> Cost:
    """Count spikes and operations of a spiking network, which runs with its engine.

    Args:
        spiking: The network.
        batches: Pictures [B, C, H, W].
        T: Time steps.
    """
    neurons: dict[str, int] = {}
    counted: tuple[dict[str, list[Tensor]], ...] = ({}, {}, {})
    analog: dict[str, int] = {}
    recorder = Recorder(spiking, spikes_alone=True)
    for pictures in batches:
        counter = _Counter(spiking, pictures)
        analog = _analog_uses(spiking.graph, counter.shapes)
        for _ in recorder.run(pictures, T):
            counter.step(recorder.now)
        rates = {}
        for layer in recorder.neurons:
            neurons[layer.name] = layer.fired[0].numel()
            rates[layer.name] = layer.fired.flatten(1).mean(1, dtype=torch.float64) / T
        for lists, new in zip(counted, (rates, *counter.totals(T)), strict=True):
            for name, values in new.items():
                lists.setdefault(name, []).append(values.cpu())
    rates, accumulates, multiplies = (
        {name: torch.cat(parts) for name, parts in lists.items()} for lists in counted
    )
    return Cost(T, neurons, rates, accumulates, multiplies, analog)


@torch.no_grad()
def costs_of_spikes(spiking: SpikingNetwork, picture: Tensor) -> dict[str, float]:
    """The accumulates that a spike costs: for each layer, the mean over its neurons.

    Args:
        spiking: The network.
        picture: [1, C, H, W]. Only its size is used.
    """
    counter = _Counter(spiking, picture)
    costs = {}
    for node in spiking.graph.of((IFNeuron,)):
        ones = torch.ones(counter.shapes[node.name], device=picture.device)
        events = counter.follow({node.name: ones})
        uses = (
            (events[reader.source] * reader.accumulates).sum(dtype=torch.float64).item()
            for reader in counter.readers
            if not reader.once and reader.source in events
        )
        costs[node.name] = sum(uses) / ones.numel()
    return costs


@torch.no_grad()
def multiplies_once(spiking: SpikingNetwork, picture: Tensor) -> float:
    """The multiply-accumulates for a picture [1, C, H, W] that do not depend on T."""
    return sum(reader.multiplies for reader in _Counter(spiking, picture).readers if reader.once)


@dataclass
class _Reader:
    """A reader of a value: a weighted layer, or neurons after a sum.

    Attributes:
        source: Name of the value that it reads.
        accumulates: Accumulates for a spike at each position of the value.
        multiplies: Multiply-accumulates for a picture and time step (for a picture, if `once`).
    """

    name: str
    source: str
    accumulates: Tensor
    multiplies: float
    once: bool


class _Counter:
    """Counts the operations of one batch from the spikes of each step.

    The numbers of spikes are passed through the operations between the neurons and the weighted
    layers.
    """

    def __init__(self, spiking: SpikingNetwork, pictures: Tensor):
        self.batch, self.device = len(pictures), pictures.device
        self.graph = spiking.graph
        self.shapes = shapes_of(self.graph, pictures)
        when = phases(self.graph)
        self.once = {n.name for n in self.graph.of(WEIGHTED) if when[n.name] != STEPWISE}
        self.pools: dict[str, Tensor] = {}  # where they send spikes and not real currents
        self.readers = self._readers()
        self.counted = {
            r.name: torch.zeros(self.batch, dtype=torch.float64, device=self.device)
            for r in self.readers
        }

    def _readers(self) -> list[_Reader]:
        """Find the readers of spikes and of analog values, by passing ones through the graph."""
        start = {INPUT: torch.ones(self.shapes[INPUT], device=self.device)}
        analog = self.follow(self._ones(WEIGHTED), start)
        spikes = self.follow(self._ones((IFNeuron,)))
        for node in self.graph.of((SpikingMaxPool,)):
            if node.name in spikes:
                real = analog.get(node.name, torch.zeros(()))
                self.pools[node.name] = (spikes[node.name] > 0) & (real == 0)
        readers = []
        for node in self.graph:
            source = node.inputs[0]
            if isinstance(node.module, WEIGHTED):
                readers.append(self._weighted_reader(node, analog.get(source)))
            elif isinstance(node.module, IFNeuron) and source in spikes:
                readers.append(_Reader(node.name, source, torch.ones(()), 0.0, False))
        return readers

    def _weighted_reader(self, node: Node, analog: Tensor | None) -> _Reader:
        assert isinstance(node.module, WEIGHTED)
        source, once = node.inputs[0], node.name in self.once
        shape = self.shapes[source]
        uses = fan_out(node.module, shape).expand(shape)
        real = torch.full(shape, once) if analog is None else (analog > 0) | once
        real = real.to(uses.device)
        multiplies = (uses * real).sum(dtype=torch.float64).item() / self.batch
        return _Reader(node.name, source, uses * ~real, multiplies, once)

    def _ones(self, kinds: tuple[type, ...]) -> dict[str, Tensor]:
        """Ones as the output of each node of some kinds."""
        nodes = self.graph.of(kinds)
        return {n.name: torch.ones(self.shapes[n.name], device=self.device) for n in nodes}

    def step(self, fired: dict[str, Tensor]) -> None:
        """Add the operations of one time step, from its spikes 0/1."""
        if silent := sorted(self.pools.keys() - fired.keys()):
            raise UsageError(
                f"{silent[0]}: this layer pools spikes and currents together; use the torch "
                "engine to count"
            )
        pooled = {name: fired[name] * places.to(self.device) for name, places in self.pools.items()}
        neurons = {n: x for n, x in fired.items() if isinstance(self.graph.module(n), IFNeuron)}
        events = self.follow({**neurons, **pooled})
        for reader in self.readers:
            if not reader.once and reader.source in events:
                operations = events[reader.source] * reader.accumulates
                each = operations.reshape(self.batch, -1).sum(1, dtype=torch.float64)
                self.counted[reader.name] += each

    def totals(self, T: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The accumulates and the multiply-accumulates of each layer, [B]."""
        multiplies = {name: torch.zeros_like(value) for name, value in self.counted.items()}
        for reader in self.readers:
            multiplies[reader.name] += reader.multiplies * (1 if reader.once else T)
        return self.counted, multiplies

    def follow(
        self, sent: dict[str, Tensor], start: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Pass numbers through all operations that are neither weighted layers nor neurons.

        Args:
            sent: Outputs of weighted layers and neurons by name. The others send nothing.
            start: Values that are known before the first node.

        Returns:
            Values by name. Values that no number reaches are left out.
        """
        values = dict(start or {})
        for node in self.graph:
            if node.name in sent:
                values[node.name] = sent[node.name]
            elif isinstance(node.module, WEIGHTED + ACTIVATIONS):
                continue
            elif any(source in values for source in node.inputs):
                inputs = [
                    values[s] if s in values else torch.zeros(self.shapes[s], device=self.device)
                    for s in node.inputs
                ]
                values[node.name] = _sum_of(node.module, inputs)
        return values


def _sum_of(module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Apply an operation to numbers of spikes: averages become sums; max-pooling is unchanged.

    Constants that scale, shift or subtract do not change the number of spikes.
    """
    x = inputs[0]
    if isinstance(module, SpikingMaxPool):
        return module.pool(x)
    if isinstance(module, MeanOverTime | Shift):
        return x
    if isinstance(module, Scale):
        return x.expand(torch.broadcast_shapes(x.shape, module.factor.shape))
    if isinstance(module, Subtract):
        return inputs[0] + inputs[1]
    if isinstance(module, nn.AvgPool2d):
        window = module.kernel_size, module.stride, module.padding
        return F.avg_pool2d(x, *window, module.ceil_mode, divisor_override=1)
    if isinstance(module, nn.AvgPool1d):
        edges = module.kernel_size, module.stride, module.padding
        size, stride, around = (edge if isinstance(edge, int) else edge[0] for edge in edges)
        window = (1, size), (1, stride), (0, around)
        rows = F.avg_pool2d(x.unsqueeze(2), *window, module.ceil_mode, divisor_override=1)
        return rows.squeeze(2)
    result = module(*inputs)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return result * _adaptive_windows(x.shape[-2:], result.shape[-2:]).to(result.device)
    if isinstance(module, nn.AdaptiveAvgPool1d):
        return result * _adaptive_windows((1, x.shape[-1]), (1, result.shape[-1])).to(x.device)[0]
    if isinstance(module, Mean):
        return result * (x.numel() / result.numel())
    return result


def _adaptive_windows(size: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """The number of positions that each output of adaptive pooling averages, [h, w]."""
    rows, columns = (
        torch.tensor([-(-(i + 1) * n // m) - i * n // m for i in range(m)], dtype=torch.float32)
        for n, m in zip(size, wanted, strict=True)
    )
    return rows[:, None] * columns
