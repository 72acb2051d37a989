"""Fold batch norm into the weights before it (eq 5), or replace it by a separate layer."""

from __future__ import annotations

import torch
from torch import nn

from spikedet.graph.graph import Graph
from spikedet.graph.operations import NORMS, WEIGHTED, NormLayer, WeightedLayer


@torch.no_grad()
def fold_batch_norm(graph: Graph) -> None:
    """Fold every batch norm, in place.

    If a batch norm directly follows a weighted layer, and nothing else reads that layer, it is
    folded into the layer. Any other batch norm is an affine map of each channel. It becomes a 1x1
    convolution with one group for each channel. An example is a batch norm at the start of a block
    in a pre-activation network.
    """
    readers = graph.readers()
    for name in [node.name for node in graph.of(NORMS)]:
        node = graph.node(name)  # as it is now: one before it may be gone
        (source,), norm = node.inputs, node.module
        assert isinstance(norm, NORMS)
        before = graph.module(source) if source in graph else None
        alone = readers[source] == [node.name] and source not in graph.outputs
        if isinstance(before, WEIGHTED) and alone:
            fold(before, norm)
            graph.remove(node.name)
            readers = graph.readers()
        else:
            graph.replace(node.name, _affine(norm, len(graph.shapes[source])))


@torch.no_grad()
def fold(layer: WeightedLayer, norm: NormLayer) -> None:
    """Change a weighted layer so that it also computes the batch norm after it (eq 5)."""
    scale, shift = _scale_and_shift(norm)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):  # weight [in, out / groups, ...]
        groups = layer.groups
        rows = scale.view(groups, -1).repeat_interleave(layer.in_channels // groups, 0)
        factor = rows.view(layer.in_channels, -1, *[1] * (layer.weight.ndim - 2))
    else:
        factor = scale.view(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        shift = shift + layer.bias.double() * scale
    layer.weight.data = (layer.weight.double() * factor).to(layer.weight.dtype)
    trains = layer.weight.requires_grad
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=trains)


def _scale_and_shift(norm: NormLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the shift of a batch norm in evaluation mode, [C] each, float64."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # recording refuses one without them
    scale = (variance.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    return scale, shift + norm.bias.double() if norm.affine else shift


def _affine(norm: NormLayer, ndim: int) -> nn.Module:
    """A 1x1 convolution that computes the same as a batch norm on [B, C, ...]."""
    scale, shift = _scale_and_shift(norm)
    channels = len(scale)
    if ndim == 2:
        layer = nn.utils.skip_init(nn.Linear, channels, channels)
        weight = scale.diag()
    else:
        kind = nn.Conv2d if ndim == 4 else nn.Conv1d
        layer = nn.utils.skip_init(kind, channels, channels, 1, groups=channels)
        weight = scale.view(-1, 1, *[1] * (ndim - 2))
    layer.weight = nn.Parameter(weight.float())
    layer.bias = nn.Parameter(shift.float())
    return layer
