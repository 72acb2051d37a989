"""The operations of an integer program. `integers` makes such a program from a spiking graph."""

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
    """The integer engines do not support this network, picture size or T."""


@dataclass(frozen=True)
class Op:
    """One operation on integers.

    Attributes:
        name: Unique name. For neurons it is the name of the node in the graph.
        inputs: Names of the operations that it reads.
    """

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Current(Op):
    """A constant current: round(clip(x * inverse, -limit, limit)), x the float32 value of a node.

    Attributes:
        node: Name of the node.
        inverse, limit: [C] float32.
    """

    node: str
    inverse: Tensor
    limit: Tensor


@dataclass(frozen=True)
class Weighted(Op):
    """A convolution or linear layer without bias.

    Attributes:
        like: The original layer, with its stride, padding and so on.
        weight: int8 weights in the shape of the layer, -127..127.
    """

    like: WeightedLayer
    weight: Tensor


@dataclass(frozen=True)
class Times(Op):
    """The product of each channel with an integer, `factor` [C] int32."""

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
    """An operation that only moves values, or adds zeros.

    Attributes:
        module: Module that is applied to the inputs.
        zeros: Shapes [1, ...] of the inputs that are all zero, by their position.
    """

    module: nn.Module
    zeros: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sums(Op):
    """Sums over windows: an average multiplied by `times`, so that the results are integers."""

    module: nn.Module
    times: int


@dataclass(frozen=True)
class Pool(Op):
    """Max-pooling of spike counts (see `SpikingMaxPool`)."""

    module: SpikingMaxPool


@dataclass(frozen=True)
class Neuron(Op):
    """Integrate-and-fire neurons: u += current + bias, then fire and reset (`neurons.functional`).

    Attributes:
        bias: [C] int32.
        threshold: [C] int32, 1 or more.
        initial: [C] or [C, H, W] int32.
        low, up: For signed spikes: a negative spike at u <= low, then u += up; [C] int32 each. None
            if spikes are 0/1.
        scale: Value of the integer 1, [C] float64.
        corrects: A negative spike is sent only after more positive than negative ones.
    """

    bias: Tensor
    threshold: Tensor
    initial: Tensor
    low: Tensor | None
    up: Tensor | None
    scale: Tensor
    corrects: bool = False


@dataclass
class Program:
    """A spiking graph as an integer program.

    Attributes:
        graph: The spiking graph.
        ops: The operations by name, in the order of execution.
        means: Inputs of each `MeanOverTime` of the graph, by the name of its node. An input is an
            operation with the value of its integer 1, float32 [1, C, ...].
        steps_most: Largest number of time steps for which no potential overflows 32 bits and no
            count overflows 16 bits.
        running: Names of the operations that run in every time step. The other operations are
            linear and after the last neurons, so they run once on the means.
        rounding: Rounding of the weights, by layer of neurons (`currents.Rounding`).
    """

    graph: Graph
    ops: dict[str, Op] = field(default_factory=dict)
    means: dict[str, list[tuple[str, Tensor]]] = field(default_factory=dict)
    steps_most: int = INT32
    running: set[str] = field(default_factory=set)
    rounding: list[Any] = field(default_factory=list)

    @property
    def neurons(self) -> list[Neuron]:
        """All layers of neurons, in the order of execution."""
        return [op for op in self.ops.values() if isinstance(op, Neuron)]

    def base(self, name: str) -> set[str]:
        """Operations whose means over time give the mean of `name` through linear operations."""
        op = self.ops[name]
        if isinstance(op, Move | Sums):
            return set().union(*(self.base(source) for source in op.inputs))
        return {name}
