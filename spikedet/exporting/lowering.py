"""Describe the windows and padding of graph operations by numbers that other programs use."""

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
    """Expand an option to one number for each dimension."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def padding_of(layer: Convolution) -> list[tuple[int, int]]:
    """The number of zeros before and after each dimension of a convolution's input."""
    kernel, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "valid":
        return [(0, 0)] * len(kernel)
    if isinstance(layer.padding, str):  # same
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(both // 2, both - both // 2) for both in total]
    return [(p, p) for p in layer.padding]


def windows(module: nn.Module, shape: Shape, out: Shape) -> list[tuple[int, list[list[int]]]]:
    """The entries of the input [1, ...] that each output of pooling reads, for each axis.

    Args:
        module: Max-pooling, average pooling, or a mean or sum over dimensions.
        shape: Shape of its input.
        out: Shape of its output. For a mean that drops dimensions: the shape with them kept.
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
    """The factor for the sum of each window in an average, [1, 1, ...] float64.

    The shape is that of the output. For a mean it is the shape with the dimensions kept.
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
    """Whether a module is max-pooling, of values or of spike counts."""
    return isinstance(module, nn.MaxPool1d | nn.MaxPool2d | SpikingMaxPool)


def channels(value: Tensor, ndim: int) -> Tensor:
    """Reshape a scalar, [C] or [C, H, W] so that it broadcasts to [B, C, ...]."""
    value = value.detach().float()
    return value.view(1, -1, *[1] * (ndim - 2)) if value.ndim == 1 else value
