"""Convert a spiking graph to an integer program.

Every layer of neurons has a scale s for each channel (or one scale for all channels, if channels
are mixed between its weighted layers and the neurons). The current, the potential and the
thresholds are integer multiples of s. The weights that add to the current are integer multiples of
s too. Each value is rounded once, half to even:

    weight      round(w a / s), -127..127      a: the value of one event of the input
    bias        round(b / s), b: the sum of the biases of all layers that add to the current
    threshold   max(1, round(theta / s))
    potential   round(u[0] / s)
    margin      floor(m theta / s): a negative spike at u < -m theta, which is exact for integers u

s is the smallest number with 8 significant bits for which all weights fit into int8. It is about
max |w a| / 127 of the channel (see `currents.scales_of`). If a spike is added to a current without
a weighted layer (a shortcut), it gets the 32-bit weight theta / s. With a slope a, a neuron sends a
negative spike at u <= -round(theta / a s), or at u < 0 if a = 1. A neuron that corrects itself with
the margin m sends one at u < -m theta, if it has sent more positive than negative spikes.

Between neurons the values are the integers 0/1 or -1/0/1. After average pooling they are sums of
windows, and the divisor is folded into the next weights. A sum of spikes with different thresholds
is kept as several terms. The next layer is linear, so it reads each term with separate weights. So
only the values named above are rounded.

Before the first neurons the network computes in float32, once for each picture. The currents into
the first neurons are rounded to multiples of s = theta / 2^16 (coarser if potentials or lower
thresholds are much larger). They are clipped at theta + |u[0]|: with a larger current, neurons fire
in every step anyway. After the last neurons the mean over time is computed in float32: the spikes
of step t are multiplied by the weight of the step, added in the order of t, and divided by the sum
of the weights.

No sum can overflow 32 bits. The largest current of every neuron is computed from the weights. It
gives the number of time steps after which a potential could overflow (`Program.steps_most`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikedet.engines.currents import Currents, MixedScales, scales_of
from spikedet.engines.program import INT32, Current, Move, Neuron, NoIntegers, Program, Sums
from spikedet.engines.signals import SpikeSignals, Term
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.time import CONSTANT, phases
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.functional import NO_SLOPE
from spikedet.neurons.layers import IFNeuron, MeanOverTime, per_channel
from spikedet.neurons.slope import Slope

FINE = 2**16  # integer value of the threshold for neurons with a constant current


@torch.no_grad()
def compile_integers(graph: Graph) -> Program:
    """Compile a spiking graph to an integer program.

    Args:
        graph: A graph from `graph.rewrites.spike.make_spiking`. It is not changed.

    Raises:
        NoIntegers: An operation is not supported, or a sum could overflow in one time step. The
            message names the node.
    """
    return _Compiler(graph).build()


class _Compiler:
    def __init__(self, graph: Graph):
        self.graph, self.signals = graph, SpikeSignals(graph)
        self.program, self.when = self.signals.program, self.signals.when

    def build(self) -> Program:
        for node in self.graph:
            if isinstance(node.module, IFNeuron):
                self._neuron(node)
            elif isinstance(node.module, MeanOverTime):
                self._mean(node)
        self._forget_unread()
        return self.program

    def _forget_unread(self) -> None:
        """Remove operations that only a mean over time reads. They run on the means instead."""
        ops = self.program.ops
        read = {op for terms in self.program.means.values() for op, _ in terms}
        kept = {name for op in read for name in self._through(op)}
        waiting = {b for op in read for b in self.program.base(op)}
        waiting |= {op.name for op in self.program.neurons}
        running: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in running:
                running.add(name)
                waiting.update(ops[name].inputs)
        self.program.ops = {n: op for n, op in ops.items() if n in running | kept}
        self.program.running = running

    def _through(self, name: str) -> set[str]:
        op = self.program.ops[name]
        if isinstance(op, Move | Sums):
            return {name}.union(*(self._through(source) for source in op.inputs))
        return {name}

    # ------------------------------------------------------------------ neurons

    def _neuron(self, node: Node) -> None:
        (source,) = node.inputs
        module = self.graph.neuron(node.name)
        if type(module) not in (IFNeuron, CorrectingNeuron):
            kind = type(module).__name__
            raise self.signals.refuse(node.name, f"a neuron of another kind ({kind})")
        if self.when[source] == CONSTANT:
            self._constant_neuron(node, source)
        else:
            self._driven_neuron(node, source)
        (op,) = [op for op in self.program.neurons if op.name == node.name]
        shape = self.graph.shapes[node.name]
        amplitude = _ones(shape)
        if not module.folded:
            theta = module.threshold.double().cpu().expand(shape[1])
            amplitude = per_channel(theta, len(shape)).expand(shape)
        self.signals.known[node.name] = [Term(op.name, amplitude)]

    def _constant_neuron(self, node: Node, source: str) -> None:
        own = Parameters.of(self.graph.neuron(node.name), self.graph.shapes[source][1])
        far = torch.maximum(own.depth.nan_to_num(0.0), own.start)
        scale = torch.maximum(own.theta, far / 16) / FINE
        neuron, limit = self._rounded(node, own, scale, torch.zeros_like(scale))
        inverse = (1 / scale).float()
        current = Current(f"{node.name}:current", (), source, inverse, limit.float())
        name = self.signals.emit(current, limit.max().item())
        self._add_neuron(replace(neuron, inputs=(name,)), limit.max().item())

    def _driven_neuron(self, node: Node, source: str) -> None:
        shape = self.graph.shapes[source]
        own = Parameters.of(self.graph.neuron(node.name), shape[1])
        labels = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
        try:
            current = Currents(self.signals, node, shape[1])
            tree = current.tree(source, labels, _ones(shape), True)
        except MixedScales:
            current = Currents(self.signals, node, 1)
            nothing = torch.zeros_like(labels)
            tree = current.tree(source, nothing, _ones(shape), True)
        bias = current.bias.expand(shape[1])
        scales = own.scales(current.least, bias)
        self.program.rounding.append(current.rounding)
        name = tree.make(scales[: len(current.least)])
        neuron, _ = self._rounded(node, own, scales, bias)
        self._add_neuron(
            replace(neuron, inputs=(name,)),
            self.signals.largest[name] + neuron.bias.abs().max().item(),
        )

    def _rounded(
        self, node: Node, own: Parameters, scale: Tensor, bias: Tensor
    ) -> tuple[Neuron, Tensor]:
        """A layer of neurons in multiples of its scale [C], and its largest useful current [C]."""

        def whole(x: Tensor) -> Tensor:
            return (x / scale).round().to(torch.int32)

        threshold = whole(own.theta).clamp(min=1)
        initial = self.graph.neuron(node.name).initial.detach().double().cpu()
        each = scale.view(-1, *[1] * (initial.ndim - 1)) if initial.ndim else scale
        start = (initial / each).round().to(torch.int32)
        if initial.ndim < 2:
            start = start.expand(len(scale)).contiguous()
        low = up = None
        corrects = isinstance(node.module, CorrectingNeuron)
        if isinstance(node.module, CorrectingNeuron):
            # u < -x for an integer u; x as torch computes it
            depth = node.module.threshold.detach().cpu().float() * node.module.margin
            depth = (depth.double().expand(len(scale)) / scale).floor().to(torch.int32)
            low, up = -1 - depth, threshold.clone()
        elif not bool(own.depth.isnan().all()):
            signed = ~own.depth.isnan()
            depth = whole(own.depth.nan_to_num(0.0)).clamp(min=1)
            at_once = torch.where(own.slope == 1, torch.ones_like(depth), depth)
            low = torch.where(signed, -at_once, -INT32 - 1).to(torch.int32)
            up = torch.where(signed, depth, 0).to(torch.int32)
            up = torch.where(signed & (own.slope == 1), threshold, up)
        highest = threshold if up is None else torch.maximum(threshold, up)
        far = start.abs() if start.ndim == 1 else start.flatten(1).abs().amax(1)
        limit = highest + far + 1
        neuron = Neuron(node.name, (), whole(bias), threshold, start, low, up, scale, corrects)
        return neuron, limit

    def _add_neuron(self, neuron: Neuron, most: float) -> None:
        step = most + neuron.threshold.max().item()
        if neuron.up is not None:
            step = most + max(neuron.threshold.max().item(), neuron.up.max().item())
        steps = int((INT32 - neuron.initial.abs().max().item()) // step)
        if steps < 1:
            raise NoIntegers(
                f"{neuron.name}: its potential could reach {step:.3g} in one step, more than 32 "
                "bits hold; use the torch engine"
            )
        self.program.steps_most = min(self.program.steps_most, steps)
        self.signals.emit(neuron, 1)

    def _mean(self, node: Node) -> None:
        (source,) = node.inputs
        if not self.signals.is_spikes(source):
            raise self.signals.refuse(node.name, "a mean of currents over time")
        counted = []
        for term in self.signals.terms(source):
            amplitude = term.amplitude
            try:
                each = self.signals.each_channel(node.name, amplitude)
                amplitude = per_channel(each, amplitude.ndim)
            except NoIntegers:
                pass  # it has one for each place
            counted.append((term.op, amplitude.float()))
        self.program.means[node.name] = counted


@dataclass(frozen=True)
class Parameters:
    """The parameters of a layer of neurons, [C] float64 each.

    Attributes:
        depth: A negative spike is sent at u <= -depth, with depth = theta / slope. NaN without
            negative spikes.
        start: Largest absolute initial potential of a channel.
    """

    theta: Tensor
    slope: Tensor
    depth: Tensor
    start: Tensor

    @classmethod
    def of(cls, module: IFNeuron, channels: int) -> Parameters:
        theta = module.threshold.detach().double().cpu().expand(channels)
        slope = _slopes(module.slope, channels)
        depth = torch.where(slope > NO_SLOPE, theta / slope.clamp(min=NO_SLOPE), torch.nan)
        start = module.initial.detach().double().cpu().abs()
        start = start.flatten(1).amax(1) if start.ndim > 1 else start.expand(channels)
        return cls(theta, slope, depth, start)

    def scales(self, least: Tensor, bias: Tensor) -> Tensor:
        """The scale of each channel, [C].

        Args:
            least: Scale that the weights need, [labels].
            bias: Bias of the neurons, [C].
        """
        most = torch.stack([self.theta, self.depth.nan_to_num(0.0), self.start, bias.abs()])
        scales = scales_of(least.expand(len(bias)), most.amax(0))
        return scales.max().expand(len(bias)) if len(least) == 1 else scales


def _slopes(slope: Slope, channels: int) -> Tensor:
    if isinstance(slope, int | float):
        return torch.full((channels,), float(slope), dtype=torch.float64)
    return torch.tensor(slope, dtype=torch.float64)


def constant_nodes(graph: Graph) -> list[str]:
    """Nodes that run once for a picture, before the first neurons, in the order of execution."""
    when = phases(graph)
    return [name for name in graph.edges if when[name] == CONSTANT and name != INPUT]


def _ones(shape: tuple[int, ...]) -> Tensor:
    """A float64 tensor of ones that needs no memory."""
    return torch.ones((), dtype=torch.float64).expand(shape)
