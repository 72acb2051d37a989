"""Handlers that join and split tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from spikedet.graph import operations as ops
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.table.handlers import handles, is_signal


@handles("cat", "concat", "concatenate")
def concatenate(rec: Recorder, node: fx.Node, tensors: Sequence[Any], dim: int = 0) -> Signal:
    signals = _signals(rec, node, tensors)
    return rec.emit(node, ops.Concatenate(dim % signals[0].ndim), *signals)


@handles("stack")
def stack(rec: Recorder, node: fx.Node, tensors: Sequence[Any], dim: int = 0) -> Signal:
    signals = _signals(rec, node, tensors)
    return rec.emit(node, ops.Stack(dim % (signals[0].ndim + 1)), *signals)


def _signals(rec: Recorder, node: fx.Node, tensors: Sequence[Any]) -> Sequence[Signal]:
    if not all(is_signal(tensor) for tensor in tensors):
        raise rec.refuse(
            node,
            "a constant is concatenated with a signal; make the constant with a layer with a bias",
        )
    return tensors


@handles("chunk")
def chunk(rec: Recorder, node: fx.Node, x: Signal, chunks: int, dim: int = 0) -> list[Any]:
    size = _size(rec, node, x, dim)
    return split(rec, node, x, -(-size // chunks), dim)


@handles("split", "split_with_sizes", "unsafe_split", "unsafe_chunk")
def split(rec: Recorder, node: fx.Node, x: Signal, sizes: Any, dim: int = 0) -> list[Any]:
    total = _size(rec, node, x, dim)
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    d = dim % x.ndim
    path, _ = rec.place(node)

    def part(start: int, size: int) -> Callable[[], Signal]:
        shape = (*x.shape[:d], size, *x.shape[d + 1 :])
        name = f"{path}.slice" if path else "slice"
        module = ops.Slice(d, start, start + size)
        return lambda: rec.emit(node, module, x, name=name, shape=shape)

    return [part(start, size) for start, size in zip(starts, sizes, strict=True)]


@handles("unbind")
def unbind(rec: Recorder, node: fx.Node, x: Signal, dim: int = 0) -> list[Any]:
    size, d = _size(rec, node, x, dim), dim % x.ndim
    shape = (*x.shape[:d], *x.shape[d + 1 :])
    return [lambda i=i: rec.emit(node, ops.Select(d, i), x, shape=shape) for i in range(size)]


def _size(rec: Recorder, node: fx.Node, x: Signal, dim: int) -> int:
    if dim % x.ndim == 0:
        raise rec.refuse(
            node,
            "the batch is split into its pictures, which has no spiking "
            "counterpart; split another dimension",
        )
    return int(x.shape[dim])


@handles("slice")
def slice_(rec, node: fx.Node, x: Signal, dim=0, start=None, end=None, step=1) -> Signal:
    d = dim % x.ndim
    start = start or 0
    if not isinstance(end, int) or end >= 2**62:
        end = None  # to the end, at any size
    if (start, end, step) == (0, None, 1):
        return x
    if (start, end, step) == (0, _size(rec, node, x, dim), 1):
        return x
    return rec.emit(node, ops.Slice(d, start, end, step), x)


@handles("narrow")
def narrow(rec: Recorder, node: fx.Node, x: Signal, dim: int, start: int, length: int) -> Signal:
    end = start + length
    return slice_(rec, node, x, dim, start, None if start < 0 and end == 0 else end)


@handles("select")
def select(rec: Recorder, node: fx.Node, x: Signal, dim: int, index: int) -> Signal:
    _size(rec, node, x, dim)
    return rec.emit(node, ops.Select(dim % x.ndim, index), x)
