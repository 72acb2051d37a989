"""The supported operations: handlers translate operations of torch.export to those of a graph.

A handler is called with the recorder, the exported node, and the arguments of the node. An argument
is a `Signal` if it depends on the picture. Otherwise it is a tensor or a number. The handler adds
nodes to the graph and returns the signal of the last one. To support another operation, add a
handler to a file here. If no operation of the graph does what it needs, also add a kind to
`operations`.
"""

from spikedet.graph.table import activations, parts, pooling, shapes, sums, weights
from spikedet.graph.table.handlers import HANDLERS, Signal, handles

__all__ = [
    "HANDLERS",
    "Signal",
    "activations",
    "handles",
    "parts",
    "pooling",
    "shapes",
    "sums",
    "weights",
]
