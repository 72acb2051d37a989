"""Handlers of convolutions, linear layers and batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spikedet.graph import operations as ops
from spikedet.graph.advice import ATTENTION, GATE
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.table.handlers import each, expect_dims, handles, is_signal


@handles("conv1d", "conv2d")
def convolution(
    rec: Recorder,
    node: fx.Node,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Signal:
    if is_signal(weight) or is_signal(bias):
        raise rec.refuse(node, f"a weight depends on the picture; {GATE}")
    dims = weight.ndim - 2
    expect_dims(rec, node, x, dims + 2)
    stride, dilation = each(stride, dims), each(dilation, dims)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        total = [0] * dims if padding == "valid" else total
        if any(t % 2 for t in total):
            around = [n for t in reversed(total) for n in (t // 2, t - t // 2)]
            shape = (*x.shape[:2], *(s + t for s, t in zip(x.shape[2:], total, strict=True)))
            name = f"{rec.name(node, weight)}_pad"
            x = rec.emit(node, ops.Pad(around), x, name=name, shape=shape)
            total = [0] * dims
        padding = [t // 2 for t in total]
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    layer = nn.utils.skip_init(
        kind,
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride,
        each(padding, dims),
        dilation,
        groups,
        bias is not None,
    )
    return _weighted(rec, node, layer, x, weight, bias)


@handles("conv_transpose1d", "conv_transpose2d")
def transposed_convolution(
    rec: Recorder,
    node: fx.Node,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Signal:
    if is_signal(weight) or is_signal(bias):
        raise rec.refuse(node, f"a weight depends on the picture; {GATE}")
    dims = weight.ndim - 2
    expect_dims(rec, node, x, dims + 2)
    kind = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose1d
    layer = nn.utils.skip_init(
        kind,
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        each(stride, dims),
        each(padding, dims),
        each(output_padding, dims),
        groups,
        bias is not None,
        each(dilation, dims),
    )
    return _weighted(rec, node, layer, x, weight, bias)


@handles("linear")
def linear(
    rec: Recorder, node: fx.Node, x: Signal, weight: Tensor, bias: Tensor | None = None
) -> Signal:
    if is_signal(weight) or is_signal(bias):
        raise rec.refuse(node, f"a weight depends on the picture; {GATE}")
    if weight.ndim != 2:
        raise rec.refuse(
            node, f"a linear layer with weights {list(weight.shape)}; expected two dimensions"
        )
    if x.ndim == 2:
        layer = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias is not None)
        return _weighted(rec, node, layer, x, weight, bias)
    if x.ndim not in (3, 4):
        raise rec.refuse(node, f"a linear layer on {x.ndim} dimensions; expected 2, 3 or 4")
    # features in the last place: a 1x1 convolution with features in the second
    name = rec.name(node, weight)
    last = x.ndim - 1
    first, back = (0, last, *range(1, last)), (0, *range(2, x.ndim), 1)
    x = rec.emit(
        node, ops.Permute(first), x, name=f"{name}_in", shape=tuple(x.shape[d] for d in first)
    )
    kind = nn.Conv1d if last == 2 else nn.Conv2d
    layer = nn.utils.skip_init(kind, weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    weight_there = weight.view(*weight.shape, *[1] * (last - 1))
    product = _weighted(
        rec,
        node,
        layer,
        x,
        weight_there,
        bias,
        name=name,
        shape=(x.shape[0], weight.shape[0], *x.shape[2:]),
    )
    return rec.emit(node, ops.Permute(back), product, name=f"{name}_out")


@handles("matmul", "mm")
def product(rec: Recorder, node: fx.Node, x: Any, weight: Any) -> Signal:
    if not is_signal(x) or is_signal(weight) or weight.ndim != 2:
        raise rec.refuse(node, f"this product has no spiking counterpart; {ATTENTION}")
    return linear(rec, node, x, weight.t())


@handles("addmm")
def biased_product(rec: Recorder, node: fx.Node, bias: Any, x: Any, weight: Any, **k) -> Signal:
    if is_signal(bias) or not is_signal(x) or is_signal(weight) or k:
        raise rec.refuse(node, f"this product has no spiking counterpart; {ATTENTION}")
    return linear(rec, node, x, weight.t(), bias.reshape(-1).expand(weight.shape[1]))


def _weighted(
    rec: Recorder,
    node: fx.Node,
    layer: nn.Module,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None,
    name: str | None = None,
    shape: tuple[Any, ...] | None = None,
) -> Signal:
    """Add a layer with copies of its tensors."""
    layer.to(weight.device)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().reshape(-1).clone())
    added = rec.emit(node, layer, x, name=name or rec.name(node, weight), shape=shape)
    return rec.copied(added, weight=weight, bias=bias)


@handles("batch_norm")
def batch_norm(
    rec: Recorder,
    node: fx.Node,
    x: Signal,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Signal:
    if training or mean is None or var is None:
        raise rec.refuse(
            node,
            "a batch norm that computes its statistics from each batch has no spiking counterpart; "
            "train it with track_running_stats=True",
        )
    if x.ndim not in (2, 3, 4):
        raise rec.refuse(node, f"a batch norm on {x.ndim} dimensions; expected 2, 3 or 4")
    norm = _norm(x, weight, bias, mean, var, momentum, eps)
    added = rec.emit(node, norm, x, name=rec.name(node, mean))
    return rec.copied(added, weight=weight, bias=bias, running_mean=mean, running_var=var)


@handles("_native_batch_norm_legit_no_training")
def batch_norm_without_training(rec, node, x, weight, bias, mean, var, momentum, eps) -> list:
    norm = _norm(x, weight, bias, mean, var, momentum, eps)

    def add() -> Signal:
        added = rec.emit(node, norm, x, name=rec.name(node, mean), shape=x.shape)
        return rec.copied(added, weight=weight, bias=bias, running_mean=mean, running_var=var)

    return [add]


def _norm(
    x: Signal,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> nn.Module:
    """Make a batch norm with copies of these tensors."""
    affine = weight is not None or bias is not None
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    # momentum=None is recorded as 0; with 0 the statistics would never move in stage I
    norm = kind(len(mean), eps, momentum or 0.1, affine).to(mean.device)
    assert norm.running_mean is not None and norm.running_var is not None  # it tracks both
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    if affine:
        norm.weight.data.copy_(torch.ones_like(mean) if weight is None else weight)
        norm.bias.data.copy_(torch.zeros_like(mean) if bias is None else bias)
    return norm


@handles("_native_batch_norm_legit", "native_batch_norm", "_native_batch_norm_legit_functional")
def batch_norm_of_batch(rec: Recorder, node: fx.Node, *_: Any, **__: Any) -> Signal:
    raise rec.refuse(
        node,
        "a batch norm that computes its statistics from each batch has no spiking counterpart; "
        "train it with track_running_stats=True",
    )
