"""Spikes behind linear bottlenecks, so that no layer multiplies in every step."""

from __future__ import annotations

from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, NORMS, WEIGHTED, Leaky
from spikedet.graph.time import STEPWISE, phases


def spike_linear_bottlenecks(graph: Graph) -> None:
    """Give linear bottlenecks an activation, in place.

    A linear bottleneck (MobileNetV2) is a weighted layer whose output reaches another weighted
    layer, directly or through linear operations such as additions, without an activation between.
    It gets the identity as its activation, a leaky ReLU of slope 1, which is rounded and clipped at
    +-theta when it is quantised and becomes signed neurons. Layers that read the picture itself
    (they run once) and readouts stay as they are. A batch norm that stands alone before an
    activation (a pre-activation network) is no layer that reads in this sense: it is folded into a
    weight for each channel.
    """
    when = phases(graph)
    readers = graph.readers()
    reads: set[str] = set()  # values that reach a weighted layer without an activation between
    found = []
    for node in reversed(list(graph)):
        if isinstance(node.module, WEIGHTED) or _stands_alone(graph, node.name):
            if isinstance(node.module, WEIGHTED) and node.name in reads:
                found.append(node.name)
            reads.update(node.inputs)
        elif node.name in reads and not isinstance(node.module, ACTIVATIONS):
            reads.update(node.inputs)
    for name in found[::-1]:
        if when[name] != STEPWISE:
            continue
        after = readers[name]
        place = name
        if len(after) == 1 and isinstance(graph.module(after[0]), NORMS):
            place = after[0]
        graph.insert_behind(place, f"{name}_spikes", Leaky(1.0))


def _stands_alone(graph: Graph, name: str) -> bool:
    """Whether a node is a batch norm that cannot be folded into a layer before it."""
    if not isinstance(graph.module(name), NORMS):
        return False
    (source,) = graph.edges[name]
    if source not in graph or not isinstance(graph.module(source), WEIGHTED):
        return True
    return graph.readers()[source] != [name]
