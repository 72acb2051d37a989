"""Replace float activations by quantise-clip activations (stage I)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from spikedet.errors import ConversionError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, Leaky
from spikedet.neurons.quantize import QuantClip


def leak(activation: nn.Module) -> float | tuple[float, ...]:
    """The slope of the negative side of an activation."""
    if isinstance(activation, Leaky):
        return activation.slope
    return getattr(activation, "slope", 0.0)


def quantise(
    graph: Graph, thresholds: Mapping[str, Tensor], steps: int, noise: float = 0.1
) -> None:
    """Replace every activation by a `QuantClip`, in place.

    Args:
        graph: Float graph.
        thresholds: Thresholds by the name of the activation's node, scalars or [C].
        steps: Time steps T.
        noise: Probability that an element is not quantised in training (eq 14).

    Raises:
        ConversionError: The graph has no activation.
    """
    activations = graph.of(ACTIVATIONS)
    if not activations:
        raise ConversionError("no activation to convert; the network is linear")
    for node in activations:
        slope = leak(node.module)
        graph.replace(node.name, QuantClip(thresholds[node.name], steps, noise, slope))
