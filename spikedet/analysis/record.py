"""Watch the layers of a network while it runs. Only sums over time are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.time import readouts
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.passes import Pass
from spikedet.runtime.watch import EachSpike, watching


@torch.no_grad()
def outputs(graph: Graph, names: list[str], pictures: Tensor) -> list[Tensor]:
    """Run a graph on pictures [B, ...]; returns the outputs of some nodes in the given order."""
    values = graph.run(graph.edges, {INPUT: pictures}, names)
    return [values[name] for name in names]


def _nothing() -> Tensor:
    return torch.zeros(())


@dataclass
class Layer:
    """Sums over the time steps of one run, for a layer of neurons.

    Attributes:
        name: Name of the node.
        module: The neurons.
        received: Sum of the input currents, [B, C, ...] float64. 0 if only spikes are recorded.
        sent: Sum of the spikes with their signs, [B, C, ...].
        fired: Number of spikes of either sign, [B, C, ...].
    """

    name: str
    module: IFNeuron
    received: Tensor = field(default_factory=_nothing)
    sent: Tensor = field(default_factory=_nothing)
    fired: Tensor = field(default_factory=_nothing)


class Recorder:
    """Runs a spiking network step by step, and sums the inputs and spikes of its layers.

    Each spike counts as one, whatever its sign and amplitude.

    Args:
        spiking: The network.
        spikes_alone: Record only spikes. Then the engine of the network runs it. Otherwise torch
            runs it, because other engines do not report currents and readouts.

    Attributes:
        neurons: Sums of the run so far, in the order of execution.
        readouts: Names of the readouts.
        read: Mean outputs of the readouts so far, [B, ...] float64 each.
        now: Spikes 0/1 of the last time step, by the name of the node: neurons, and pooling of
            spike counts.
    """

    def __init__(self, spiking: SpikingNetwork, spikes_alone: bool = False):
        self.spiking, self.spikes_alone = spiking, spikes_alone
        self.readouts = readouts(spiking.graph)
        self.read: list[Tensor] = []
        self.layers: dict[str, Layer] = {}
        self.now: dict[str, Tensor] = {}

    @property
    def neurons(self) -> list[Layer]:
        """The layers of neurons."""
        return list(self.layers.values())

    def run(self, pictures: Tensor, T: int) -> Iterator[int]:
        """Run pictures [B, ...]; yield t after each of the T time steps."""
        self.layers, self.now = {}, {}
        if self.spikes_alone:
            with watching(self.spiking.graph, EachSpike(self._sent)):
                for t, _ in self.spiking.run(pictures, T):
                    yield t
            return
        modules = [self.spiking.graph.module(name) for name in self.readouts]
        with watching(self.spiking.graph, self._heard):
            steps = self.spiking.run(pictures, T)
            while True:
                heard: dict[nn.Module, Tensor] = {}
                handles = [m.register_forward_hook(_keep(heard)) for m in modules]
                try:
                    t, _ = next(steps)
                except StopIteration:
                    return
                finally:
                    for handle in handles:
                        handle.remove()
                self.read = [heard[module] for module in modules]
                yield t

    def _heard(self, now: Pass, node: Node, inputs: Sequence[Tensor], sent: Tensor) -> None:
        if not isinstance(node.module, IFNeuron | SpikingMaxPool):
            return
        self._sent(node.name, now.done, sent)
        if isinstance(node.module, IFNeuron):
            layer = self.layers[node.name]
            layer.received = layer.received + inputs[0].double()

    def _sent(self, name: str, first: int, sent: Tensor) -> None:
        module = self.spiking.graph.module(name)
        spikes = sent.float().sign()
        self.now[name] = spikes.abs()
        if isinstance(module, IFNeuron):
            layer = self.layers.setdefault(name, Layer(name, module))
            layer.sent = layer.sent + spikes
            layer.fired = layer.fired + self.now[name]


def _keep(heard: dict[nn.Module, Tensor]):
    return lambda module, _, output: heard.__setitem__(module, output.double())
