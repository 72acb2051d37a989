"""From a spiking graph to whole numbers.

Every neuron has a scale s, one a channel (or one for all where channels are mixed between its
layers and itself). Its current, potential and thresholds are whole multiples of s, so are the
weights of everything that adds to its current, and each is rounded once, half to even:

    weight      round(w a / s), -127..127      a: what one event of the input stands for
    bias        round(b / s), of all layers that add to the neuron together
    threshold   max(1, round(theta / s))
    potential   round(u[0] / s)

s is the smallest number of 8 bits for which all int8 weights fit, about max |w a| / 127 of the
channel (`currents.scales_of`). A spike that is added to a current as it is (a shortcut) becomes a
weight as well, theta / s, of 32 bits. With a slope a neuron fires downwards at
u <= -round(theta / a s), and at u < 0 where a = 1.

Between neurons whole numbers travel: 0/1, or -1/0/1; after an average the sums of windows, whose
divisor goes into the weights behind. A sum of spikes that stand for unlike thresholds is kept as
several terms, and the layer that reads it reads each with weights of its own, since it is linear.
So nothing but the values named above is ever rounded.

Before the first neuron the network computes in float32, once a picture. Currents that arrive there
are rounded to multiples of s = theta / 2^16 (coarser where potentials or lower thresholds lie far
from it), and cut at theta + |u[0]|: beyond it neurons fire in every step or in none. Behind the
last neuron the mean over time is float32: spikes of step t times its weight, added in the order of
t, divided by the sum of the weights.

No sum can overflow 32 bits: the largest current of every neuron is worked out from its weights,
and with it the number of steps after which a potential could (`Program.steps_most`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikedet.engines.currents import Currents, Mixed, scales_of
from spikedet.engines.program import INT32, Current, Move, Neuron, NoIntegers, Program, Sums
from spikedet.engines.wires import Term, Wires
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.time import CONSTANT, phases
from spikedet.neurons.functional import NO_SLOPE
from spikedet.neurons.layers import IFNeuron, MeanOverTime, per_channel
from spikedet.neurons.slope import Slope

FINE = 2**16  # steps that a threshold has where a constant current is rounded


@torch.no_grad()
def compile_integers(graph: Graph) -> Program:
    """The integers of a spiking graph.

    Args:
        graph: As `graph.rewrites.spike.make_spiking` leaves it; not changed.

    Raises:
        NoIntegers: Names what cannot be computed in whole numbers, or could overflow in one step.
    """
    return _Compiler(graph).build()


class _Compiler:
    def __init__(self, graph: Graph):
        self.graph, self.wires = graph, Wires(graph)
        self.program, self.when = self.wires.program, self.wires.when

    def build(self) -> Program:
        for node in self.graph:
            if isinstance(node.module, IFNeuron):
                self._neuron(node)
            elif isinstance(node.module, MeanOverTime):
                self._mean(node)
        self._forget_unread()
        return self.program

    def _forget_unread(self) -> None:
        """Drop what only a mean over time reads: it is computed of the means."""
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
        if type(node.module) is not IFNeuron:
            kind = type(node.module).__name__
            raise self.wires.refuse(node.name, f"a neuron of another kind ({kind})")
        if self.when[source] == CONSTANT:
            self._constant_neuron(node, source)
        else:
            self._driven_neuron(node, source)
        (op,) = [op for op in self.program.neurons if op.name == node.name]
        shape = self.graph.shapes[node.name]
        amplitude = _ones(shape)
        if not node.module.folded:
            theta = node.module.threshold.double().cpu().expand(shape[1])
            amplitude = per_channel(theta, len(shape)).expand(shape)
        self.wires.known[node.name] = [Term(op.name, amplitude)]

    def _constant_neuron(self, node: Node, source: str) -> None:
        own = Parameters.of(self.graph.neuron(node.name), self.graph.shapes[source][1])
        far = torch.maximum(own.depth.nan_to_num(0.0), own.start)
        scale = torch.maximum(own.theta, far / 16) / FINE
        neuron, limit = self._rounded(node, own, scale, torch.zeros_like(scale))
        inverse = (1 / scale).float()
        current = Current(f"{node.name}:current", (), source, inverse, limit.float())
        name = self.wires.emit(current, limit.max().item())
        self._add_neuron(replace(neuron, inputs=(name,)), limit.max().item())

    def _driven_neuron(self, node: Node, source: str) -> None:
        shape = self.graph.shapes[source]
        own = Parameters.of(self.graph.neuron(node.name), shape[1])
        labels = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
        try:
            current = Currents(self.wires, node, shape[1])
            tree = current.tree(source, labels, _ones(shape), True)
        except Mixed:
            current = Currents(self.wires, node, 1)
            nothing = torch.zeros_like(labels)
            tree = current.tree(source, nothing, _ones(shape), True)
        bias = current.bias.expand(shape[1])
        scales = own.scales(current.least, bias)
        self.program.rounding.append(current.rounding)
        name = tree.make(scales[: len(current.least)])
        neuron, _ = self._rounded(node, own, scales, bias)
        self._add_neuron(
            replace(neuron, inputs=(name,)),
            self.wires.largest[name] + neuron.bias.abs().max().item(),
        )

    def _rounded(
        self, node: Node, own: Parameters, scale: Tensor, bias: Tensor
    ) -> tuple[Neuron, Tensor]:
        """A neuron in multiples of its scale [C], and its largest useful current [C]."""

        def whole(x: Tensor) -> Tensor:
            return (x / scale).round().to(torch.int32)

        threshold = whole(own.theta).clamp(min=1)
        initial = self.graph.neuron(node.name).initial.detach().double().cpu()
        each = scale.view(-1, *[1] * (initial.ndim - 1)) if initial.ndim else scale
        start = (initial / each).round().to(torch.int32)
        if initial.ndim < 2:
            start = start.expand(len(scale)).contiguous()
        low = up = None
        if not bool(own.depth.isnan().all()):
            signed = ~own.depth.isnan()
            depth = whole(own.depth.nan_to_num(0.0)).clamp(min=1)
            at_once = torch.where(own.slope == 1, torch.ones_like(depth), depth)
            low = torch.where(signed, -at_once, -INT32 - 1).to(torch.int32)
            up = torch.where(signed, depth, 0).to(torch.int32)
            up = torch.where(signed & (own.slope == 1), threshold, up)
        highest = threshold if up is None else torch.maximum(threshold, up)
        far = start.abs() if start.ndim == 1 else start.flatten(1).abs().amax(1)
        limit = highest + far + 1
        neuron = Neuron(node.name, (), whole(bias), threshold, start, low, up, scale)
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
        self.wires.emit(neuron, 1)

    def _mean(self, node: Node) -> None:
        (source,) = node.inputs
        if not self.wires.is_wire(source):
            raise self.wires.refuse(node.name, "a mean of currents over time")
        counted = []
        for term in self.wires.terms(source):
            amplitude = term.amplitude
            try:
                each = self.wires.each_channel(node.name, amplitude)
                amplitude = per_channel(each, amplitude.ndim)
            except NoIntegers:
                self.program.one_size = True
            counted.append((term.op, amplitude.float()))
        self.program.means[node.name] = counted


@dataclass(frozen=True)
class Parameters:
    """A neuron's own values, [C] float64 each.

    Attributes:
        depth: -u at which it fires downwards, theta / slope; NaN where it does not.
        start: Largest initial potential of a channel, without its sign.
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
        """The scale of each channel, [C], for what weights need [labels] and the bias [C]."""
        most = torch.stack([self.theta, self.depth.nan_to_num(0.0), self.start, bias.abs()])
        scales = scales_of(least.expand(len(bias)), most.amax(0))
        return scales.max().expand(len(bias)) if len(least) == 1 else scales


def _slopes(slope: Slope, channels: int) -> Tensor:
    if isinstance(slope, int | float):
        return torch.full((channels,), float(slope), dtype=torch.float64)
    return torch.tensor(slope, dtype=torch.float64)


def constant_nodes(graph: Graph) -> list[str]:
    """Nodes that run once a picture, before the first neuron, in the order of execution."""
    when = phases(graph)
    return [name for name in graph.edges if when[name] == CONSTANT and name != INPUT]


def _ones(shape: tuple[int, ...]) -> Tensor:
    """Ones that take no memory, float64."""
    return torch.ones((), dtype=torch.float64).expand(shape)
