"""Add neurons after linear bottlenecks, so that no layer multiplies in every time step."""

from __future__ import annotations

from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, NORMS, WEIGHTED, Leaky
from spikedet.graph.time import CONSTANT, STEPWISE, phases


def spike_linear_bottlenecks(graph: Graph) -> None:
    """Give linear bottlenecks an activation, in place.

    A linear bottleneck (MobileNetV2) is a weighted layer whose output reaches another weighted
    layer without an activation between them. There may be linear operations between them, such as
    sums. It gets the identity as its activation, a leaky ReLU of slope 1. Quantisation rounds this
    activation and clips it at +-theta. It becomes signed neurons.

    Readouts do not get an activation. Layers that read the picture itself run once, and do not get
    one either, unless their output is later added to spikes (as in the first layer of a
    pre-activation network). A batch norm that cannot be folded counts as a weighted layer, because
    it becomes one weight for each channel.
    """
    when = phases(graph)
    readers = graph.readers()
    reads: set[str] = set()  # values that reach a weighted layer without an activation between
    bottlenecks = []
    for node in reversed(list(graph)):
        if isinstance(node.module, WEIGHTED) or _stands_alone(graph, node.name):
            if isinstance(node.module, WEIGHTED) and node.name in reads:
                bottlenecks.append(node.name)
            reads.update(node.inputs)
        elif node.name in reads and not isinstance(node.module, ACTIVATIONS):
            reads.update(node.inputs)
    bare = _added_to_spikes(graph, when)
    for name in list(graph.edges):
        if name not in bare and not (name in bottlenecks and when[name] == STEPWISE):
            continue
        after = readers[name]
        place = name
        if len(after) == 1 and isinstance(graph.module(after[0]), NORMS):
            place = after[0]
        graph.insert_behind(place, f"{name}_spikes", Leaky(1.0))


def _added_to_spikes(graph: Graph, when: dict[str, str]) -> set[str]:
    """Weighted layers that read the picture itself and whose output is added to spikes."""
    joined: set[str] = set()
    layers = set()
    for node in reversed(list(graph)):
        phases_read = {when[source] for source in node.inputs}
        if phases_read == {CONSTANT, STEPWISE}:
            joined.update(s for s in node.inputs if when[s] == CONSTANT)
        elif node.name in joined and isinstance(node.module, WEIGHTED):
            layers.add(node.name)
        elif node.name in joined:
            joined.update(node.inputs)
    return layers


def _stands_alone(graph: Graph, name: str) -> bool:
    """Whether a node is a batch norm that cannot be folded into a layer before it."""
    if not isinstance(graph.module(name), NORMS):
        return False
    (source,) = graph.edges[name]
    if source not in graph or not isinstance(graph.module(source), WEIGHTED):
        return True
    return graph.readers()[source] != [name]
