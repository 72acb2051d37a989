"""Handlers of pooling, of means and sums over positions, and of up-sampling."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from spikedet.graph import operations as ops
from spikedet.graph.advice import name_of
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.table.handlers import each, expect_dims, handles, shape_of


@handles("max_pool1d", "max_pool2d")
def max_pool(
    rec: Recorder,
    node: fx.Node,
    x: Signal,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Signal:
    dims = _dims_of(rec, node, x)
    kernel = each(kernel, dims)
    stride = kernel if not stride else each(stride, dims)
    kind = nn.MaxPool2d if dims == 2 else nn.MaxPool1d
    pool = kind(kernel, stride, each(padding, dims), each(dilation, dims), ceil_mode=ceil_mode)
    return rec.emit(node, pool, x, shape=shape_of(node))


@handles("max_pool2d_with_indices", "max_pool1d_with_indices")
def max_pool_with_indices(rec: Recorder, node: fx.Node, x: Signal, *args: Any, **kwargs: Any):
    def indices() -> Signal:
        raise rec.refuse(
            node,
            "the indices of the largest values (return_indices=True) have no spiking "
            "counterpart; use torch.nn.Upsample instead of unpooling",
        )

    return [lambda: max_pool(rec, node, x, *args, **kwargs), indices]


@handles("avg_pool1d", "avg_pool2d")
def avg_pool(
    rec: Recorder,
    node: fx.Node,
    x: Signal,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Signal:
    dims = _dims_of(rec, node, x)
    kernel = each(kernel, dims)
    stride = kernel if not stride else each(stride, dims)
    padding = each(padding, dims)
    pool: nn.Module
    if dims == 2:
        pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    else:
        pool = nn.AvgPool1d(kernel, stride, padding, ceil_mode, count_include_pad)
    return rec.emit(node, pool, x)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d")
def adaptive_avg_pool(rec: Recorder, node: fx.Node, x: Signal, size: Any) -> Signal:
    dims = _dims_of(rec, node, x)
    kind = nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool1d
    size = each(size, dims)
    return rec.emit(node, kind(size if dims == 2 else size[0]), x)


def _dims_of(rec: Recorder, node: fx.Node, x: Signal) -> int:
    """The number of dimensions of a pooling: 1 or 2."""
    dims = 1 if "1d" in name_of(node.target) else 2
    expect_dims(rec, node, x, dims + 2)
    return dims


@handles("mean")
def mean(rec: Recorder, node: fx.Node, x: Signal, dims: Any = None, keepdim=False, **k) -> Signal:
    return rec.emit(node, ops.Mean(_dims(rec, node, x, dims), keepdim), x)


@handles("sum")
def total(rec: Recorder, node: fx.Node, x: Signal, dims: Any = None, keepdim=False, **k) -> Signal:
    return rec.emit(node, ops.Sum(_dims(rec, node, x, dims), keepdim), x)


def _dims(rec: Recorder, node: fx.Node, x: Signal, dims: Any) -> list[int]:
    """The dimensions as numbers counted from the front; all dimensions if none are given."""
    if dims is None or dims == []:
        dims = list(range(x.ndim))
    dims = [dims] if isinstance(dims, int) else dims
    axes = [d % x.ndim for d in dims]
    if 0 in axes:
        raise rec.refuse(
            node,
            "a sum or mean over the pictures of a batch has no spiking "
            "counterpart; leave out dimension 0",
        )
    return axes


@handles("upsample_nearest1d", "upsample_nearest2d")
def upsample(rec: Recorder, node: fx.Node, x: Signal, size: Any, *scales: Any) -> Signal:
    return _upsample(rec, node, x, size, scales, "nearest")


@handles("_upsample_nearest_exact1d", "_upsample_nearest_exact2d")
def upsample_exact(rec: Recorder, node: fx.Node, x: Signal, size: Any, *scales: Any) -> Signal:
    return _upsample(rec, node, x, size, scales, "nearest-exact")


def _upsample(rec, node: fx.Node, x: Signal, size: Any, scales: Any, mode: str) -> Signal:
    scales = [s for s in _flat(scales) if s is not None]
    if scales:
        return rec.emit(node, nn.Upsample(scale_factor=tuple(scales), mode=mode), x)
    return rec.emit(node, nn.Upsample(size=tuple(int(s) for s in size), mode=mode), x)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flat(part)]
    return [value]
