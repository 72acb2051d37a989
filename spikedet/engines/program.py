"""A spiking network in whole numbers: what its operations are. `integers` makes it of a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import WeightedLayer
from spikedet.neurons.layers import SpikingMaxPool

INT32 = 2**31 - 1


class NoIntegers(UsageError):
    """A network, a picture size or a T that cannot be computed in whole numbers."""


@dataclass(frozen=True)
class Op:
    """One operation on whole numbers.

    Attributes:
        name: Unique; that of the graph's node for neurons.
        inputs: Names of the operations that it reads.
    """

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Current(Op):
    """A constant current, round(clip(x inverse, -limit, limit)) of a node's float32 value x.

    Attributes:
        node: Name of that node.
        inverse, limit: [C] float32.
    """

    node: str
    inverse: Tensor
    limit: Tensor


@dataclass(frozen=True)
class Weighted(Op):
    """A convolution or linear layer without bias.

    Attributes:
        like: The layer that it stands for; of it stride, padding and so on count.
        weight: int8 of the layer's shape, within -127..127.
    """

    like: WeightedLayer
    weight: Tensor


@dataclass(frozen=True)
class Times(Op):
    """Product of each channel with a whole number, factor [C] int32."""

    factor: Tensor


@dataclass(frozen=True)
class Plus(Op):
    """Sum of its inputs and of a constant.

    Attributes:
        offset: int32, broadcastable to [1, ...], or None.
    """

    offset: Tensor | None = None


@dataclass(frozen=True)
class Move(Op):
    """Something that only moves values (or puts zeros beside them): a module on whole numbers.

    Attributes:
        module: Called with the inputs, in which None stands for zeros.
        zeros: Shapes [1, ...] of the inputs that are zeros, by their place among the arguments.
    """

    module: nn.Module
    zeros: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sums(Op):
    """Sums over windows: an average times `times`, which makes it whole."""

    module: nn.Module
    times: int


@dataclass(frozen=True)
class Pool(Op):
    """Max-pooling of spike counts, see `SpikingMaxPool`."""

    module: SpikingMaxPool


@dataclass(frozen=True)
class Neuron(Op):
    """Integrate-and-fire neurons: u += current + bias; fires, and resets, as `neurons.functional`.

    Attributes:
        bias: [C] int32.
        threshold: [C] int32, 1 or more.
        initial: [C] or [C, H, W] int32.
        low, up: Of signed spikes: fires downwards at u <= low, then u += up; [C] int32 each. None
            where spikes are 0/1.
        scale: What 1 stands for, [C] float64.
    """

    bias: Tensor
    threshold: Tensor
    initial: Tensor
    low: Tensor | None
    up: Tensor | None
    scale: Tensor


@dataclass
class Program:
    """A spiking graph in whole numbers.

    Attributes:
        graph: What it was made of.
        ops: In the order of execution, by name.
        means: What each `MeanOverTime` of the graph reads: operations, and what 1 stands for in
            each, float32 [1, C, ...]; by the name of its node.
        steps_most: Time steps after which a potential could leave 32 bits, or a count 16.
        one_size: The program holds for the size alone that the graph was recorded at.
        running: Names of what runs in every step; the rest is linear and behind the last neuron,
            so that it runs once on the means.
        rounding: How weights were rounded, by layer of neurons (`currents.Rounding`).
    """

    graph: Graph
    ops: dict[str, Op] = field(default_factory=dict)
    means: dict[str, list[tuple[str, Tensor]]] = field(default_factory=dict)
    steps_most: int = INT32
    one_size: bool = False
    running: set[str] = field(default_factory=set)
    rounding: list[Any] = field(default_factory=list)

    @property
    def neurons(self) -> list[Neuron]:
        """All neurons, in the order of execution."""
        return [op for op in self.ops.values() if isinstance(op, Neuron)]

    def base(self, name: str) -> set[str]:
        """Operations whose mean over time makes that of `name`: through what is linear."""
        op = self.ops[name]
        if isinstance(op, Move | Sums):
            return set().union(*(self.base(source) for source in op.inputs))
        return {name}
