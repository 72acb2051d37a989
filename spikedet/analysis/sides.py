"""The networks that a benchmark times: one network, prepared for each program."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.analysis.timing import BFLOAT16, FLOAT, LOOP, OURS, PEER, Subject
from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.neurons.layers import IFNeuron, Temporal, per_channel
from spikedet.runtime.network import SpikingNetwork

Side = Callable[[Tensor, int], Any]  # pictures [B, ...] and time steps -> outputs


def side(subject: Subject, network: Any) -> Side:
    """Make the function that a row of the benchmark times.

    Args:
        subject: Subject of the row.
        network: The float network, or the spiking network with its engine. For other programs it is
            in float32.

    Raises:
        UsageError: The program is not installed, or it cannot run the network.
    """
    if subject.name == FLOAT:
        return lambda pictures, T: network(pictures)
    if subject.name == BFLOAT16:
        rounded = InBFloat16(network)
        return lambda pictures, T: rounded(pictures)
    if subject.name == PEER:
        return spikingjelly_copy(network.graph, subject.T)
    if subject.name == LOOP:
        return StepLoop(network.graph)
    if subject.name == OURS:
        return network
    raise ValueError(f"no side {subject.name!r}")


class InBFloat16(nn.Module):
    """A copy of a float network that computes everything in bfloat16."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).to(torch.bfloat16)

    def forward(self, pictures: Tensor) -> Any:
        """Compute outputs in bfloat16 for pictures [B, ...] in float32."""
        return self.network(pictures.to(torch.bfloat16))


# ------------------------------------------------------------------ the published loop


class StepLoop(nn.Module):
    """A spiking network that runs like published code and tutorials: one call per time step.

    Every layer runs in every step, including the layers before the first neurons. The neurons store
    their potentials between the calls.

    Args:
        graph: Spiking graph. It is copied.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = copy.deepcopy(graph).requires_grad_(False)
        self.states: list[_SteppingNeuron | _Stepping] = []
        for node in self.graph.of((Temporal,)):
            assert isinstance(node.module, Temporal)
            state: _SteppingNeuron | _Stepping = _Stepping(node.module)
            if type(node.module) is IFNeuron:
                state = _SteppingNeuron(node.module)
            self.graph.replace(node.name, state)
            self.states.append(state)

    def forward(self, pictures: Tensor, T: int) -> Any:
        """Compute the mean output [B, ...] over T steps for pictures [B, ...]."""
        for state in self.states:
            state.memory = None
        for _ in range(T):
            output = self.graph(pictures)
        return output


class _SteppingNeuron(IFNeuron):
    """Neurons that compute one time step in each call."""

    def __init__(self, ours: IFNeuron):
        super().__init__(ours.threshold, ours.initial, ours.slope, ours.folded)
        self.memory: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        """Compute the spikes [B, C, ...] for the current of one step."""
        u = self.memory
        if u is None:
            u = self.first_potential(current, len(current))
        if self.slope:
            spikes, self.memory = self.fire(current, u, 1)
        else:
            threshold = per_channel(self.threshold, current.ndim)
            u = u + current
            spikes = (u >= threshold).to(current.dtype)
            self.memory = u - threshold * spikes
        return self.scale_spikes(spikes)


class _Stepping(nn.Module):
    """A module that depends on time, but is no ordinary neuron, one time step in each call."""

    def __init__(self, ours: Temporal):
        super().__init__()
        self.ours, self.memory = ours, None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of one step, [B, C, ...]."""
        value, self.memory = self.ours.advance(x, len(x), 1, self.memory)
        return value


# ------------------------------------------------------------------ another simulator


def spikingjelly_copy(graph: Graph, T: int) -> SpikingNetwork:
    """Copy a spiking network, with SpikingJelly's neurons in multi-step mode instead of ours.

    Everything else is our code: the convolutions on [T*B, ...] and the mean at the end. This is
    SpikingJelly's fastest mode on a CPU, because constant layers run once and all time steps run
    together.

    Raises:
        UsageError: SpikingJelly is not installed, or it does not have the neurons of the network.
    """
    try:
        from spikingjelly.activation_based import neuron  # noqa: F401
    except ImportError:
        raise UsageError("SpikingJelly is not installed; pip install spikingjelly") from None
    graph = copy.deepcopy(graph)
    for node in graph.of((IFNeuron,)):
        assert isinstance(node.module, IFNeuron)
        graph.replace(node.name, _Peer(node.module))
    network = SpikingNetwork(graph, T, chunk=2**31)
    return network.requires_grad_(False)


class _Peer(IFNeuron):
    """SpikingJelly's integrate-and-fire neuron with soft reset and our initial potential."""

    def __init__(self, ours: IFNeuron):
        from spikingjelly.activation_based import neuron

        super().__init__(ours.threshold, ours.initial, ours.slope, ours.folded)
        theta = ours.threshold.unique().tolist()
        if ours.signed or len(theta) > 1:
            raise UsageError(
                "SpikingJelly supports only one threshold per layer, and no negative spikes"
            )
        self.theirs = neuron.IFNode(theta[0], v_reset=None, step_mode="m")

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """See `Temporal.advance`."""
        currents = x.unflatten(0, (-1, batch))
        if len(currents) < steps:  # one that is constant
            currents = currents.expand(steps, *currents.shape[1:])
        self.theirs.v = self.first_potential(x, batch) if memory is None else memory
        spikes = self.theirs(currents)
        return self.scale_spikes(spikes.flatten(0, 1)), self.theirs.v
