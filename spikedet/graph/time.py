"""When a node runs: once for a picture, in every time step, or once on the mean over time.

constant   what is computed from the picture before the first activation: the same in each step
stepwise   activations and what reads them, up to the last of them
read       the layers behind the last activation: linear, so that they run on the mean over time
"""

from __future__ import annotations

from spikedet.errors import ConversionError
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.operations import ACTIVATIONS, MAX_POOLS, WEIGHTED
from spikedet.neurons.layers import MeanOverTime

CONSTANT, STEPWISE, READ = "constant", "stepwise", "read"


def phases(graph: Graph) -> dict[str, str]:
    """When each node runs; `INPUT` is constant.

    The nodes that a `MeanOverTime` feeds are read; where there is none yet, those that `readouts`
    names and what follows them.
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
    """Weighted layers that read spikes and from which no activation is reached."""
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
    """Weighted layers from which no activation is reached."""
    fed: set[str] = set()  # values from which an activation is reached
    last = []
    for node in reversed(list(graph)):
        if isinstance(node.module, ACTIVATIONS) or node.name in fed:
            fed.update(node.inputs)
        elif isinstance(node.module, WEIGHTED):
            last.append(node.name)
    return last[::-1]


def expect_steps_apart(graph: Graph) -> None:
    """Refuse what would need the picture, or the mean over time, in every single step.

    Raises:
        ConversionError: An operation that joins a signal which is the same in every step (before
            the first activation, or after a readout) to spikes; pooling of the maximum after a
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
