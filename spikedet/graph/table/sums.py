"""Handlers of sums, and of products with constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spikedet.graph import operations as ops
from spikedet.graph.advice import GATE
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.table.handlers import handles, is_signal


@handles("add")
def add(rec: Recorder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Signal:
    if is_signal(x) and is_signal(y):
        return rec.emit(node, ops.Add(), x, _scaled(rec, node, y, alpha))
    if is_signal(x):
        return shifted(rec, node, x, _tensor(rec, node, y) * alpha)
    return shifted(rec, node, _scaled(rec, node, y, alpha), _tensor(rec, node, x))


@handles("sub", "subtract")
def subtract(rec: Recorder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Signal:
    if is_signal(x) and is_signal(y):
        return rec.emit(node, ops.Subtract(), x, _scaled(rec, node, y, alpha))
    if is_signal(x):
        return shifted(rec, node, x, _tensor(rec, node, y) * -alpha)
    return shifted(rec, node, _scaled(rec, node, y, -alpha), _tensor(rec, node, x))


@handles("rsub")
def reversed_subtract(rec: Recorder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Signal:
    return subtract(rec, node, y, x, alpha)


@handles("neg")
def negative(rec: Recorder, node: fx.Node, x: Signal) -> Signal:
    return _scaled(rec, node, x, -1)


@handles("mul", "multiply")
def multiply(rec: Recorder, node: fx.Node, x: Any, y: Any) -> Signal:
    if is_signal(x) and is_signal(y):
        raise rec.refuse(node, f"mul has no spiking counterpart here: {GATE}")
    x, y = (x, y) if is_signal(x) else (y, x)
    return _scaled(rec, node, x, y)


@handles("div", "divide", "true_divide")
def divide(rec: Recorder, node: fx.Node, x: Any, y: Any, rounding_mode: Any = None) -> Signal:
    if not is_signal(x) or is_signal(y):
        raise rec.refuse(node, f"a division by a signal has no spiking counterpart: {GATE}")
    if rounding_mode is not None:
        raise rec.refuse(node, "a division that rounds has no spiking counterpart; leave it out")
    return _scaled(rec, node, x, 1 / _tensor(rec, node, y))


def _tensor(rec: Recorder, node: fx.Node, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().float()
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    raise rec.refuse(node, f"a constant that is a {type(value).__name__}; expected a number")


def _scaled(rec: Recorder, node: fx.Node, x: Signal, factor: Any) -> Signal:
    factor = _tensor(rec, node, factor)
    if bool((factor == 1).all()) and factor.ndim == 0:
        return x
    return _with_constant(rec, node, x, ops.Scale(factor), factor, "scale")


def shifted(rec: Recorder, node: fx.Node, x: Signal, offset: Tensor) -> Signal:
    if bool((offset == 0).all()) and offset.ndim == 0:
        return x
    return _with_constant(rec, node, x, ops.Shift(offset), offset, "shift")


def _with_constant(rec, node, x: Signal, module: nn.Module, constant: Tensor, name: str) -> Signal:
    if constant.ndim > x.ndim or (constant.ndim == x.ndim and constant.shape[0] != 1):
        raise rec.refuse(
            node,
            f"a constant {list(constant.shape)} that differs between the "
            "pictures of a batch; give its first dimension the size 1",
        )
    own = tuple(x.shape[1:])
    wanted = constant.shape[1:] if constant.ndim == x.ndim else constant.shape
    shape = (x.shape[0], *torch.broadcast_shapes(tuple(int(s) for s in own), tuple(wanted)))
    path, _ = rec.place(node)
    return rec.emit(node, module, x, name=f"{path}.{name}" if path else name, shape=shape)
