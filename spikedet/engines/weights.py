"""Scale weights by input or output channel, and find the divisors of averages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.graph.operations import Mean, Sum, WeightedLayer

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)  # weight [in, out / groups, ...]


def times_inputs(module: WeightedLayer, amplitude: Tensor) -> Tensor:
    """The weights multiplied by the value of 1 in each input channel [C], float64."""
    return by_inputs(module, module.weight.detach().double().cpu(), amplitude)


def by_inputs(module: WeightedLayer, weight: Tensor, factor: Tensor) -> Tensor:
    """The weights multiplied by a factor for each input channel [C_in]."""
    tail = [1] * (weight.ndim - 2)
    if isinstance(module, TRANSPOSED):
        return weight * factor.view(-1, 1, *tail)
    groups = getattr(module, "groups", 1)
    rows = factor.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
    return weight * rows.reshape(len(weight), -1, *tail)


def by_output(module: WeightedLayer, weight: Tensor) -> Tensor:
    """The weights of each output channel, [C_out, -1]."""
    if not isinstance(module, TRANSPOSED):
        return weight.flatten(1)
    groups = module.groups
    parts = weight.view(groups, len(weight) // groups, weight.shape[1], -1)
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def largest_of(module: WeightedLayer, weight: Tensor) -> Tensor:
    return by_output(module, weight).abs().amax(1)


def most_sum(module: WeightedLayer, weight: Tensor) -> float:
    return by_output(module, weight.long()).abs().sum(1).max().item()


def by_outputs(module: WeightedLayer, weight: Tensor, factor: Tensor) -> Tensor:
    """The weights multiplied by a factor for each output channel [C_out]."""
    tail = [1] * (weight.ndim - 2)
    if not isinstance(module, TRANSPOSED):
        return weight * factor.view(-1, 1, *tail)
    rows = factor.view(module.groups, 1, -1).expand(-1, len(weight) // module.groups, -1)
    return weight * rows.reshape(len(weight), -1, *tail)


def factor_of(module: WeightedLayer) -> Tensor | None:
    """The factors [C] if a layer only multiplies each channel (and adds a bias), else None."""
    weight = module.weight.detach().double().cpu()
    if isinstance(module, nn.Linear):
        diagonal = weight.diagonal()
        square = weight.shape[0] == weight.shape[1]
        return diagonal if square and bool((weight == diagonal.diag()).all()) else None
    alone = module.groups == module.in_channels == module.out_channels
    point = all(size == 1 for size in weight.shape[2:])
    still = all(s == 1 for s in module.stride) and _no_padding(module)
    return weight.flatten() if alone and point and still else None


def _no_padding(module: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d) -> bool:
    return isinstance(module.padding, str) or all(p == 0 for p in module.padding)


def divisors_of(module: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """All divisors of an average of [1, ...]."""
    if isinstance(module, Sum):
        return [1]
    if isinstance(module, Mean):
        return [math.prod(shape[d % len(shape)] for d in module.dims)]
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
        sizes: Any = module.output_size
        dims = 2 if isinstance(module, nn.AdaptiveAvgPool2d) else 1
        sizes = (sizes,) * dims if isinstance(sizes, int) else tuple(sizes)
        wide: list[set[int]] = []
        for size, out in zip(shape[-dims:], sizes, strict=True):
            wide.append({len(window) for window in adaptive_windows(size, out)})
        return sorted({math.prod(pair) for pair in _pairs(wide)})
    ones = torch.ones((1, 1, *shape[2:]), dtype=torch.float64)
    if isinstance(module, nn.AvgPool2d):
        if module.divisor_override:
            return [module.divisor_override]
        summed = F.avg_pool2d(
            ones, module.kernel_size, module.stride, module.padding, module.ceil_mode, True, 1
        )
        divisors = summed / module(ones)
    else:
        assert isinstance(module, nn.AvgPool1d)
        size, stride, padding = (
            v[0] if isinstance(v, tuple) else v
            for v in (module.kernel_size, module.stride, module.padding)
        )
        window = (1, size), (1, stride), (0, padding)
        summed = F.avg_pool2d(ones.unsqueeze(2), *window, module.ceil_mode, True, 1)
        divisors = summed.squeeze(2) / module(ones)
    return sorted({int(v) for v in divisors.round().unique().tolist()})


def adaptive_windows(size: int, out: int | None) -> list[range]:
    """The windows of adaptive pooling along one dimension."""
    out = size if out is None else out
    return [range(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _pairs(sets: list[set[int]]) -> list[tuple[int, ...]]:
    combinations: list[tuple[int, ...]] = [()]
    for values in sets:
        combinations = [(*head, value) for head in combinations for value in values]
    return combinations


def most_of(module: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest value of an average of ones."""
    return module(torch.ones(shape, dtype=torch.float64)).max().item()
