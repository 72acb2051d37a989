"""Prepare the graph of a float network for `quantise`."""

from __future__ import annotations

from torch import Tensor, nn

from spikedet.errors import ConversionError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.linear_bottlenecks import spike_linear_bottlenecks


def prepare(network: nn.Module, example: Tensor, fold: bool = True) -> Graph:
    """Record a float network and make its graph ready for `quantise`.

    Args:
        network: The float network, which is not changed. If it is a `Graph`, it is changed in place
            and not copied.
        example: Input [B, ...].
        fold: Fold batch norm now. If False, batch norm is kept and trained together with the
            quantisers. Then call `fold_batch_norm` later.

    Returns:
        The graph. Each activation is a separate node, and linear bottlenecks have an activation
        too.

    Raises:
        ConversionError: An operation cannot be converted. The message names it.
    """
    graph = network if isinstance(network, Graph) else record(network, example)
    if not graph.of(ACTIVATIONS):
        raise ConversionError(f"{type(network).__name__}: no activation to convert")
    if fold:
        fold_batch_norm(graph)
    spike_linear_bottlenecks(graph)
    return graph
