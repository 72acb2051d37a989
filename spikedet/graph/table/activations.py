"""Handlers of activations that neurons can replace."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from spikedet.graph import operations as ops
from spikedet.graph.advice import ADVICE, GATE
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.table.handlers import handles, is_signal


@handles("relu")
def relu(rec: Recorder, node: fx.Node, x: Signal) -> Signal:
    return rec.emit(node, nn.ReLU(), x)


@handles("relu6")
def relu6(rec: Recorder, node: fx.Node, x: Signal) -> Signal:
    return rec.emit(node, ops.ClippedReLU(6.0), x)


@handles("hardtanh")
def hardtanh(
    rec: Recorder, node: fx.Node, x: Signal, low: float = -1.0, high: float = 1.0
) -> Signal:
    return _between(rec, node, x, low, high)


@handles("clamp", "clip")
def clamp(rec: Recorder, node: fx.Node, x: Signal, min: Any = None, max: Any = None) -> Signal:
    return _between(rec, node, x, min, max)


@handles("clamp_min")
def clamp_min(rec: Recorder, node: fx.Node, x: Signal, min: Any) -> Signal:
    return _between(rec, node, x, min, None)


@handles("threshold")
def threshold(rec: Recorder, node: fx.Node, x: Signal, at: float, value: float) -> Signal:
    if at != 0 or value != 0:
        raise rec.refuse(
            node, f"threshold({at}, {value}) has no spiking counterpart; {ADVICE['threshold']}"
        )
    return rec.emit(node, nn.ReLU(), x)


@handles("maximum")
def maximum(rec: Recorder, node: fx.Node, x: Any, y: Any) -> Signal:
    x, y = (x, y) if is_signal(x) else (y, x)
    if is_signal(y):
        raise rec.refuse(
            node,
            "the maximum of two signals has no spiking counterpart; use "
            "torch.nn.MaxPool2d, or a sum",
        )
    return _between(rec, node, x, y, None)


def _between(rec: Recorder, node: fx.Node, x: Signal, low: Any, high: Any) -> Signal:
    """Add clip(x, low, high), which is a ReLU or a clipped ReLU."""
    low, high = map(_only_value, (low, high))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise rec.refuse(
            node,
            "its limits have several values, which has no spiking counterpart; use one limit "
            "for all channels, and 0 below",
        )
    if is_signal(low) or is_signal(high) or low != 0 or not (high is None or high > 0):
        raise rec.refuse(
            node,
            f"an activation clipped to {low} .. {high} has no spiking counterpart; "
            f"{ADVICE['clamp']}",
        )
    if high is None or high == float("inf"):
        return rec.emit(node, nn.ReLU(), x)
    return rec.emit(node, ops.ClippedReLU(float(high)), x)


def _only_value(limit: Any) -> Any:
    """The number that all elements of a tensor have. Anything else is returned as it is."""
    if isinstance(limit, Tensor) and limit.numel() and (limit == limit.flatten()[0]).all():
        return limit.flatten()[0].item()
    return limit


@handles("leaky_relu")
def leaky_relu(rec: Recorder, node: fx.Node, x: Signal, slope: float = 0.01) -> Signal:
    return _leaky(rec, node, x, slope)


@handles("prelu")
def prelu(rec: Recorder, node: fx.Node, x: Signal, weight: Tensor) -> Signal:
    if is_signal(weight):
        raise rec.refuse(node, f"a slope depends on the picture; {GATE}")
    return _leaky(rec, node, x, [float(v) for v in weight.flatten()], rec.name(node, weight))


def _leaky(rec: Recorder, node: fx.Node, x: Signal, slope: Any, name: str | None = None) -> Signal:
    each = slope if isinstance(slope, list) else [slope]
    wrong = next((value for value in each if not 0 <= value <= 1), None)
    if wrong is not None:
        raise rec.refuse(
            node, f"a leaky ReLU of slope {wrong:.4g} has no spiking counterpart; expected 0 to 1"
        )
    slope = each[0] if len(set(each)) == 1 else tuple(each)
    return rec.emit(node, nn.ReLU() if slope == 0 else ops.Leaky(slope), x, name=name)
