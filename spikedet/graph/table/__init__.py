"""What converts: for each operation of torch.export the operations of the graph that it becomes.

A handler is called with the recorder, the exported node, and its arguments: `Signal`s for tensors
that depend on the picture, tensors for those that do not, numbers. It emits nodes and returns the
signal of the last one. To let another operation convert, add a handler in a file here, and a
kind in `operations` where none does what it needs.
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
