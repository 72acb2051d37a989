"""From a spiking graph to whole numbers.

Every neuron has a scale s, one a channel (or one for all where channels are mixed between its
layers and itself). Its current, potential and thresholds are whole multiples of s, so are the
weights of everything that adds to its current, and each is rounded once, half to even:

    weight      round(w a / s), -127..127      a: what one event of the input stands for
    bias        round(b / s), of all layers that add to the neuron together
    threshold   max(1, round(theta / s))
    potential   round(u[0] / s)

s is the smallest for which all int8 weights fit, max |w a| / 127 of the channel. A spike that is
added to a current as it is (a shortcut) becomes a weight as well, theta / s, of 32 bits. With a
slope a neuron fires downwards at u <= -round(theta / a s), and at u < 0 where a = 1.

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

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spikedet.engines.program import (
    INT32,
    Current,
    Move,
    Neuron,
    NoIntegers,
    Op,
    Plus,
    Pool,
    Program,
    Sums,
    Times,
    Weighted,
)
from spikedet.engines.weights import (
    by_outputs,
    divisors_of,
    factor_of,
    largest_of,
    most_of,
    most_sum,
    times_inputs,
)
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import (
    WEIGHTED,
    Add,
    Concatenate,
    Mean,
    Pad,
    Permute,
    Reshape,
    Scale,
    Select,
    Shift,
    Slice,
    Squeeze,
    Stack,
    Subtract,
    Sum,
    Unsqueeze,
)
from spikedet.graph.time import CONSTANT, phases
from spikedet.neurons.functional import NO_SLOPE
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool, per_channel
from spikedet.neurons.slope import Slope

LARGEST = 127  # weight
FINE = 2**16  # steps that a threshold has where a constant current is rounded
COARSEST = 2**24  # steps that a threshold, potential or bias has at most
COUNT = 2**15 - 1  # largest count of spikes that max-pooling keeps
MOVES = (
    Concatenate,
    Stack,
    Reshape,
    Permute,
    Squeeze,
    Unsqueeze,
    Slice,
    Select,
    Pad,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Flatten,
)
AVERAGES = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    Mean,
    Sum,
)


@torch.no_grad()
def compile_integers(graph: Graph) -> Program:
    """The integers of a spiking graph.

    Args:
        graph: As `graph.rewrites.spike.make_spiking` leaves it; not changed.

    Raises:
        NoIntegers: Names what cannot be computed in whole numbers, or could overflow in one step.
    """
    return _Compiler(graph).build()


@dataclass(frozen=True)
class _Term:
    """Whole numbers times what 1 stands for, [1, ...] float64 of the same shape."""

    op: str
    amplitude: Tensor


class _Mixed(Exception):
    """Channels of a neuron meet in one channel of a layer: they must have one scale."""


@dataclass
class _Tree:
    """What adds up to a current: a node or a leaf, with the scale of its value.

    Attributes:
        make: Emits the operations and returns the last one's name, given the scales [labels].
    """

    make: Callable[[Tensor], str]


class _Compiler:
    def __init__(self, graph: Graph):
        self.graph, self.when = graph, phases(graph)
        self.program = Program(graph)
        self.largest: dict[str, float] = {}  # absolute value of what an operation gives
        self.wires: dict[str, list[_Term]] = {}

    def build(self) -> Program:
        for node in self.graph:
            if isinstance(node.module, IFNeuron):
                self._neuron(node)
            elif isinstance(node.module, MeanOverTime):
                self._mean(node)
        self._forget_unread()
        return self.program

    # ------------------------------------------------------------------ emitting

    def _emit(self, op: Op, largest: float) -> str:
        name, number = op.name, 0
        while name in self.program.ops:
            number += 1
            name = f"{op.name}_{number}"
        self.program.ops[name] = replace(op, name=name)
        self.largest[name] = largest
        if largest > INT32:
            raise NoIntegers(
                f"{op.name}: its largest sum is {largest:.3g}, more than 32 bits hold; "
                "use the torch engine"
            )
        return name

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

    # ------------------------------------------------------------------ what travels

    def _is_wire(self, name: str) -> bool:
        """Whether a value is made of spikes without a weight or a constant."""
        if name not in self.graph or self.when[name] == CONSTANT:
            return False
        module = self.graph.module(name)
        if isinstance(module, IFNeuron):
            return True
        if isinstance(module, (*WEIGHTED, Shift)):
            return False
        return all(self._is_wire(source) for source in self.graph.edges[name])

    def _terms(self, name: str) -> list[_Term]:
        """The terms of a value that is made of spikes."""
        if name not in self.wires:
            self.wires[name] = self._new_terms(self.graph.node(name))
        return self.wires[name]

    def _new_terms(self, node: Node) -> list[_Term]:
        module, shape = node.module, self.graph.shapes[node.name]
        inputs = [self._terms(source) for source in node.inputs]
        if isinstance(module, Add | Subtract):
            terms = []
            for i, (source, found) in enumerate(zip(node.inputs, inputs, strict=True)):
                if self.graph.shapes[source] != shape:
                    raise self._refuse(node.name, "spikes of another shape are added")
                sign = -1 if i and isinstance(module, Subtract) else 1
                terms += [_Term(t.op, t.amplitude * sign) for t in found]
            return terms
        if isinstance(module, Scale):
            return [_Term(t.op, t.amplitude * module.factor.double().cpu()) for t in inputs[0]]
        if isinstance(module, MOVES):
            return self._moved(node, inputs)
        if isinstance(module, AVERAGES):
            times = self._times(node)
            terms = []
            for term in inputs[0]:
                each = self._each_channel(node.name, term.amplitude)
                amplitude = per_channel(each / times, len(shape)).expand(shape)
                largest = self.largest[term.op] * most_of(module, term.amplitude.shape) * times
                op = self._emit(Sums(node.name, (term.op,), module, times), round(largest))
                terms.append(_Term(op, amplitude))
            return terms
        if isinstance(module, SpikingMaxPool):
            if len(inputs[0]) > 1:
                raise self._refuse(node.name, "the largest sum of spikes of unlike thresholds")
            (term,) = inputs[0]
            each = self._each_channel(node.name, term.amplitude)
            if not bool((each > 0).all()):
                raise self._refuse(node.name, "the largest of negative spikes")
            self._bound_counts(term.op)
            op = self._emit(Pool(node.name, (term.op,), module), self.largest[term.op])
            return [_Term(op, per_channel(each, len(shape)).expand(shape))]
        raise self._refuse(node.name, f"a {node.kind}")

    def _moved(self, node: Node, inputs: list[list[_Term]]) -> list[_Term]:
        if isinstance(node.module, nn.Upsample) and node.module.mode != "nearest":
            raise self._refuse(node.name, f"up-sampling by {node.module.mode}")
        terms = []
        for k in range(max(len(found) for found in inputs)):
            there = [found[k] if k < len(found) else None for found in inputs]
            zeros = {
                i: self.graph.shapes[source]
                for i, (source, term) in enumerate(zip(node.inputs, there, strict=True))
                if term is None
            }
            amplitudes = [
                torch.ones(self.graph.shapes[source], dtype=torch.float64)
                if term is None
                else term.amplitude
                for source, term in zip(node.inputs, there, strict=True)
            ]
            amplitude = node.module(*amplitudes)
            ops = tuple(term.op for term in there if term is not None)
            move = Move(node.name, ops, node.module, zeros)
            op = self._emit(move, max(self.largest[source] for source in ops))
            terms.append(_Term(op, amplitude))
        return terms

    def _times(self, node: Node) -> int:
        """The common multiple of an average's divisors."""
        module, shape = node.module, self.graph.shapes[node.inputs[0]]
        if isinstance(module, Mean | Sum) and 1 in [d % len(shape) for d in module.dims]:
            raise self._refuse(node.name, "a sum over channels")
        divisors = divisors_of(module, shape)
        if not isinstance(module, nn.AvgPool1d | nn.AvgPool2d | Sum):
            self.program.one_size = True
        found = math.lcm(*divisors)
        if found > COUNT:
            raise self._refuse(node.name, f"an average whose divisors have {found} in common")
        return found

    def _bound_counts(self, op: str) -> None:
        self.program.steps_most = min(self.program.steps_most, int(COUNT // self.largest[op]))

    def _each_channel(self, name: str, value: Tensor) -> Tensor:
        """The one value that each channel of [1, C, ...] has, [C]; zeros of padding apart."""
        flat = value.flatten(2).flatten(0, 0)[0] if value.ndim > 2 else value[0].unsqueeze(1)
        high, low = flat.amax(1), flat.amin(1)
        each = torch.where(high.abs() >= low.abs(), high, low)
        if not bool(((flat == each.unsqueeze(1)) | (flat == 0)).all()):
            raise self._refuse(name, "spikes of unlike thresholds within one channel")
        return each

    def _refuse(self, name: str, what: str) -> NoIntegers:
        return NoIntegers(f"{name}: {what} has no whole numbers here; use the torch engine")

    # ------------------------------------------------------------------ neurons

    def _neuron(self, node: Node) -> None:
        (source,) = node.inputs
        if type(node.module) is not IFNeuron:
            kind = type(node.module).__name__
            raise self._refuse(node.name, f"a neuron of another kind ({kind})")
        if self.when[source] == CONSTANT:
            self._constant_neuron(node, source)
        else:
            self._driven_neuron(node, source)
        (op,) = [op for op in self.program.neurons if op.name == node.name]
        shape = self.graph.shapes[node.name]
        amplitude = torch.ones(shape, dtype=torch.float64)
        if not node.module.folded:
            theta = node.module.threshold.double().cpu().expand(shape[1])
            amplitude = per_channel(theta, len(shape)).expand(shape)
        self.wires[node.name] = [_Term(op.name, amplitude)]

    def _constant_neuron(self, node: Node, source: str) -> None:
        own = _Parameters.of(node.module, self.graph.shapes[source][1])
        far = torch.maximum(own.depth.nan_to_num(0.0), own.start)
        scale = torch.maximum(own.theta, far / 16) / FINE
        neuron, limit = self._rounded(node, own, scale, torch.zeros_like(scale))
        inverse = (1 / scale).float()
        current = Current(f"{node.name}:current", (), source, inverse, limit.float())
        name = self._emit(current, limit.max().item())
        self._add_neuron(replace(neuron, inputs=(name,)), limit.max().item())

    def _driven_neuron(self, node: Node, source: str) -> None:
        shape = self.graph.shapes[source]
        own = _Parameters.of(node.module, shape[1])
        labels = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
        try:
            current = _Currents(self, node, shape[1])
            tree = current.tree(source, labels, torch.ones(shape, dtype=torch.float64), True)
        except _Mixed:
            current = _Currents(self, node, 1)
            nothing = torch.zeros_like(labels)
            tree = current.tree(source, nothing, torch.ones(shape, dtype=torch.float64), True)
        scales = current.least.clone()
        if len(scales) == 1:
            scales = scales.expand(shape[1])
        bias = current.bias.expand(shape[1])
        most = torch.stack([own.theta, own.depth.nan_to_num(0.0), own.start, bias.abs()]).amax(0)
        scales = torch.maximum(scales, most / COARSEST)
        if len(current.least) == 1:
            scales = scales.max().expand(shape[1])
        name = tree.make(scales[: len(current.least)])
        neuron, _ = self._rounded(node, own, scales, bias)
        self._add_neuron(
            replace(neuron, inputs=(name,)), self.largest[name] + neuron.bias.abs().max().item()
        )

    def _rounded(
        self, node: Node, own: _Parameters, scale: Tensor, bias: Tensor
    ) -> tuple[Neuron, Tensor]:
        """A neuron in multiples of its scale [C], and its largest useful current [C]."""

        def whole(x: Tensor) -> Tensor:
            return (x / scale).round().to(torch.int32)

        threshold = whole(own.theta).clamp(min=1)
        initial = node.module.initial.detach().double().cpu()
        each = scale.view(-1, 1, 1) if initial.ndim > 1 else scale
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
        made = Neuron(node.name, (), whole(bias), threshold, start, low, up, scale)
        return made, limit

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
        self._emit(neuron, 1)

    def _mean(self, node: Node) -> None:
        (source,) = node.inputs
        if not self._is_wire(source):
            raise self._refuse(node.name, "a mean over time of currents")
        found = []
        for term in self._terms(source):
            amplitude = term.amplitude
            try:
                each = self._each_channel(node.name, amplitude)
                amplitude = per_channel(each, amplitude.ndim)
            except NoIntegers:
                self.program.one_size = True
            found.append((term.op, amplitude.float()))
        self.program.means[node.name] = found


@dataclass(frozen=True)
class _Parameters:
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
    def of(cls, module: IFNeuron, channels: int) -> _Parameters:
        theta = module.threshold.detach().double().cpu().expand(channels)
        slope = _slopes(module.slope, channels)
        depth = torch.where(slope > NO_SLOPE, theta / slope.clamp(min=NO_SLOPE), torch.nan)
        start = module.initial.detach().double().cpu().abs()
        start = start.flatten(1).amax(1) if start.ndim > 1 else start.expand(channels)
        return cls(theta, slope, depth, start)


def _slopes(slope: Slope, channels: int) -> Tensor:
    if isinstance(slope, int | float):
        return torch.full((channels,), float(slope), dtype=torch.float64)
    return torch.tensor(slope, dtype=torch.float64)


class _Currents:
    """The tree of one neuron's current.

    Every value of it has, element by element, a label (which of the neuron's scales it has; -1
    where nobody reads it) and a factor: its own scale is scales[label] * factor.

    Attributes:
        least: The least scale that each label needs, [labels].
        bias: What the layers add, in units of the neuron, [labels].
    """

    def __init__(self, compiler: _Compiler, node: Node, labels: int):
        self.compiler, self.neuron = compiler, node
        self.graph, self.emit = compiler.graph, compiler._emit
        self.least = torch.zeros(labels, dtype=torch.float64)
        channels = compiler.graph.shapes[node.name][1]
        self.bias = torch.zeros(channels, dtype=torch.float64)

    def tree(self, name: str, label: Tensor, factor: Tensor, near: bool) -> _Tree:
        """What a node's value, read at some scale, is made of.

        Args:
            name: Of the node.
            label: Of its value, [1, ...].
            factor: Of its value, [1, ...].
            near: Nothing but sums and factors lie between it and the neuron, so that constants can
                be added there.
        """
        if self.compiler._is_wire(name):
            return self._wire(name, label, factor)
        if name not in self.graph or self.compiler.when[name] == CONSTANT:
            raise self.compiler._refuse(name, "a current that has no time steps")
        node = self.graph.node(name)
        module = node.module
        if isinstance(module, Add | Subtract):
            return self._sum(node, label, factor, near)
        if isinstance(module, Scale):
            by = module.factor.double().cpu().expand(label.shape)
            return self.tree(node.inputs[0], label, factor / by, near)
        if isinstance(module, Shift):
            offset = module.offset.double().cpu().expand(label.shape)
            inner = self.tree(node.inputs[0], label, factor, near)
            return self._shifted(node, inner, offset, label, factor, near)
        if isinstance(module, WEIGHTED):
            return self._weighted(node, label, factor, near)
        if isinstance(module, MOVES):
            return self._moved(node, label, factor)
        if isinstance(module, AVERAGES):
            return self._average(node, label, factor)
        if isinstance(module, SpikingMaxPool):
            return self._pooled(node, label, factor)
        raise self.compiler._refuse(name, f"a {node.kind}")

    # ------------------------------------------------------------------ leaves

    def _wire(self, name: str, label: Tensor, factor: Tensor) -> _Tree:
        """Spikes that are added as they are."""
        labels, factors = self._channels(label), self._factors(label, factor)
        terms = self.compiler._terms(name)
        each = [self.compiler._each_channel(name, term.amplitude) for term in terms]
        for amplitude in each:  # 24 bits are enough for what is not multiplied
            self._need(labels, (amplitude / factors).abs() / COARSEST)

        def make(scales: Tensor) -> str:
            made = []
            for term, amplitude in zip(terms, each, strict=True):
                whole = (amplitude / self._scale(scales, labels, factors)).round()
                op = Times(f"{self.neuron.name}:{name}", (term.op,), whole.to(torch.int32))
                largest = self.compiler.largest[term.op] * whole.abs().max().item()
                made.append(self.emit(op, largest))
            return self._added(made)

        return _Tree(make)

    def _weighted(self, node: Node, label: Tensor, factor: Tensor, near: bool) -> _Tree:
        module, (source,) = node.module, node.inputs
        bias = torch.zeros(label.shape[1], dtype=torch.float64)
        if module.bias is not None:
            bias = module.bias.detach().double().cpu()
        offset = per_channel(bias, label.ndim).expand(label.shape)
        if not self.compiler._is_wire(source):
            by = factor_of(module)
            if by is None:
                raise self.compiler._refuse(
                    node.name, "a layer that reads what is no spike (a linear bottleneck)"
                )
            by = per_channel(by, label.ndim).expand(label.shape)
            inner = self.tree(source, label, factor / by, near)
            return self._shifted(node, inner, offset, label, factor, near)
        if isinstance(module, nn.Linear) and label.ndim != 2:
            raise self.compiler._refuse(node.name, "a linear layer over places")
        labels, factors = self._channels(label), self._factors(label, factor)
        terms = self.compiler._terms(source)
        weights = [
            times_inputs(module, self.compiler._each_channel(source, term.amplitude))
            for term in terms
        ]
        for weight in weights:
            self._need(labels, largest_of(module, weight) / factors.abs() / LARGEST)

        def make(scales: Tensor) -> str:
            made, scale = [], self._scale(scales, labels, factors)
            for term, weight in zip(terms, weights, strict=True):
                whole = by_outputs(module, weight, 1 / scale).round()
                whole = whole.clamp(-LARGEST, LARGEST).to(torch.int32)
                op = Weighted(f"{self.neuron.name}:{node.name}", (term.op,), module, whole)
                largest = self.compiler.largest[term.op] * most_sum(module, whole)
                made.append(self.emit(op, largest))
            return self._added(made)

        return self._shifted(node, _Tree(make), offset, label, factor, near)

    # ------------------------------------------------------------------ on the way to them

    def _sum(self, node: Node, label: Tensor, factor: Tensor, near: bool) -> _Tree:
        parts = []
        for i, source in enumerate(node.inputs):
            if self.graph.shapes[source] != tuple(label.shape):
                raise self.compiler._refuse(node.name, "a sum of unlike shapes")
            sign = -1.0 if i and isinstance(node.module, Subtract) else 1.0
            parts.append(self.tree(source, label, factor * sign, near))
        return _Tree(lambda scales: self._added([part.make(scales) for part in parts]))

    def _shifted(
        self,
        node: Node,
        inner: _Tree,
        offset: Tensor,
        label: Tensor,
        factor: Tensor,
        near: bool,
    ) -> _Tree:
        """A constant on top of a value."""
        if not bool(offset.any()):
            return inner
        if near:
            flat = (offset / factor).expand(label.shape)
            each = flat.flatten(2)[0] if flat.ndim > 2 else flat[0].unsqueeze(1)
            if bool((each == each[:, :1]).all()):
                self.bias += each[:, 0]
                return inner

        def make(scales: Tensor) -> str:
            source = inner.make(scales)
            whole = (offset / self._scale(scales, label, factor)).round()
            largest = self.compiler.largest[source] + whole.abs().max().item()
            return self.emit(
                Plus(f"{self.neuron.name}:{node.name}", (source,), whole.to(torch.int32)), largest
            )

        return _Tree(make)

    def _moved(self, node: Node, label: Tensor, factor: Tensor) -> _Tree:
        shapes = [self.graph.shapes[source] for source in node.inputs]
        sizes = [math.prod(shape) for shape in shapes]
        places, start = [], 1
        for shape, size in zip(shapes, sizes, strict=True):
            places.append(torch.arange(start, start + size, dtype=torch.float64).view(shape))
            start += size
        where = node.module(*places).long()  # 0: padding
        labels = torch.full((start,), -1)
        factors = torch.ones(start, dtype=torch.float64)
        labels[where.flatten()] = label.flatten()
        factors[where.flatten()] = factor.flatten()
        inside = where > 0
        if not bool((labels[where] == label)[inside].all()):
            raise _Mixed
        if not bool((factors[where] == factor)[inside].all()):
            raise self.compiler._refuse(node.name, "currents of unlike factors in one place")
        trees = []
        for source, place in zip(node.inputs, places, strict=True):
            at = place.long()
            trees.append(self.tree(source, labels[at], factors[at], False))

        def make(scales: Tensor) -> str:
            inputs = tuple(tree.make(scales) for tree in trees)
            largest = max(self.compiler.largest[source] for source in inputs)
            return self.emit(Move(f"{self.neuron.name}:{node.name}", inputs, node.module), largest)

        return _Tree(make)

    def _average(self, node: Node, label: Tensor, factor: Tensor) -> _Tree:
        times = self.compiler._times(node)
        inner = self._of_windows(node, label, factor * times)

        def make(scales: Tensor) -> str:
            source = inner.make(scales)
            shape = self.graph.shapes[node.inputs[0]]
            largest = self.compiler.largest[source] * most_of(node.module, shape) * times
            op = Sums(f"{self.neuron.name}:{node.name}", (source,), node.module, times)
            return self.emit(op, round(largest))

        return _Tree(make)

    def _pooled(self, node: Node, label: Tensor, factor: Tensor) -> _Tree:
        if not bool((factor > 0).all()):
            raise self.compiler._refuse(node.name, "the largest current times a negative factor")
        inner = self._of_windows(node, label, factor)

        def make(scales: Tensor) -> str:
            source = inner.make(scales)
            op = Pool(f"{self.neuron.name}:{node.name}", (source,), node.module)
            return self.emit(op, self.compiler.largest[source])

        return _Tree(make)

    def _of_windows(self, node: Node, label: Tensor, factor: Tensor) -> _Tree:
        """What a pooling reads, whose channels stay apart."""
        labels, factors = self._channels(label), self._factors(label, factor)
        shape = self.graph.shapes[node.inputs[0]]
        return self.tree(
            node.inputs[0],
            per_channel(labels, len(shape)).expand(shape),
            per_channel(factors, len(shape)).expand(shape),
            False,
        )

    # ------------------------------------------------------------------ scales

    def _added(self, names: list[str]) -> str:
        if len(names) == 1:
            return names[0]
        largest = sum(self.compiler.largest[name] for name in names)
        return self.emit(Plus(f"{self.neuron.name}:sum", tuple(names)), largest)

    def _channels(self, label: Tensor) -> Tensor:
        """The label of each channel, [C].

        Raises:
            _Mixed: A channel has several.
        """
        flat = label.flatten(2)[0] if label.ndim > 2 else label[0].unsqueeze(1)
        each = flat.amax(1)
        if not bool(((flat == each.unsqueeze(1)) | (flat < 0)).all()):
            raise _Mixed
        return each

    def _factors(self, label: Tensor, factor: Tensor) -> Tensor:
        """The factor of each channel, [C]."""
        flat = factor.flatten(2)[0] if factor.ndim > 2 else factor[0].unsqueeze(1)
        read = (label.flatten(2)[0] if label.ndim > 2 else label[0].unsqueeze(1)) >= 0
        place = read.int().argmax(1, keepdim=True)
        each = flat.gather(1, place)
        if not bool(((flat == each) | ~read).all()):
            raise self.compiler._refuse(
                self.neuron.name, "currents of unlike factors within one channel"
            )
        return each[:, 0]

    def _need(self, labels: Tensor, least: Tensor) -> None:
        read = labels >= 0
        self.least.scatter_reduce_(0, labels[read], least[read].nan_to_num(0.0), "amax")

    @staticmethod
    def _scale(scales: Tensor, label: Tensor, factor: Tensor) -> Tensor:
        """Scales of elements or channels; infinite where nobody reads them."""
        return torch.where(label >= 0, scales[label.clamp(min=0)] * factor, torch.inf)


def constant_nodes(graph: Graph) -> list[str]:
    """Nodes that run once a picture, before the first neuron, in the order of execution."""
    when = phases(graph)
    return [name for name in graph.edges if when[name] == CONSTANT and name != INPUT]
