"""Networks for tests of exporters."""

import copy

from spikedet.graph.operations import WEIGHTED
from spikedet.neurons.layers import IFNeuron, per_channel


def fresh(network):
    """A copy with weights drawn anew."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


def dyadic(graph, bits=4):
    """Weights, thresholds and potentials that float32 adds without rounding, in any order."""
    for node in graph:
        if isinstance(node.module, WEIGHTED):
            for tensor in node.module.parameters():
                tensor.data = (tensor.data * 2**bits).round() / 2**bits
        if isinstance(node.module, IFNeuron):
            node.module.threshold = 2.0 ** node.module.threshold.log2().round()
            initial = node.module.initial
            each = per_channel(node.module.threshold, initial.ndim + 1)
            node.module.initial.data = (initial / each * 8).round() / 8 * each
    return graph
