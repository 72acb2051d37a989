"""One run of a spiking graph: its state, and the order in which its nodes run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.time import CONSTANT, READ, STEPWISE, phases
from spikedet.neurons.layers import MeanOverTime, Temporal


@dataclass
class Pass:
    """One run of a spiking network over its time steps. It holds the whole state of the run.

    Attributes:
        batch: Number of pictures B.
        steps: Number of time steps that go through the network in the current call.
        done: Number of time steps before the current call.
        each_step: Readouts give the mean after each step instead of one mean.
        memory: State of the temporal modules between two calls, by the name of their node.
    """

    batch: int
    steps: int = 1
    done: int = 0
    each_step: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def __call__(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """Compute the output of a node for the current time steps."""
        module = node.module
        if not isinstance(module, Temporal):
            return module(*inputs)
        advance = module.advance
        if self.each_step and isinstance(module, MeanOverTime):
            advance = module.each
        memory = self.memory.get(node.name)
        value, self.memory[node.name] = advance(inputs[0], self.batch, self.steps, memory)
        return value


@dataclass(frozen=True)
class Schedule:
    """The order of execution of a spiking graph: once, in every step, or after the mean.

    Attributes:
        edges: Edges of the graph that the schedule is for.
        before: Nodes that run once for a picture.
        kept: Nodes of `before` whose values are read later (and `INPUT` if it is read later).
        during: Nodes that run in every time step, including the means over time.
        means: The means over time.
        behind: Nodes that run on the means.
        outputs: Nodes that the network returns.
    """

    edges: tuple[tuple[str, tuple[str, ...]], ...]
    before: list[str]
    kept: set[str]
    during: list[str]
    means: list[str]
    behind: list[str]
    outputs: list[str]

    @classmethod
    def of(cls, graph: Graph, edges: tuple[tuple[str, tuple[str, ...]], ...]) -> Schedule:
        """Make the schedule of a graph."""
        when = phases(graph)
        before = [name for name in graph.edges if when[name] == CONSTANT]
        means = [node.name for node in graph.of((MeanOverTime,))]
        during = [n for n in graph.edges if when[n] == STEPWISE or n in means]
        behind = [n for n in graph.edges if when[n] == READ and n not in means]
        later = {source for name in (*during, *behind) for source in graph.edges[name]}
        kept = {name for name in (INPUT, *before) if name in later | set(graph.outputs)}
        return cls(edges, before, kept, during, means, behind, graph.outputs)
