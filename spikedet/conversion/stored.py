"""Run a network layer by layer over many pictures, with packed outputs of the neurons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import ACTIVATIONS, WEIGHTED, WeightedLayer
from spikedet.graph.time import readouts
from spikedet.neurons.functional import memory_format
from spikedet.neurons.layers import IFNeuron, per_channel
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.passes import Pass


@dataclass
class Site:
    """A layer to calibrate: a layer of neurons with the operations before it, or a readout.

    Attributes:
        node: The node of the neurons, or the last node of a readout.
        segment: Names of the nodes from the stored outputs to the input current of the neurons (to
            the output of a readout), in order.
        sources: Names of the values that the segment reads. `INPUT` is the picture.
        layers: Convolutions and linear layers of the segment, the last one first.
    """

    node: Node
    segment: list[str]
    sources: list[str]
    layers: list[WeightedLayer]

    @property
    def is_neuron(self) -> bool:
        """Whether it is a layer of neurons (or of quantisers in their place), not a readout."""
        return isinstance(self.node.module, ACTIVATIONS)

    @property
    def neuron(self) -> IFNeuron:
        """Its layer of neurons."""
        assert isinstance(self.node.module, IFNeuron)
        return self.node.module

    @property
    def value(self) -> str:
        """Name of the last value of the segment: the input current, or the readout's output."""
        return self.node.inputs[0] if self.is_neuron else self.node.name


