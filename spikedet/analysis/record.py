"""Watch the layers of a network while it runs, keeping sums over time and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikedet.conversion.network import SpikingNetwork
from spikedet.conversion.trace import ACTIVATIONS
from spikedet.neurons.layers import Readout, SpikingMaxPool


@contextmanager
def listening(
    modules: Iterable[nn.Module], heard: Callable[[nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call `heard(module, input, output)` each time one of the modules has run."""
    handles = [
        module.register_forward_hook(lambda m, inputs, output: heard(m, inputs[0], output))
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def outputs(network: nn.Module, modules: list[nn.Module], pictures: Tensor) -> list[Tensor]:
    """Outputs of some modules in one pass over pictures [B, C, H, W], in the order of the list."""
    found: dict[nn.Module, Tensor] = {}
    with listening(modules, lambda module, _, output: found.__setitem__(module, output)):
        network(pictures)
    return [found[module] for module in modules]


@dataclass
class Layer:
    """Sums over the time steps of one pass, of a layer of neurons or a readout.

    Attributes:
        name: Name of the module.
        module: The neurons, or the `Readout`.
        received: Input current [B, C, ...] float64; 0 for a readout.
        sent: Spikes with their signs [B, C, ...]; of a readout its output, the mean so far.
        fired: Number of spikes of either sign [B, C, ...]; 0 for a readout.
    """

    name: str
    module: nn.Module
    received: Tensor | int = 0
    sent: Tensor | int = 0
    fired: Tensor | int = 0


class Recorder:
    """Runs a spiking network step by step and sums what its layers receive and send.

    Whatever a spike carries (1, or theta on the wire to an addition) it counts as one, and so does
    a negative one.

    Attributes:
        layers: Sums of the pass so far, in the order of execution.
        now: Spikes 0/1 of the last step, by the module that sent them: neurons, and pooling that
            has a state.
    """

    def __init__(self, spiking: SpikingNetwork):
        self.spiking = spiking
        self.layers: dict[nn.Module, Layer] = {}
        self.now: dict[nn.Module, Tensor] = {}
        self._names = {module: name for name, module in spiking.network.named_modules()}

    @property
    def neurons(self) -> list[Layer]:
        """The layers of neurons."""
        return [x for x in self.layers.values() if isinstance(x.module, ACTIVATIONS)]

    @property
    def readouts(self) -> list[Layer]:
        """The readouts."""
        return [x for x in self.layers.values() if isinstance(x.module, Readout)]

    def run(self, pictures: Tensor, T: int) -> Iterator[int]:
        """Yield t after each of the T steps of a pass over pictures [B, C, H, W]."""
        self.layers, self.now = {}, {}
        heard = (*ACTIVATIONS, SpikingMaxPool, Readout)
        with listening([m for m in self._names if isinstance(m, heard)], self._heard):
            for t, _ in self.spiking.run(pictures, T):
                yield t

    def _heard(self, module: nn.Module, received: Tensor, sent: Tensor) -> None:
        if isinstance(module, Readout):
            self._layer(module).sent = sent.double()  # a mean over time already
            return
        spikes = sent.float().sign()
        self.now[module] = spikes.abs()
        if isinstance(module, ACTIVATIONS):
            layer = self._layer(module)
            layer.received = layer.received + received.double()
            layer.sent = layer.sent + spikes
            layer.fired = layer.fired + self.now[module]

    def _layer(self, module: nn.Module) -> Layer:
        return self.layers.setdefault(module, Layer(self._names[module], module))
