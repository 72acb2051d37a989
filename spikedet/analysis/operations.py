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

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikedet.analysis.record import Recorder
from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork
from spikedet.synapses import Synapses, analog_multiplies, shapes_of

PJ_ACCUMULATE, PJ_MULTIPLY = 0.9, 4.6  # pJ for 32-bit floating point, table VII


@torch.no_grad()
def multiply_accumulates(graph: Graph, picture: Tensor) -> dict[str, int]:
    """Count the multiply-accumulates of each weighted layer of a float network, for one picture.

    Args:
        graph: The network.
        picture: [B, C, H, W]. Only its size is used.
    """
    return analog_multiplies(graph, shapes_of(graph, picture))


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
        analog = analog_multiplies(spiking.graph, counter.synapses.shapes)
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
    return _synapses(spiking, picture).costs()


@torch.no_grad()
def multiplies_once(spiking: SpikingNetwork, picture: Tensor) -> float:
    """The multiply-accumulates for a picture [1, C, H, W] that do not depend on T."""
    return sum(reader.multiplies for reader in _synapses(spiking, picture).readers if reader.once)


def _synapses(spiking: SpikingNetwork, pictures: Tensor) -> Synapses:
    return Synapses(spiking.graph, shapes_of(spiking.graph, pictures), pictures.device)


class _Counter:
    """Counts the operations of one batch from the spikes of each step."""

    def __init__(self, spiking: SpikingNetwork, pictures: Tensor):
        self.synapses = _synapses(spiking, pictures)
        self.counted = {
            reader.name: torch.zeros(len(pictures), dtype=torch.float64, device=pictures.device)
            for reader in self.synapses.readers
        }

    def step(self, fired: dict[str, Tensor]) -> None:
        """Add the operations of one time step, from its spikes 0/1."""
        pools, graph = self.synapses.pools, self.synapses.graph
        if silent := sorted(pools.keys() - fired.keys()):
            raise UsageError(
                f"{silent[0]}: this layer pools spikes and currents together; use the torch "
                "engine to count"
            )
        pooled = {n: fired[n] * places.to(fired[n].device) for n, places in pools.items()}
        neurons = {n: x for n, x in fired.items() if isinstance(graph.module(n), IFNeuron)}
        events = self.synapses.follow({**neurons, **pooled})
        for name, operations in self.synapses.accumulates(events).items():
            self.counted[name] += operations

    def totals(self, T: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The accumulates and the multiply-accumulates of each layer, [B]."""
        analog = {name: torch.zeros_like(value) for name, value in self.counted.items()}
        for reader in self.synapses.readers:
            analog[reader.name] += reader.multiplies * (1 if reader.once else T)
        return self.counted, analog
