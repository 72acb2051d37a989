"""A network cut into layers: outputs of its neurons held packed, one layer advanced at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spikedet.conversion.network import trace_steps
from spikedet.conversion.quantize import QuantClip
from spikedet.conversion.trace import (
    ACTIVATIONS,
    WEIGHTED,
    Call,
    Trace,
    fill,
    slots,
    store,
)
from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
    memory_format,
)
from spikedet.neurons.layers import SpikingMaxPool, per_channel


@dataclass
class Site:
    """A layer to calibrate.

    Attributes:
        call: The neuron, or the layer that a readout ends with.
        segment: The calls from stored outputs to its input current, in order.
        sources: Numbers of the tensors that they read, as the trace has them; 0 is the picture.
        layers: Convolutions and linear layers among them, the last one first.
    """

    call: Call
    segment: list[Call]
    sources: list[int]
    layers: list[nn.Module]


class Stored:
    """A network with the outputs of its neurons for all pictures, one layer advanced at a time.

    With T the outputs are spikes, packed eight to a byte; without, levels of the quantiser, or
    the activations themselves of a network that is not quantised. They are kept in main memory;
    the network runs where the pictures are.
    """

    def __init__(self, network: nn.Module, pictures: list[Tensor], T: int | None):
        self.pictures, self.T = pictures, T
        self.batch = len(pictures[0])
        self.trace: Trace = trace_steps(network, pictures[0], T or 1)
        self.neurons = self.trace.of(ACTIVATIONS)
        self.sites = [self._site(call) for call in [*self.neurons, *self.trace.readouts()]]
        self.kept: dict[int, list[np.ndarray]] = {}

    @property
    def names(self) -> list[str]:
        """Of the layers, in execution order."""
        return [site.call.where for site in self.sites]

    def _site(self, call: Call) -> Site:
        """What lies between the neurons before `call` and its input (its output, for a readout)."""
        is_neuron = isinstance(call.module, ACTIVATIONS)
        wanted = set(call.inputs) if is_neuron else set(slots(call.result))
        made_by_neurons = {n for c in self.neurons for n in slots(c.result)}
        segment, sources = [], set()
        for earlier in reversed(self.trace.calls):
            made = set(slots(earlier.result))
            if made & wanted and not (made & made_by_neurons):
                segment.append(earlier)
                wanted |= set(earlier.inputs)
        sources = wanted & (made_by_neurons | {0})
        layers = [c.module for c in segment if isinstance(c.module, WEIGHTED)]
        return Site(call, segment[::-1], sorted(sources), layers)

    def sources(self, site: Site, m: int) -> dict[int, Tensor]:
        """Inputs of a site for minibatch `m`: the pictures [B, 3, H, W], spikes [T*B, ...] as they
        travel, or activations [B, ...] where there is no T; by their numbers in the trace."""
        return {n: self.unpack(n, m) if n else self.pictures[m] for n in site.sources}

    def run(self, site: Site, tensors: dict[int, Tensor]) -> Tensor:
        """Input current of a site (output of a readout), [T*B, C, H, W] or [B, ...] without T."""
        tensors = dict(tensors)
        for call in site.segment:
            if isinstance(call.module, SpikingMaxPool):
                call.module.start(self.batch)
            value = call.function(*fill(call.args, tensors), **fill(call.kwargs, tensors))
            store(call.result, value, tensors)
        for call in site.segment:
            if isinstance(call.module, SpikingMaxPool):
                call.module.start(0)
        is_neuron = isinstance(site.call.module, ACTIVATIONS)
        return tensors[site.call.inputs[0] if is_neuron else next(slots(site.call.result))]

    def free_every_neuron(self, site: Site) -> None:
        """Give each neuron of a site an initial potential of its own, [C, H, W]."""
        if isinstance(site.call.module, ACTIVATIONS):
            initial = site.call.module.initial
            shape = self.trace.shapes[site.call.inputs[0]][1:]
            initial.data = per_channel(initial.data, 1 + len(shape)).expand(1, *shape)[0].clone()

    @torch.no_grad()
    def target(self, site: Site, m: int) -> Tensor:
        """Stage-I activation in units of the threshold, as levels -T..T.

        In float32 and its own units for a readout's output, or where nothing is quantised.
        """
        value = self.run(site, self.sources(site, m))
        if not isinstance(site.call.module, ACTIVATIONS):
            return value
        quantiser = site.call.module
        if not isinstance(quantiser, QuantClip):
            return quantiser(value)
        unit = per_channel(quantiser.threshold.abs(), value.ndim) / quantiser.steps
        level = torch.int8 if quantiser.steps <= 127 else torch.int16
        return (quantiser(value) / unit).round().to(level)

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Store the outputs of site `index` and forget what no later site reads."""
        site = self.sites[index]
        if isinstance(site.call.module, ACTIVATIONS):
            number = next(slots(site.call.result))
            self.kept[number] = [self.pack(site, m) for m in range(len(self.pictures))]
        needed = {n for later in self.sites[index + 1 :] for n in later.sources}
        self.kept = {n: v for n, v in self.kept.items() if n in needed}

    def pack(self, site: Site, m: int) -> np.ndarray:
        """Outputs of a neuron for minibatch `m` as they are kept.

        With T one bit a spike, eight to a byte: [T*B, ...], or where spikes have either sign
        [2, T*B, ...], whether each is positive and whether it is negative. Without T what `target`
        gives.
        """
        if self.T is None:
            return self.target(site, m).cpu().numpy()
        spikes, _ = fire(site, self.run(site, self.sources(site, m)), self.batch, self.T)
        signs = [spikes > 0, spikes < 0] if site.call.module.slope else [spikes.bool()]
        return np.packbits(torch.stack(signs).cpu().numpy())

    def unpack(self, number: int, m: int) -> Tensor:
        """Output `number` of the trace for minibatch `m`, as the next layers read it."""
        stored, shape = self.kept[number][m], self.trace.shapes[number]
        device = self.pictures[m].device
        maker = next(c.module for c in self.neurons if number in slots(c.result))
        if self.T is None and not isinstance(maker, QuantClip):
            return torch.from_numpy(stored).to(device, copy=True)  # it may go on in place
        if self.T is None:
            unit = per_channel(maker.threshold.abs(), len(shape)) / maker.steps
            return torch.from_numpy(stored).to(device).float() * unit
        signs = 2 if maker.slope else 1
        bits = torch.from_numpy(np.unpackbits(stored, count=signs * shape.numel()))
        spikes = bits.to(device).view(signs, *shape).float()
        spikes = spikes[0] - spikes[1] if maker.slope else spikes[0]
        if spikes.ndim == 4:
            spikes = spikes.contiguous(memory_format=memory_format(self.pictures[m]))
        return maker.on_wire(spikes)


def fire(
    site: Site, current: Tensor, batch: int, T: int, alpha: float | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes and final potential of a site's neurons from their input current (eq 2-4).

    Args:
        site: The layer.
        current: [T*B, C, ...].
        batch: B.
        T: Time steps.
        alpha: Width of the surrogate gradient; no gradient passes a spike when None.

    Returns:
        Spikes [T*B, C, ...], -1, 0 or 1, and potentials [B, C, ...].
    """
    neuron = site.call.module
    u0, theta = neuron.first_potential(current, batch), per_channel(neuron.threshold, current.ndim)
    if alpha is None:
        return integrate_and_fire(current, u0, theta, T, slope=neuron.slope)
    return integrate_and_fire_surrogate(current, u0, theta, T, alpha, neuron.slope)
