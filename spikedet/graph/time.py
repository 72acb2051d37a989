"""When a node runs: once for a picture, in every time step, or once on the mean over time.

constant   nodes before the first activation; their values are the same in every time step
stepwise   activations and the nodes between them, up to the last activation
read       layers after the last activation; they are linear, so they run on the mean over time
"""

from __future__ import annotations

from spikedet.errors import ConversionError
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.operations import ACTIVATIONS, MAX_POOLS, WEIGHTED
from spikedet.neurons.layers import MeanOverTime

CONSTANT, STEPWISE, READ = "constant", "stepwise", "read"


def phases(graph: Graph) -> dict[str, str]:
    """When each node runs: `constant`, `stepwise` or `read`. `INPUT` is constant.

    The nodes after a `MeanOverTime` are `read`. If the graph has no `MeanOverTime` yet, the nodes
    of `readouts` and the nodes after them are `read`.
    """
    last = {name for name in _last(graph)}
    spiking = bool(graph.of((MeanOverTime,)))
    when = {INPUT: CONSTANT}
    for node in graph:
        inputs = {when[source] for source in node.inputs}
        if isinstance(node.module, ACTIVATIONS):
            when[node.name] = STEPWISE
        elif isinstance(node.module, MeanOverTime) or READ in inputs:
            when[node.name] = READ
        elif STEPWISE in inputs:
            ends = not spiking and node.name in last
            when[node.name] = READ if ends else STEPWISE
        else:
            when[node.name] = CONSTANT
    return when


def readouts(graph: Graph) -> list[str]:
    """Names of the weighted layers that read spikes and have no activation after them."""
    when = phases(graph)
    layers = []
    for node in graph.of(WEIGHTED):
        sources = node.inputs
        if when[node.name] == READ and _reads_time(graph, sources, when):
            layers.append(node.name)
    return layers


def _reads_time(graph: Graph, sources: tuple[str, ...], when: dict[str, str]) -> bool:
    return any(
        when[s] == STEPWISE or (s in graph and isinstance(graph.module(s), MeanOverTime))
        for s in sources
    )


def _last(graph: Graph) -> list[str]:
    """Names of the weighted layers that have no activation after them."""
    fed: set[str] = set()  # values from which an activation is reached
    last = []
    for node in reversed(list(graph)):
        if isinstance(node.module, ACTIVATIONS) or node.name in fed:
            fed.update(node.inputs)
        elif isinstance(node.module, WEIGHTED):
            last.append(node.name)
    return last[::-1]


def expect_steps_apart(graph: Graph) -> None:
    """Check that no operation in a time step needs the picture or the mean over time.

    Raises:
        ConversionError: An operation combines spikes with a signal that has no time steps (from
            before the first activation, or after a readout), or there is max-pooling after a
            readout.
    """
    when = phases(graph)
    for node in graph:
        inputs = {when[source] for source in node.inputs}
        if STEPWISE in inputs and inputs != {STEPWISE}:
            origin = "a readout" if READ in inputs else "computed from the picture alone"
            raise ConversionError(
                f"{node.name}: spikes are combined with a signal that has no time steps "
                f"({origin}); "
                "add an activation (torch.nn.ReLU) after that signal"
            )
        if READ in inputs and isinstance(node.module, MAX_POOLS):
            raise ConversionError(
                f"{node.name}: max-pooling after the last activation has no spiking counterpart; "
                "move it before that activation"
            )
