"""Store a graph as JSON: the operations, their options and their inputs, but no tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikedet.errors import message_of
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import KINDS, MAX_POOLS, PADDINGS, WEIGHTED, Kind, Pad, named
from spikedet.graph.structure import from_json, names_in, to_json
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip
from spikedet.neurons.registry import NEURONS

MOST_NODES = 100_000
PICTURES = 7919  # batch size in the shape check; an unusual size, so that it is easy to recognise
LEAST = {"kernel_size": 1, "stride": 1, "dilation": 1, "groups": 1}
LEAST |= {"padding": 0, "output_padding": 0}
MOST_VALUES, MOST_USES = 2**31, 2**43  # limits for a picture and step: values, weight uses


def describe(graph: Graph) -> dict[str, Any]:
    """Convert a graph to values that JSON can store.

    Raises:
        TypeError: The network returns something that JSON cannot store.
    """
    nodes = []
    for node in graph:
        kind: Kind = named(node.kind)
        nodes.append([node.name, kind.name, list(node.inputs), kind.describe(node.module)])
    output = to_json(graph.output)
    described = {"input": list(graph.shapes[INPUT]), "nodes": nodes, "output": output}
    return {**described, "fixed": list(graph.fixed)} if graph.fixed else described


def build(description: Any) -> Graph:
    """Build the graph of a description on the `meta` device: its tensors have no values.

    Every size is checked before anything is computed or allocated.

    Raises:
        ValueError: The description is not a result of `describe`, has an unknown operation, or
            needs far too much work for one picture.
    """
    try:
        with torch.device("meta"):
            graph = _build(description)
            _measure(graph, tuple(description["input"]))
            graph.fixed = _fixed(description.get("fixed", []), len(description["input"]))
    except (
        AttributeError, KeyError, TypeError, IndexError, RuntimeError, ArithmeticError,
        AssertionError, RecursionError, NotImplementedError,
    ) as error:  # fmt: skip
        raise ValueError(f"the graph is damaged: {message_of(error)}") from None
    return graph


def _build(description: Any) -> Graph:
    graph = Graph()
    if len(description["nodes"]) > MOST_NODES:
        raise ValueError(f"a graph of {len(description['nodes'])} nodes")
    for name, kind, inputs, options in description["nodes"]:
        if kind not in KINDS and kind not in NEURONS:
            raise ValueError(
                f"the operation {str(kind)[:50]!r} is not known here; the file may come from a "
                "newer spikedet, or from one with an operation registered that is not here"
            )
        if not isinstance(name, str) or not name or not isinstance(options, dict):
            raise ValueError("a node without a name or options")
        if not inputs or any(source != INPUT and source not in graph for source in inputs):
            raise ValueError(f"{name[:50]} reads a node that does not come before it")
        if named(kind).inputs not in (None, len(inputs)):
            raise ValueError(f"{name[:50]}: {len(inputs)} inputs of a {kind}")
        module = named(kind).build(options)
        _expect_sizes(name, kind, module)
        for option in ("steps", "noise"):
            value = getattr(module, option, None)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ValueError(f"{name[:50]}: {option} is no number")
        if isinstance(module, QuantClip) and not (
            type(module.steps) is int and 0 < module.steps <= 65536 and 0 <= module.noise <= 1
        ):
            raise ValueError(f"{name[:50]}: a quantiser of {module.steps} levels")
        if graph.taken(name):
            raise ValueError(f"{name[:50]} is not a valid name for another node")
        graph.add(name, module, inputs)
    graph.output = from_json(description["output"])
    wanted = names_in(graph.output)
    if not wanted or any(name not in graph for name in wanted):
        raise ValueError("the network returns a value that no node gives")
    return graph


def _fixed(fixed: Any, dims: int) -> tuple[int, ...]:
    """The dimensions of the picture that have one possible size.

    Raises:
        ValueError: They are no dimensions.
    """
    if not isinstance(fixed, list) or any(type(d) is not int or not 0 < d < dims for d in fixed):
        raise ValueError("the dimensions of the picture that are fixed are no dimensions")
    return tuple(fixed)


def _expect_sizes(name: str, kind: str, module: nn.Module) -> None:
    """Check sizes that torch itself checks only when it runs.

    Raises:
        ValueError: A size is not an integer, is too small, or is missing for a dimension, or
            the mode of up-sampling or padding is not supported.
    """
    dims = getattr(module, "dimensions", 1 if kind.endswith("1d") else 2)
    for option, least in LEAST.items():
        value = getattr(module, option, None)
        sizes = value if isinstance(value, tuple) else (value,)
        if value is not None and (
            len(sizes) not in (1, dims) or any(type(s) is not int or s < least for s in sizes)
        ):
            raise ValueError(f"{name[:50]}: {option} is {str(value)[:50]}")
    if isinstance(module, IFNeuron) and type(module.folded) is not bool:
        raise ValueError(f"{name[:50]}: folded is {str(module.folded)[:50]}")
    if isinstance(module, nn.Upsample) and module.mode not in ("nearest", "nearest-exact"):
        raise ValueError(f"{name[:50]}: up-sampling by {str(module.mode)[:50]}")
    if isinstance(module, Pad) and module.mode not in PADDINGS:
        raise ValueError(f"{name[:50]}: padding by {str(module.mode)[:50]}")


def _measure(graph: Graph, shape: tuple[int, ...]) -> None:
    """Compute the shapes for one picture, and check that the work is not too large.

    Raises:
        ValueError: The work is too large, or shapes do not fit.
    """
    if not shape or shape[0] != 1 or any(type(size) is not int or size < 1 for size in shape):
        raise ValueError("the picture has no size")
    graph.shapes = {INPUT: shape}
    numbers = uses = 0

    def call(node: Node, inputs: list[Tensor]) -> Tensor:
        nonlocal numbers, uses
        value = _shape_of(node, inputs)
        if not value.ndim or value.shape[0] != PICTURES:
            raise ValueError(f"{node.name[:50]} mixes the pictures of a batch")
        numbers += value.numel() // PICTURES
        if isinstance(node.module, WEIGHTED):
            place = max(value.numel(), inputs[0].numel()) // PICTURES // max(value.shape[1], 1)
            uses += node.module.weight.numel() * place
        if numbers > MOST_VALUES or uses > MOST_USES:
            raise ValueError(
                f"a pass is too large: it has at least {numbers} values and {uses} products"
            )
        graph.shapes[node.name] = (1, *value.shape[1:])
        return value

    graph.run(graph.edges, {INPUT: torch.empty(PICTURES, *shape[1:])}, (), call)


def _shape_of(node: Node, inputs: list[Tensor]) -> Tensor:
    """An empty tensor with the output shape of a node."""
    module, x = node.module, inputs[0]
    if isinstance(module, IFNeuron | QuantClip):
        sizes = (module.threshold.shape, getattr(module, "initial", module.threshold).shape)
        for size in (*sizes, getattr(module.slope, "__len__", lambda: None)()):
            fits = size in (None, (), x.shape[1], (x.shape[1],), tuple(x.shape[1:]))
            if not fits:
                raise ValueError(f"{node.name[:50]}: {size} does not fit {list(x.shape)}")
        return torch.empty_like(x)
    if isinstance(module, MeanOverTime):
        return torch.empty_like(x)
    if isinstance(module, SpikingMaxPool):
        return module.pool(x)
    if isinstance(module, MAX_POOLS):
        return module(x)
    return module(*inputs)
