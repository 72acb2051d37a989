"""Batch norm into convolution, thresholds into weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikedet.conversion.trace import NORMS, WEIGHTED, Trace, fill, slots, store, trace
from spikedet.errors import ConversionError
from spikedet.neurons.layers import IFNeuron


def set_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


@torch.no_grad()
def fold_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Fold each batch norm into the weighted layer before it, in place (eq 5).

    Args:
        network: In evaluation mode.
        example: Input [B, C, H, W].

    Raises:
        ConversionError: A batch norm that does not directly follow a weighted layer of its own.
    """
    record = trace(network, example, strict=False)
    made_by = {slot: call for call in record.of(WEIGHTED) for slot in slots(call.result)}
    readers: dict[int, int] = {}
    for call in record.calls:
        for slot in call.inputs:
            readers[slot] = readers.get(slot, 0) + 1
    for call in record.of(NORMS):
        source = call.inputs[0]
        if source not in made_by or readers[source] != 1:
            raise ConversionError(
                f"{call.where}: batch norm does not directly follow a convolution or a linear "
                "layer of its own, so it cannot be folded"
            )
        _fold(made_by[source].module, call.module)
        set_module(network, call.where, nn.Identity())


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale *= norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift += norm.bias.double()
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        shift += layer.bias.double() * scale
    layer.weight.data = weight.to(layer.weight.dtype)
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype))


@torch.no_grad()
def fold_thresholds(network: nn.Module, record: Trace) -> None:
    """Scale weights so that 0/1 travels between layers, in place.

    A neuron's spike stands for theta. Which theta an input channel of a layer carries is found by
    a probe: each neuron sends its theta on every channel, and the probe follows the wires through
    up-sampling, pooling, slices and concatenations.

    Args:
        network: With `IFNeuron` in place of every activation.
        record: Its trace.

    Raises:
        ConversionError: An input channel on which spikes of different thresholds are mixed.
    """
    tensors: dict[int, Tensor] = {}
    folded: dict[nn.Module, Tensor] = {}
    for call in record.calls:
        if isinstance(call.module, IFNeuron):
            number = next(slots(call.result))
            shape = record.shapes[number]
            theta = call.module.threshold
            theta = theta.view(1, -1, *[1] * (len(shape) - 2)) if theta.ndim else theta
            tensors[number] = theta.expand(shape)
        elif isinstance(call.module, WEIGHTED):
            if call.inputs[0] in tensors:
                scale = _channel_scale(tensors[call.inputs[0]], call.where)
                _scale_inputs(call, scale, folded)
        elif all(number in tensors for number in call.inputs):
            value = call.function(*fill(call.args, tensors), **fill(call.kwargs, tensors))
            store(call.result, value, tensors)


def _scale_inputs(call, scale: Tensor, folded: dict[nn.Module, Tensor]) -> None:
    layer = call.module
    if layer in folded:
        if not torch.allclose(folded[layer], scale):
            raise ConversionError(
                f"{call.where}: this layer reads spikes of different thresholds at its two places; "
                "give each place a layer of its own"
            )
        return
    folded[layer] = scale
    if getattr(layer, "groups", 1) > 1:
        per_group = scale.view(layer.groups, 1, -1)
        rows = per_group.expand(-1, len(layer.weight) // layer.groups, -1)
        scale = rows.reshape(len(layer.weight), -1)
    else:
        scale = scale[None]
    layer.weight *= scale.view(*scale.shape, *[1] * (layer.weight.ndim - 2))


def _channel_scale(probe: Tensor, where: str) -> Tensor:
    """[B, C, ...] -> [C], refusing a channel whose value differs from place to place."""
    flat = probe[0].reshape(probe.shape[1], -1)
    low, high = flat.min(1).values, flat.max(1).values
    if not torch.allclose(low, high, rtol=1e-5):
        raise ConversionError(
            f"{where}: spikes of different thresholds meet on one input channel; tie the "
            "thresholds of the layers that are added before it"
        )
    return high
