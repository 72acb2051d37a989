"""Signals between neurons: which values are made of spikes only, and what their integers mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spikedet.engines.program import INT32, Move, NoIntegers, Op, Pool, Program, Sums
from spikedet.engines.weights import divisors_of, most_of
from spikedet.graph.graph import Graph, Node
from spikedet.graph.operations import (
    AVERAGES,
    MOVES,
    WEIGHTED,
    Add,
    Mean,
    Scale,
    Shift,
    Subtract,
    Sum,
)
from spikedet.graph.time import CONSTANT, phases
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool, per_channel

COUNT = 2**15 - 1  # largest count of spikes that max-pooling keeps


@dataclass(frozen=True)
class Term:
    """The integers of an operation, with the value of 1: `amplitude`, [1, ...] float64."""

    op: str
    amplitude: Tensor


class SpikeSignals:
    """Values that are made only of spikes, and the operations that compute them.

    Attributes:
        program: Program to add the operations to.
        largest: Largest absolute value of each operation.
        known: Terms of the values so far, by the names of their nodes.
    """

    def __init__(self, graph: Graph):
        self.graph, self.when = graph, phases(graph)
        self.program = Program(graph)
        self.largest: dict[str, float] = {}
        self.known: dict[str, list[Term]] = {}

    def emit(self, op: Op, largest: float) -> str:
        """Add an operation to the program; returns its name.

        Raises:
            NoIntegers: Its largest value needs more than 32 bits.
        """
        name, number = op.name, 0
        while name in self.program.ops:
            number += 1
            name = f"{op.name}_{number}"
        self.program.ops[name] = replace(op, name=name)
        self.largest[name] = largest
        if largest > INT32:
            raise NoIntegers(
                f"{op.name}: its largest sum is {largest:.3g}, which needs more than 32 bits; "
                "use the torch engine"
            )
        return name

    def is_spikes(self, name: str) -> bool:
        """Whether a value is made only of spikes, without weights and constants."""
        if name not in self.graph or self.when[name] == CONSTANT:
            return False
        module = self.graph.module(name)
        if isinstance(module, IFNeuron):
            return True
        if isinstance(module, (*WEIGHTED, Shift)):
            return False
        return all(self.is_spikes(source) for source in self.graph.edges[name])

    def terms(self, name: str) -> list[Term]:
        """The terms of a value that is made of spikes."""
        if name not in self.known:
            self.known[name] = self._new_terms(self.graph.node(name))
        return self.known[name]

    def _new_terms(self, node: Node) -> list[Term]:
        module, shape = node.module, self.graph.shapes[node.name]
        inputs = [self.terms(source) for source in node.inputs]
        if isinstance(module, Add | Subtract):
            terms = []
            for i, (source, own) in enumerate(zip(node.inputs, inputs, strict=True)):
                if self.graph.shapes[source] != shape:
                    raise self.refuse(node.name, "a sum of spikes with different shapes")
                sign = -1 if i and isinstance(module, Subtract) else 1
                terms += [Term(t.op, t.amplitude * sign) for t in own]
            return terms
        if isinstance(module, Scale):
            return [Term(t.op, t.amplitude * module.factor.double().cpu()) for t in inputs[0]]
        if isinstance(module, MOVES):
            return self._moved(node, inputs)
        if isinstance(module, AVERAGES):
            times = self.times(node)
            terms = []
            for term in inputs[0]:
                each = self.each_channel(node.name, term.amplitude)
                amplitude = per_channel(each / times, len(shape)).expand(shape)
                largest = self.largest[term.op] * most_of(module, term.amplitude.shape) * times
                op = self.emit(Sums(node.name, (term.op,), module, times), round(largest))
                terms.append(Term(op, amplitude))
            return terms
        if isinstance(module, SpikingMaxPool):
            if len(inputs[0]) > 1:
                raise self.refuse(
                    node.name, "max-pooling of sums of spikes with different thresholds"
                )
            (term,) = inputs[0]
            each = self.each_channel(node.name, term.amplitude)
            if not bool((each > 0).all()):
                raise self.refuse(node.name, "max-pooling of negative spikes")
            self.bound_counts(term.op)
            op = self.emit(Pool(node.name, (term.op,), module), self.largest[term.op])
            return [Term(op, per_channel(each, len(shape)).expand(shape))]
        raise self.refuse(node.name, f"a {node.kind}")

    def _moved(self, node: Node, inputs: list[list[Term]]) -> list[Term]:
        if isinstance(node.module, nn.Upsample) and not node.module.mode.startswith("nearest"):
            raise self.refuse(node.name, f"up-sampling by {node.module.mode}")
        terms = []
        for k in range(max(len(own) for own in inputs)):
            present = [own[k] if k < len(own) else None for own in inputs]
            zeros = {
                i: self.graph.shapes[source]
                for i, (source, term) in enumerate(zip(node.inputs, present, strict=True))
                if term is None
            }
            amplitudes = [
                torch.ones(self.graph.shapes[source], dtype=torch.float64)
                if term is None
                else term.amplitude
                for source, term in zip(node.inputs, present, strict=True)
            ]
            amplitude = node.module(*amplitudes)
            ops = tuple(term.op for term in present if term is not None)
            move = Move(node.name, ops, node.module, zeros)
            op = self.emit(move, max(self.largest[source] for source in ops))
            terms.append(Term(op, amplitude))
        return terms

    def times(self, node: Node) -> int:
        """The least common multiple of an average's divisors."""
        module, shape = node.module, self.graph.shapes[node.inputs[0]]
        if isinstance(module, Mean | Sum) and 1 in [d % len(shape) for d in module.dims]:
            raise self.refuse(node.name, "a sum over channels")
        divisors = divisors_of(module, shape)
        multiple = math.lcm(*divisors)
        if multiple > COUNT:
            raise self.refuse(
                node.name, f"an average whose divisors have the common multiple {multiple}"
            )
        return multiple

    def bound_counts(self, op: str) -> None:
        self.program.steps_most = min(self.program.steps_most, int(COUNT // self.largest[op]))

    def each_channel(self, name: str, value: Tensor) -> Tensor:
        """The value of each channel of [1, C, ...], [C]. Zeros of padding are ignored."""
        flat = value.flatten(2).flatten(0, 0)[0] if value.ndim > 2 else value[0].unsqueeze(1)
        high, low = flat.amax(1), flat.amin(1)
        each = torch.where(high.abs() >= low.abs(), high, low)
        if not bool(((flat == each.unsqueeze(1)) | (flat == 0)).all()):
            raise self.refuse(name, "spikes with different thresholds within one channel")
        return each

    def refuse(self, name: str, subject: str) -> NoIntegers:
        return NoIntegers(
            f"{name}: the integer engines do not support {subject}; use the torch engine"
        )
