"""Watch the layers of a network while it runs, keeping sums over time and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.time import readouts
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool
from spikedet.runtime.network import EachSpike, Pass, SpikingNetwork, watching


@torch.no_grad()
def outputs(graph: Graph, names: list[str], pictures: Tensor) -> list[Tensor]:
    """Outputs of some nodes in one pass over pictures [B, ...], in the order of the list."""
    values = graph.run(graph.edges, {INPUT: pictures}, names)
    return [values[name] for name in names]


def _nothing() -> Tensor:
    return torch.zeros(())


@dataclass
class Layer:
    """Sums over the time steps of one pass, of a layer of neurons.

    Attributes:
        name: Name of the node.
        module: The neurons.
        received: Input current [B, C, ...] float64; 0 where spikes alone are looked at.
        sent: Spikes with their signs [B, C, ...].
        fired: Number of spikes of either sign [B, C, ...].
    """

    name: str
    module: IFNeuron
    received: Tensor = field(default_factory=_nothing)
    sent: Tensor = field(default_factory=_nothing)
    fired: Tensor = field(default_factory=_nothing)


class Recorder:
    """Runs a spiking network step by step and sums what its layers receive and send.

    Whatever a spike carries (1, or theta on the wire to an addition) it counts as one, and so does
    a negative one.

    Args:
        spiking: The network.
        spikes_alone: Look at nothing but spikes, so that the engine of the network runs it. Else
            torch does, as no other engine tells of currents and readouts.

    Attributes:
        neurons: Sums of the pass so far, in the order of execution.
        readouts: Names of the readouts.
        read: Their outputs, the mean so far, [B, ...] float64 each.
        now: Spikes 0/1 of the last step, by name of the node that sent them: neurons, and pooling
            that has a state.
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
        """Yield t after each of the T steps of a pass over pictures [B, ...]."""
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
