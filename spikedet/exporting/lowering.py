"""What operations of a graph do to places, in numbers that other programs take."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from spikedet.engines.weights import adaptive_windows
from spikedet.graph.operations import Mean, Sum
from spikedet.neurons.layers import SpikingMaxPool

Shape = tuple[int, ...]
Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


def each(value: Any, dims: int) -> tuple[int, ...]:
    """An option that is one number for all dimensions, or one for each."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def padding_of(layer: Convolution) -> list[tuple[int, int]]:
    """Zeros before and behind each dimension of a convolution's input."""
    kernel, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "valid":
        return [(0, 0)] * len(kernel)
    if isinstance(layer.padding, str):  # same
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(both // 2, both - both // 2) for both in total]
    return [(p, p) for p in layer.padding]


def windows(module: nn.Module, shape: Shape, out: Shape) -> list[tuple[int, list[list[int]]]]:
    """The entries of [1, ...] that each output of a pooling comes from, axis by axis.

    Args:
        module: Of the maximum, an average, or a mean or sum over dimensions.
        shape: Of its input.
        out: Of its output; for a mean that drops dimensions as if it kept them.
    """
    if isinstance(module, Mean | Sum):
        return [(d % len(shape), [list(range(shape[d]))]) for d in module.dims]
    axes = range(2, len(shape))
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
        return [(a, [list(w) for w in adaptive_windows(shape[a], out[a])]) for a in axes]
    dims = len(shape) - 2
    kernel, padding = each(module.kernel_size, dims), each(module.padding, dims)
    stride = each(module.stride, dims)
    dilation = each(getattr(module, "dilation", 1), dims)
    result = []
    for axis, k, s, p, d in zip(axes, kernel, stride, padding, dilation, strict=True):
        starts = [o * s - p for o in range(out[axis])]
        taken = [[start + i * d for i in range(k)] for start in starts]
        result.append((axis, [[i for i in line if 0 <= i < shape[axis]] for line in taken]))
    return result


def window_factors(module: nn.Module, shape: Shape) -> Tensor:
    """What the sum of each window is multiplied with in an average, [1, 1, ...] float64.

    The shape is that of the output, a mean's as if it kept its dimensions.
    """
    ones = torch.ones((1, 1, *shape[2:]), dtype=torch.float64)
    if isinstance(module, Mean | Sum):
        over = math.prod(shape[d] for d in module.dims)
        return torch.full((1,) * len(shape), 1.0 if isinstance(module, Sum) else 1 / over).double()
    averaged = module(ones)
    result = torch.ones_like(averaged)
    for axis, lines in windows(module, shape, tuple(averaged.shape)):
        number = torch.tensor([len(line) for line in lines], dtype=torch.float64)
        result = result * number.view(-1, *[1] * (averaged.ndim - axis - 1))
    return averaged / result


def kept(module: nn.Module, shape: Shape, out: Shape) -> Shape:
    """The shape of an average's output before dimensions of size 1 are dropped."""
    if isinstance(module, Mean | Sum) and not module.keepdim:
        over = [d % len(shape) for d in module.dims]
        return tuple(1 if d in over else size for d, size in enumerate(shape))
    return out


def is_max_pool(module: nn.Module) -> bool:
    """Whether a module pools the maximum, of values or of counts."""
    return isinstance(module, nn.MaxPool1d | nn.MaxPool2d | SpikingMaxPool)
