"""The registry of handlers, and what several of them use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from spikedet.graph.recorder import Recorder, Signal

HANDLERS: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a handler for operations with these names, and for their in-place forms."""

    def put(handler: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            HANDLERS[name] = HANDLERS[f"{name}_"] = handler
        return handler

    return put


def is_signal(value: Any) -> bool:
    """Whether an argument depends on the picture."""
    return isinstance(value, Signal)


def each(value: Any, dims: int) -> tuple[int, ...]:
    """Expand a size to one size for each dimension."""
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) if len(value) == dims else tuple(value) * dims


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, list | tuple) else value).shape)


def expect_dims(rec: Recorder, node: fx.Node, x: Signal, dims: int) -> None:
    """Check the number of dimensions of an input, including the batch."""
    if x.ndim != dims:
        raise rec.refuse(
            node,
            f"its input has {x.ndim} dimensions; expected {dims}, the pictures "
            "of a batch in the first",
        )
