"""Constant currents into the neurons of one layer, kept in the biases of what feeds them."""

from __future__ import annotations

import torch
from torch import nn

from spikedet.conversion.stored import Site, Stored
from spikedet.errors import ConversionError
from spikedet.graph.graph import INPUT, Graph


def own_bias(student: Stored, site: Site) -> nn.Parameter:
    """Bias [C] whose change is a change of the current into the neurons of `site`, and no others.

    Where several layers feed them, as at the end of a residual block, it is that of the last one.

    Raises:
        ConversionError: No such layer, as where a sum is read by several neurons.
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

    Deng and Gu (ICLR 2021). A constant current then gives the rate clip(floor(x T / theta + 1/2)
    / T, 0, 1) after T steps from a potential of 0, as it does without the shift from theta / 2
    (eq 16); after fewer steps it gives less.

    Args:
        graph: Spiking (see `make_spiking`), starting at 0.
        T: Time steps at which the shift is the best one.

    Raises:
        ConversionError: As `own_bias`.
    """
    student = Stored(graph, [torch.zeros(graph.shapes[INPUT])], T)
    for site in student.sites:
        if site.is_neuron:
            own_bias(student, site).data += site.neuron.threshold / (2 * T)
