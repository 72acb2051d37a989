"""Check that a recorded graph computes what its network computes, also at other sizes."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spikedet.errors import ConversionError
from spikedet.graph.capture import quietly
from spikedet.graph.graph import Graph

Module = TypeVar("Module", bound=nn.Module)


def expect_equal(graph: Graph, network: nn.Module, pictures: Tensor) -> None:
    """Check that a graph computes the same outputs as its network.

    Raises:
        ConversionError: The outputs differ. The message says by how much.
    """
    reason = _difference(network(pictures.clone()), graph(pictures.clone()))
    if reason:
        raise ConversionError(f"{type(network).__name__}: {reason}")


def _difference(wanted: Any, recorded: Any) -> str:
    """How the outputs of a graph differ from those of its network. Empty: they are equal."""
    for a, b in zip(tree_leaves(wanted), tree_leaves(recorded), strict=True):
        if not isinstance(a, Tensor):
            if a != b:
                return f"it returns {a!r} where its graph gives {b!r}"
            continue
        if a.shape != b.shape:
            return (
                f"it returns {list(a.shape)} where its graph gives {list(b.shape)}; x.squeeze() "
                "also removes the batch dimension of a single picture: name the dimensions, or use "
                "x.flatten(1)"
            )
        if not a.isfinite().all():
            return "its outputs have values that are not finite"
        scale = a.abs().max().clamp(min=1e-6).item() if a.numel() else 1.0
        apart = (a - b).abs().max().item() / scale if a.numel() else 0.0
        if not apart <= 1e-3:
            return (
                f"its graph gives other outputs than the network "
                f"({apart:.2g} of the largest); its forward does something that one recorded pass "
                "cannot show, such as keeping a state between two passes"
            )
    return ""


def fixed_dims(graph: Graph, network: nn.Module, picture: Tensor) -> tuple[int, ...]:
    """The dimensions of a picture [1, ...] in which only the recorded size is possible.

    A recorded graph has numbers where the network may compute with the sizes of its input. So the
    graph is compared with the network at other sizes. A size is free if the network takes another
    one, and its graph gives the same outputs wherever it does.
    """
    with quietly():
        with contextlib.suppress(Exception):  # what cannot be copied runs where it is
            # a copy, as passes may leave something behind; on the CPU, where errors end only a pass
            network, graph, picture = _on_cpu(network), _on_cpu(graph), picture.cpu()
        fixed = []
        for dim in range(1, picture.ndim):
            size = picture.shape[dim]
            same = [_same(graph, network, _sized(picture, dim, n)) for n in (2 * size, size + 1)]
            if False in same or True not in same:
                fixed.append(dim)
        free = [dim for dim in range(1, picture.ndim) if dim not in fixed]
        larger = picture  # in all of them, as a network may compute with min(height, width)
        for dim in free:
            larger = _sized(larger, dim, 2 * picture.shape[dim])
        if len(free) > 1 and _same(graph, network, larger) is False:
            fixed += free
    return tuple(sorted(fixed))


def _on_cpu(network: Module) -> Module:
    return copy.deepcopy(network).cpu()


def _sized(picture: Tensor, dim: int, size: int) -> Tensor:
    """A picture of noise in the range of this one, with another size in one dimension."""
    shape = (*picture.shape[:dim], size, *picture.shape[dim + 1 :])
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    low, high = float(picture.min()), float(picture.max())
    return (low + (high - low + 1) * noise).to(picture)


def _same(graph: nn.Module, network: nn.Module, picture: Tensor) -> bool | None:
    """Whether a graph gives the outputs of its network. None: the network cannot take them."""
    try:
        wanted = network(picture.clone())
    except Exception:  # a forward may raise anything
        return None
    try:
        return not _difference(wanted, graph(picture.clone()))
    except Exception:
        return False
