"""Make a spiking graph: replace quantisers by neurons, and add the mean over time."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from spikedet.errors import ConversionError, UsageError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.fold_thresholds import fold_thresholds
from spikedet.graph.structure import rename
from spikedet.graph.time import CONSTANT, STEPWISE, expect_steps_apart, phases, readouts
from spikedet.neurons.correcting import CorrectingNeuron, check_margin
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip
from spikedet.neurons.registry import named

NO_MARGIN = (
    "only neurons that take back spikes have a margin, and this network has none of them; choose "
    "the neuron 'correcting', or leave the margin out"
)


@torch.no_grad()
def make_spiking(
    graph: Graph,
    initial: float = 0.5,
    pooling: str = "count",
    neuron: str = "neuron",
    margin: float = 0.0,
) -> None:
    """Convert a quantised graph to a spiking graph with the same weights, in place.

    Quantisers become integrate-and-fire neurons with the same threshold. Max-pooling becomes
    max-pooling of spike counts. Thresholds are folded into the weights that read the spikes. Layers
    after the last neurons read the mean over time. If the network returns the output of neurons
    directly, it is their mean over time.

    With `correcting`, layers with a constant current stay ordinary, because they need no
    correction, and so do those of a leaky ReLU, which have negative spikes of another kind.

    Args:
        graph: Stage-I graph with folded batch norm.
        initial: Initial potential in units of the threshold (1/2: eq 16).
        pooling: Max-pooling of spikes: `count` or `step` (see `SpikingMaxPool`).
        neuron: Name of a neuron in `neurons.registry`.
        margin: Margin of neurons that take back spikes.

    Raises:
        ConversionError: An operation cannot be converted. The message names it. Or all neurons that
            could correct themselves are those of a leaky ReLU.
        UsageError: See `expect_margin`.
    """
    expect_margin(margin, neuron)
    make, when = named(neuron), phases(graph)
    expect_steps_apart(graph)
    for node in graph.of(ACTIVATIONS):
        if not isinstance(node.module, QuantClip):
            raise ConversionError(
                f"{node.name}: this {node.kind} is not quantised; quantise the graph first"
            )
        channels = graph.shapes[node.inputs[0]][1]
        threshold = node.module.threshold.detach().abs().clamp(min=1e-6)
        start = (threshold * initial).expand(channels)
        slope = node.module.slope
        ordinary = make is CorrectingNeuron and (when[node.inputs[0]] == CONSTANT or slope)
        made = (IFNeuron if ordinary else make)(threshold, start, slope)
        if isinstance(made, CorrectingNeuron):
            made.margin = float(margin)
        graph.replace(node.name, made)
    leaky = any(neuron.signed for neuron in graph.only(IFNeuron))
    if make is CorrectingNeuron and leaky and not graph.of((CorrectingNeuron,)):
        raise ConversionError(
            "the neurons of a leaky ReLU cannot take back spikes, and this network has no others "
            "that need it; leave the neurons as they are by default"
        )
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


def set_margin(graph: Graph, margin: float) -> None:
    """Set the margin of all neurons that take back spikes, in place.

    Raises:
        UsageError: The margin is not a number from 0 to `MOST_MARGIN`, or it is above 0 and there
            are no such neurons.
    """
    neurons = graph.only(CorrectingNeuron)
    if margin and not neurons:
        raise UsageError(NO_MARGIN)
    for neuron in neurons:
        neuron.margin = _checked(margin)


def _checked(margin: float) -> float:
    try:
        return check_margin(margin)
    except ValueError as error:
        raise UsageError(str(error)) from None


def expect_margin(margin: float | None, neuron: str) -> None:
    """Check that the neurons that a network will be made of can have this margin.

    Args:
        margin: The margin. None or 0: none.
        neuron: Name of a neuron in `neurons.registry`.

    Raises:
        UsageError: They have no margin, the margin is not a number from 0 to `MOST_MARGIN`, or
            there is no such neuron.
    """
    if margin is not None:
        _checked(margin)
    if margin and not issubclass(named(neuron), CorrectingNeuron):
        raise UsageError(NO_MARGIN)


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