class StoredOutputs:
    """A graph with the stored outputs of its neurons for all pictures. It runs layer by layer.

    With T, the outputs are spikes, packed eight to a byte. Without T, they are levels of the
    quantiser, or activations if the network is not quantised. The outputs are stored in main
    memory. The network runs on the device of the pictures.

    Attributes:
        silent: With T, names of the layers so far of which no neuron sent a spike.
    """

    def __init__(self, graph: Graph, pictures: list[Tensor], T: int | None):
        self.graph, self.pictures, self.T = graph, pictures, T
        self.batch = len(pictures[0])
        self.neurons = graph.of(ACTIVATIONS)
        ends = [graph.node(name) for name in readouts(graph)]
        self.sites = [self._site(node) for node in [*self.neurons, *ends]]
        self.outputs: dict[str, list[np.ndarray]] = {}
        self.shapes: dict[str, torch.Size] = {}  # of what is kept
        self.silent: list[str] = []

    @property
    def names(self) -> list[str]:
        """Names of the layers in the order of execution."""
        return [site.node.name for site in self.sites]

    def _site(self, node: Node) -> Site:
        """Collect the nodes between earlier neurons and a node's input (a readout's output)."""
        stops = {neuron.name for neuron in self.neurons} | {INPUT}
        wanted = set(node.inputs) if isinstance(node.module, ACTIVATIONS) else {node.name}
        segment = []
        for name in reversed(self.graph.edges):
            if name in wanted and name not in stops:
                segment.append(name)
                wanted |= set(self.graph.edges[name])
        modules = [self.graph.module(name) for name in segment]
        layers = [module for module in modules if isinstance(module, WEIGHTED)]
        return Site(node, segment[::-1], sorted(wanted & stops), layers)

    def sources(self, site: Site, m: int) -> dict[str, Tensor]:
        """Inputs of a site for batch `m`, by their names.

        These are pictures [B, ...], outputs of neurons [T*B, ...], or without T activations
        [B, ...].
        """
        return {n: self.pictures[m] if n == INPUT else self.unpack(n, m) for n in site.sources}

    def run(self, site: Site, values: dict[str, Tensor]) -> Tensor:
        """Compute the input current of a site (output of a readout): [T*B, ...], or [B, ...]."""
        now = Pass(self.batch, self.T or 1)
        results = self.graph.run(site.segment, values, [site.value], now)
        return results[site.value]

    def expand_initial_potentials(self, site: Site) -> None:
        """Give each neuron of a site its own initial potential, [C, H, W]."""
        if site.is_neuron:
            initial = site.neuron.initial
            shape = self.run(site, self.sources(site, 0)).shape[1:]
            initial.data = per_channel(initial.data, 1 + len(shape)).expand(1, *shape)[0].clone()

    @torch.no_grad()
    def target(self, site: Site, m: int) -> Tensor:
        """The stage-I activation, as levels -T..T.

        For a readout, or for a network that is not quantised, it is the float32 output instead.
        """
        value = self.run(site, self.sources(site, m))
        if not site.is_neuron:
            return value
        quantiser = site.node.module
        if not isinstance(quantiser, QuantClip):
            return quantiser(value)
        unit = per_channel(quantiser.threshold.abs(), value.ndim) / quantiser.steps
        level = torch.int8 if quantiser.steps <= 127 else torch.int16
        return (quantiser(value) / unit).round().to(level)

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Compute the input current of a site (a readout: its output), [T*B, ...] or [B, ...]."""
        site = self.sites[index]
        if site.is_neuron:
            name = site.node.name
            self.outputs[name] = [self.pack(site, m) for m in range(len(self.pictures))]
            if self.T is not None and not any(stored.any() for stored in self.outputs[name]):
                self.silent.append(name)
        needed = {n for later in self.sites[index + 1 :] for n in later.sources}
        self.outputs = {n: v for n, v in self.outputs.items() if n in needed}

    def pack(self, site: Site, m: int) -> np.ndarray:
        """Compute the outputs of neurons for batch `m`, and pack them for storage.

        With T, a spike is one bit, eight to a byte: [T*B, ...]. With signs, there are two bits, for
        positive and negative: [2, T*B, ...]. The bits have the memory order of the pictures, so
        unpacking needs no reordering (18 ms instead of 47 for 9 million spikes; lists of events
        take 26). Without T, the result is that of `target`.
        """
        if self.T is None:
            stored = self.target(site, m)
            self.shapes[site.node.name] = stored.shape
            return stored.cpu().numpy()
        spikes, _ = fire(site, self.run(site, self.sources(site, m)), self.batch, self.T)
        self.shapes[site.node.name] = spikes.shape
        signs = [spikes > 0, spikes < 0] if _signs(site.neuron) == 2 else [spikes.bool()]
        bits = torch.stack(signs)
        if self._channels_last(bits.ndim - 1, m):
            bits = bits.permute(0, 1, 3, 4, 2).contiguous()
        return np.packbits(bits.cpu().numpy())

    def _channels_last(self, dimensions: int, m: int) -> bool:
        return dimensions == 4 and memory_format(self.pictures[m]) == torch.channels_last

    def unpack(self, name: str, m: int) -> Tensor:
        """The stored output of neurons for batch `m`, as the next layers read it."""
        stored, shape = self.outputs[name][m], self.shapes[name]
        device = self.pictures[m].device
        maker = self.graph.module(name)
        if self.T is None and not isinstance(maker, QuantClip):
            return torch.from_numpy(stored).to(device, copy=True)  # it may go on in place
        if isinstance(maker, QuantClip):
            unit = per_channel(maker.threshold.abs(), len(shape)) / maker.steps
            return torch.from_numpy(stored).to(device).float() * unit
        assert isinstance(maker, IFNeuron)
        signs = _signs(maker)
        bits = torch.from_numpy(np.unpackbits(stored, count=signs * shape.numel()))
        bits = bits.to(device)
        if self._channels_last(len(shape), m):
            frames, channels, *size = shape
            spikes = bits.view(signs, frames, *size, channels).float().permute(0, 1, 4, 2, 3)
        else:
            spikes = bits.view(signs, *shape).float()
        spikes = spikes[0] - spikes[1] if signs == 2 else spikes[0]
        return maker.scale_spikes(spikes)


def _signs(neuron: IFNeuron) -> int:
    """Bits for each spike: 2 if it may be -1. A registered neuron may send what it likes."""
    return 2 if neuron.signed or type(neuron) is not IFNeuron else 1


def fire(
    site: Site, current: Tensor, batch: int, T: int, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute the spikes and final potentials of a site's neurons (eq 2-4).

    Args:
        site: The layer.
        current: Input current [T*B, C, ...].
        batch: Batch size B.
        T: Time steps.
        alpha: Width of the surrogate gradient, in units of the threshold.

    Returns:
        Spikes [T*B, C, ...], -1, 0 or 1, and potentials [B, C, ...].
    """
    spikes, state = site.neuron.fire(current, site.neuron.start(current, batch), T, alpha)
    return spikes, state if isinstance(state, Tensor) else state[0]
