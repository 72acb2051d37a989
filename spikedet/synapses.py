"""How many operations a spike causes: who reads it, at one picture size.

Analysis counts operations with it, and training puts a penalty on them. What counts as an operation
is described in `analysis.operations`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import (
    ACTIVATIONS,
    NORMS,
    WEIGHTED,
    Mean,
    Scale,
    Shift,
    Subtract,
    WeightedLayer,
)
from spikedet.graph.time import STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip

Shapes = Mapping[str, Sequence[int]]
FIRING = (IFNeuron, QuantClip)  # a quantiser stands for the neurons that it becomes


def fan_out(layer: WeightedLayer, shape: Sequence[int]) -> Tensor:
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


def shapes_of(graph: Graph, pictures: Tensor) -> dict[str, tuple[int, ...]]:
    """The output shape of each node in one time step, for pictures [B, ...]."""
    probe = copy.copy(graph)  # the shapes of the graph itself stay
    probe.measure_shapes(pictures)
    return probe.shapes


@torch.no_grad()
def analog_multiplies(graph: Graph, shapes: Shapes) -> dict[str, int]:
    """The multiply-accumulates of each weighted layer for one picture with analog inputs."""
    by_layer: dict[str, int] = {}
    for node in graph.of(WEIGHTED):
        assert isinstance(node.module, WEIGHTED)
        shape = tuple(shapes[node.inputs[0]])
        uses = fan_out(node.module, shape).expand(shape).sum(dtype=torch.float64)
        by_layer[node.name] = round(uses.item() / shapes[INPUT][0])
    return by_layer


@dataclass
class Reader:
    """A reader of a value: a weighted layer, or neurons after a sum.

    Attributes:
        name: Name of its node.
        source: Name of the value that it reads.
        accumulates: Accumulates for a spike at each position of the value.
        multiplies: Multiply-accumulates for a picture and time step (for a picture, if `once`).
        once: Whether it runs once for a picture and not in every time step.
    """

    name: str
    source: str
    accumulates: Tensor
    multiplies: float
    once: bool


class Synapses:
    """The readers of all spikes of a graph.

    Args:
        graph: Spiking graph, or stage-I graph, with or without batch norm.
        shapes: Output shape of each node, [B, ...].
        device: Device of the graph.

    Attributes:
        readers: The readers of spikes and of analog values, in the order of execution.
        pools: For each pooling of spikes, where it sends spikes and not real currents.
    """

    @torch.no_grad()
    def __init__(self, graph: Graph, shapes: Shapes, device: torch.device):
        self.graph, self.shapes, self.device = graph, shapes, device
        self.batch = shapes[INPUT][0]
        when = phases(graph)
        self.once = {node.name for node in graph.of(WEIGHTED) if when[node.name] != STEPWISE}
        # ones are passed through the graph to find who reads what
        start = {INPUT: torch.ones(tuple(shapes[INPUT]), device=device)}
        analog = self.follow(self._ones(WEIGHTED), start)
        spikes = self.follow(self._ones(FIRING))
        self.pools: dict[str, Tensor] = {}
        for node in graph.of((SpikingMaxPool,)):
            if node.name in spikes:
                real = analog.get(node.name, torch.zeros(()))
                self.pools[node.name] = (spikes[node.name] > 0) & (real == 0)
        self.readers: list[Reader] = []
        for node in graph:
            source = node.inputs[0]
            if isinstance(node.module, WEIGHTED):
                self.readers.append(self._weighted_reader(node, analog.get(source)))
            elif isinstance(node.module, FIRING) and source in spikes:
                self.readers.append(Reader(node.name, source, torch.ones(()), 0.0, False))

    def _weighted_reader(self, node: Node, analog: Tensor | None) -> Reader:
        assert isinstance(node.module, WEIGHTED)
        source, once = node.inputs[0], node.name in self.once
        shape = tuple(self.shapes[source])
        uses = fan_out(node.module, shape).expand(shape)
        real = torch.full(shape, once) if analog is None else (analog > 0) | once
        real = real.to(uses.device)
        count = (uses * real).sum(dtype=torch.float64).item() / self.batch
        return Reader(node.name, source, uses * ~real, count, once)

    def _ones(self, kinds: tuple[type, ...]) -> dict[str, Tensor]:
        """Ones as the output of each node of some kinds."""
        return {node.name: self._ones_of(node) for node in self.graph.of(kinds)}

    def _ones_of(self, node: Node) -> Tensor:
        return torch.ones(tuple(self.shapes[node.name]), device=self.device)

    @torch.no_grad()
    def costs(self) -> dict[str, float]:
        """The accumulates that a spike costs: for each layer, the mean over its neurons."""
        costs = {}
        for node in self.graph.of(FIRING):
            ones = self._ones_of(node)
            events = self.follow({node.name: ones})
            costs[node.name] = sum(x.sum().item() for x in self.accumulates(events).values())
            costs[node.name] /= ones.numel()
        return costs

    def accumulates(self, events: dict[str, Tensor]) -> dict[str, Tensor]:
        """The accumulates that spikes cause in each reader, for each picture, [B] float64.

        Args:
            events: Numbers of spikes, as `follow` returns them.
        """
        counted: dict[str, Tensor] = {}
        for reader in self.readers:
            if not reader.once and reader.source in events:
                operations = events[reader.source] * reader.accumulates
                each = operations.reshape(self.batch, -1).sum(1, dtype=torch.float64)
                counted[reader.name] = each
        return counted

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
                    values[s]
                    if s in values
                    else torch.zeros(tuple(self.shapes[s]), device=self.device)
                    for s in node.inputs
                ]
                values[node.name] = _sum_of(node.module, inputs)
        return values


def _sum_of(module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Apply an operation to numbers of spikes: averages become sums; max-pooling is unchanged.

    Constants that scale, shift or subtract, and norms, do not change the number of spikes.
    """
    x = inputs[0]
    if isinstance(module, SpikingMaxPool):
        return module.pool(x)
    if isinstance(module, (MeanOverTime, Shift, *NORMS)):
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
