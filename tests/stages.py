"""What several tests need of converted networks: the graph of each stage, and what neurons send."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import estimate_thresholds, largest_activations
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import watching


def quantised(
    network: nn.Module, batches: Sequence[Tensor], T: int, per_channel=False, maxima=False
) -> Graph:
    """The quantised graph of a float network, thresholds estimated on some batches."""
    graph = prepare(network, batches[0])
    if maxima:
        thresholds = largest_activations(graph, batches, per_channel)
    else:
        thresholds = estimate_thresholds(graph, batches, T, per_channel=per_channel)
    quantise(graph, thresholds, T)
    return graph.eval()


def spiking_copy(graph: Graph, **options) -> Graph:
    """The spiking graph of a quantised one, which stays as it is."""
    spiking = copy.deepcopy(graph)
    make_spiking(spiking, **options)
    return spiking


def activations(graph: Graph) -> list[str]:
    """Names of the activations, quantisers or neurons, in the order of execution."""
    return [node.name for node in graph.of(ACTIVATIONS)]


def neurons(graph: Graph) -> list[IFNeuron]:
    """The layers of neurons in the order of execution."""
    return [node.module for node in graph.of((IFNeuron,))]


@contextmanager
def seen_in(graph: Graph, kind: type = IFNeuron) -> Iterator[dict[str, list[Tensor]]]:
    """Outputs of the neurons (or others that know time) of each pass in the block, by name."""
    seen: dict[str, list[Tensor]] = {}

    def watch(now, node, inputs, output):
        if isinstance(node.module, kind):
            seen.setdefault(node.name, []).append(output.detach())

    with watching(graph, watch):
        yield seen
