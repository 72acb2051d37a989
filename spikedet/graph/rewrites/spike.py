"""The spiking network: neurons in place of quantisers, time around them."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from spikedet.errors import ConversionError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.fold_thresholds import fold_thresholds
from spikedet.graph.structure import rename
from spikedet.graph.time import STEPWISE, expect_steps_apart, phases, readouts
from spikedet.neurons.layers import MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip
from spikedet.neurons.registry import named


@torch.no_grad()
def make_spiking(
    graph: Graph, initial: float = 0.5, pooling: str = "count", neuron: str = "neuron"
) -> None:
    """Quantised graph -> spiking graph with copied weights, in place.

    Quantisers become integrate-and-fire neurons of the same threshold, max-pooling that of spike
    counts, thresholds go into the weights that read them, and the layers behind the last neuron
    read the mean over time. An output behind the last neuron is the mean of what the neurons send.

    Args:
        graph: Stage I, batch norm folded.
        initial: Potential before the first step in units of the threshold (1/2: eq 16).
        pooling: How max-pooling is done: `count`, or `step` (see `SpikingMaxPool`).
        neuron: Which one of `neurons.registry`.

    Raises:
        ConversionError: Names what cannot be converted.
    """
    make = named(neuron)
    expect_steps_apart(graph)
    for node in graph.of(ACTIVATIONS):
        if not isinstance(node.module, QuantClip):
            raise ConversionError(
                f"{node.name}: this {node.kind} is not quantised; quantise the graph first"
            )
        channels = graph.shapes[node.inputs[0]][1]
        threshold = node.module.threshold.detach().abs().clamp(min=1e-6)
        start = (threshold * initial).expand(channels)
        graph.replace(node.name, make(threshold, start, node.module.slope))
    when = phases(graph)
    for node in graph.of((nn.MaxPool1d, nn.MaxPool2d)):
        if when[node.name] == STEPWISE:
            assert isinstance(node.module, nn.MaxPool1d | nn.MaxPool2d)
            graph.replace(node.name, _counted(node.module, pooling))
    for name in readouts(graph):
        (source,) = graph.edges[name]
        graph.insert_between(source, name, f"{name}_mean", MeanOverTime())
    for name in graph.outputs:
        if when.get(name) == STEPWISE:  # the network ends in an activation: its mean rate
            mean = graph.add(f"{name}_mean", MeanOverTime(), [name])
            graph.shapes[mean] = graph.shapes[name]
            graph.output = rename(graph.output, partial(_renamed, {name: mean}))
    fold_thresholds(graph)


def _renamed(names: dict[str, str], name: str) -> str:
    return names.get(name, name)


def _counted(pool: nn.MaxPool1d | nn.MaxPool2d, mode: str) -> SpikingMaxPool:
    return SpikingMaxPool(
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.dilation,
        pool.ceil_mode,
        2 if isinstance(pool, nn.MaxPool2d) else 1,
        mode,
    )
