"""Constant currents into a layer of neurons, stored in the bias of the layer before them."""

from __future__ import annotations

import torch
from torch import nn

from spikedet.conversion.stored import Site, StoredOutputs
from spikedet.errors import ConversionError
from spikedet.graph.graph import INPUT, Graph


def own_bias(student: StoredOutputs, site: Site) -> nn.Parameter:
    """Find the bias [C] that changes the current into the neurons of `site`, and of no others.

    If several layers feed the neurons, as at the end of a residual block, it is the bias of the
    last layer.

    Raises:
        ConversionError: There is no such layer, for example if several neurons read one sum.
    """
    elsewhere = {layer for other in student.sites if other is not site for layer in other.layers}
    channels = student.graph.shapes[site.node.inputs[0]][1]
    for layer in site.layers:  # the last first
        if layer.bias is None or len(layer.bias) != channels:
            continue
        if layer not in elsewhere and site.layers.count(layer) == 1:
            assert isinstance(layer.bias, nn.Parameter)
            return layer.bias
    raise ConversionError(
        f"{site.node.name}: this method adds a constant current to a bias, but no layer "
        "with a bias feeds only these neurons; choose another method"
    )


@torch.no_grad()
def shift_currents(graph: Graph, T: int) -> None:
    """Add theta / (2 T) to the current of every neuron in every step, in place.

    The method is of Deng and Gu (ICLR 2021). With this shift and an initial potential of 0, a
    constant current gives the rate clip(floor(x T / theta + 1/2) / T, 0, 1) after T steps. Without
    the shift, an initial potential of theta / 2 gives the same rate (eq 16). After fewer than T
    steps the shift gives a lower rate.

    Args:
        graph: Spiking graph (see `make_spiking`) with initial potentials of 0.
        T: Time steps that the shift is made for.

    Raises:
        ConversionError: A layer has no bias of its own (see `own_bias`).
    """
    student = StoredOutputs(graph, [torch.zeros(graph.shapes[INPUT])], T)
    for site in student.sites:
        if site.is_neuron:
            own_bias(student, site).data += site.neuron.threshold / (2 * T)
