"""Stage I's network: quantise-clip activations in place of the float ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from spikedet.errors import ConversionError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, Leaky
from spikedet.neurons.quantize import QuantClip


def leak(activation: nn.Module) -> float | tuple[float, ...]:
    """Slope of an activation's negative side."""
    if isinstance(activation, Leaky):
        return activation.slope
    return getattr(activation, "slope", 0.0)


def quantise(
    graph: Graph, thresholds: Mapping[str, Tensor], steps: int, noise: float = 0.1
) -> None:
    """Put a `QuantClip` in place of every activation, in place.

    Args:
        graph: Float.
        thresholds: By the names of the activations' nodes, scalar or [C].
        steps: T.
        noise: Probability that an element is not quantised while training.

    Raises:
        ConversionError: No activation at all.
    """
    activations = graph.of(ACTIVATIONS)
    if not activations:
        raise ConversionError("no activation to convert; the network is linear")
    for node in activations:
        slope = leak(node.module)
        graph.replace(node.name, QuantClip(thresholds[node.name], steps, noise, slope))
