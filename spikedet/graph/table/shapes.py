"""Handlers of operations that change only the shape of a value, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikedet.graph import operations as ops
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.table.handlers import handles, is_signal, shape_of
from spikedet.graph.table.sums import shifted


@handles("view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as")
def reshape(rec: Recorder, node: fx.Node, x: Signal, *sizes: Any) -> Signal:
    shape = shape_of(node)
    tail: list[int] = []
    for size in shape[1:]:
        if not isinstance(size, int):
            break
        tail.append(size)
    if len(tail) < len(shape) - 1:
        raise rec.refuse(
            node,
            f"a shape {[str(s) for s in shape]} that mixes the number of pictures "
            "with other sizes; keep the pictures apart, for example with x.flatten(1)",
        )
    asked = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else ()
    if len(asked) == len(shape) and -1 in asked[1:]:  # fits pictures of other sizes, too
        tail = [-1 if size == -1 else t for size, t in zip(asked[1:], tail, strict=True)]
    return rec.emit(node, ops.Reshape(tail), x)


@handles("flatten")
def flatten(rec: Recorder, node: fx.Node, x: Signal, start: int = 0, end: int = -1) -> Signal:
    start, end = start % x.ndim, end % x.ndim
    if start == 0 and end > 0:
        raise rec.refuse(
            node,
            "flatten mixes the pictures of a batch; flatten from dimension 1 on, with x.flatten(1)",
        )
    return rec.emit(node, nn.Flatten(start, end), x)


@handles("squeeze")
def squeeze(rec: Recorder, node: fx.Node, x: Signal, dims: Any = None) -> Signal:
    if isinstance(dims, int):
        dims = [dims]
    shape = shape_of(node)
    if len(shape) == x.ndim:
        return x
    if dims is not None and len(dims) == 1:
        return rec.emit(node, ops.Squeeze(dims[0] % x.ndim), x)
    return rec.emit(node, ops.Reshape([int(s) for s in shape[1:]]), x)


@handles("unsqueeze")
def unsqueeze(rec: Recorder, node: fx.Node, x: Signal, dim: int) -> Signal:
    return rec.emit(node, ops.Unsqueeze(dim % (x.ndim + 1)), x)


def _permutes(name: str, call: Callable[..., Tensor]) -> None:
    """Register a handler for an operation that only changes the order of dimensions."""

    def handler(rec: Recorder, node: fx.Node, x: Signal, *args: Any) -> Signal:
        marks = torch.empty([d + 2 for d in range(x.ndim)], device="meta")
        order = [size - 2 for size in call(marks, *args).shape]
        return x if order == sorted(order) else rec.emit(node, ops.Permute(order), x)

    handles(name)(handler)


for _name in (
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "t",
    "adjoint",
):
    _permutes(_name, getattr(torch, _name))
_permutes("numpy_T", lambda x: x.permute(*range(x.ndim - 1, -1, -1)))
_permutes("mT", lambda x: x.mT)


@handles("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "identity")
def unchanged(rec: Recorder, node: fx.Node, x: Signal, *_: Any, **__: Any) -> Signal:
    return x


@handles("to", "_to_copy", "type_as", "float")
def cast(rec: Recorder, node: fx.Node, x: Signal, *_: Any, **__: Any) -> Signal:
    source = next(n for n in node.all_input_nodes if is_signal(rec.values.get(n)))
    if node.meta["val"].dtype != source.meta["val"].dtype:
        raise rec.refuse(
            node,
            f"values become {node.meta['val'].dtype}, which has no spiking "
            "counterpart; remove this change of the number format",
        )
    return x


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(rec: Recorder, node: fx.Node, x: Signal, p: float, train: bool) -> Signal:
    if train:
        raise rec.refuse(node, "dropout that is active in evaluation; pass training=self.training")
    return x


@handles("expand", "expand_as")
def expand(rec: Recorder, node: fx.Node, x: Signal, *_: Any, **__: Any) -> Signal:
    shape = shape_of(node)
    if len(shape) != x.ndim or shape[1:] != x.shape[1:]:
        raise rec.refuse(
            node,
            "values are repeated by expand, which has no counterpart in a graph; "
            "use torch.nn.Upsample, or add tensors of unlike sizes directly",
        )
    return x


@handles("pad", "constant_pad_nd")
def pad(rec, node: fx.Node, x: Signal, around: Sequence[int], mode: Any = None, value: Any = None):
    if not isinstance(mode, str):
        mode, value = "constant", mode if mode is not None else value
    padded = _pad(rec, node, x, around, mode)
    if mode == "constant" and value:
        inside = torch.zeros([1, *map(int, x.shape[1:])])
        offset = F.pad(inside, list(around), value=float(value))
        padded = shifted(rec, node, padded, offset)
    return padded


def _pad(rec: Recorder, node: fx.Node, x: Signal, around: Sequence[int], mode: str) -> Signal:
    """Add padding, as a separate operation or as part of a convolution."""
    path, kind = rec.place(node)
    name = f"{path}_pad" if ".conv." in kind else None
    return rec.emit(node, ops.Pad(list(around), mode), x, name=name)


def _padded(name: str, mode: str) -> None:
    """Register a handler for padding that copies values."""

    def handler(rec: Recorder, node: fx.Node, x: Signal, around: Sequence[int]) -> Signal:
        return _pad(rec, node, x, around, mode)

    handles(name)(handler)


for _mode, _short in (("reflect", "reflection"), ("replicate", "replication")):
    for _places in (1, 2):
        _padded(f"{_short}_pad{_places}d", _mode)


@handles("pixel_shuffle")
def pixel_shuffle(rec: Recorder, node: fx.Node, x: Signal, factor: int) -> Signal:
    return rec.emit(node, nn.PixelShuffle(factor), x)


@handles("pixel_unshuffle")
def pixel_unshuffle(rec: Recorder, node: fx.Node, x: Signal, factor: int) -> Signal:
    return rec.emit(node, nn.PixelUnshuffle(factor), x)


@handles("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(rec: Recorder, node: fx.Node, x: Signal, groups: int) -> Signal:
    return rec.emit(node, nn.ChannelShuffle(groups), x)
