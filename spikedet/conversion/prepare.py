"""From a float network to the graph that `quantise` takes."""

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
        network: Left as it is. A graph is taken as it stands, and copied by nobody.
        example: Input [B, ...].
        fold: Fold batch norm now. Else it stays to be trained together with the quantisers, and
            `fold_batch_norm` is for later.

    Returns:
        The graph, every activation of its own, linear bottlenecks with one as well.

    Raises:
        ConversionError: Names what cannot be converted.
    """
    graph = network if isinstance(network, Graph) else record(network, example)
    if not graph.of(ACTIVATIONS):
        raise ConversionError(f"{type(network).__name__}: no activation to convert")
    if fold:
        fold_batch_norm(graph)
    spike_linear_bottlenecks(graph)
    return graph
