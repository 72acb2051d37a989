"""Capture one forward pass of a network with `torch.export`.

The batch is a dynamic dimension, so operations that depend on the number of pictures can be found.
In-place operations stay as they are where nothing else reads the memory that they change.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from spikedet.errors import ConversionError, message_of
from spikedet.graph.advice import name_of


def export(network: nn.Module, pictures: Tensor) -> torch.export.ExportedProgram:
    """Export the network with a dynamic batch dimension and resolved in-place operations.

    Raises:
        ConversionError: The network cannot be exported.
    """
    kind = type(network).__name__
    batch = torch.export.Dim("batch", min=2)
    if not callable(network):
        raise ConversionError(f"{kind} is no network; expected a torch.nn.Module")
    try:
        with quietly():
            program = torch.export.export(
                network, (pictures,), dynamic_shapes=({0: batch},), strict=False
            )
            if _ambiguous(program.graph):
                program = program.run_decompositions({})
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{kind}: {_why(error)}") from error
    return program


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress what torch.export prints if it cannot record a forward; the error repeats it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _why(error: Exception) -> str:
    """One sentence about what torch.export could not record."""
    lowered = str(error).lower()
    if "data-dependent" in lowered or "data dependent" in lowered:
        return (
            "its forward branches on values, or reads them as numbers, which a graph cannot do; "
            "compute with tensors only"
        )
    if "constraints violated" in lowered or "specializ" in lowered:
        return (
            "its forward works for one batch size only; read the batch size with x.shape[0], not "
            "len(x), or flatten with x.flatten(1)"
        )
    if "missing a required argument" in lowered:
        return "its forward has several inputs; only networks of one input can be converted"
    if "mismatch between the structure of" in lowered:
        return "its forward takes *args; give it one parameter for the input"
    return f"torch.export cannot record its forward ({message_of(error)})"


_VIEWS = {  # operations whose result may share the memory of their first input
    "H",
    "T",
    "_unsafe_view",
    "adjoint",
    "alias",
    "alpha_dropout",
    "chunk",
    "contiguous",
    "detach",
    "diagonal",
    "dropout",
    "dsplit",
    "expand",
    "expand_as",
    "feature_alpha_dropout",
    "feature_dropout",
    "flatten",
    "float",
    "getitem",
    "hsplit",
    "identity",
    "lift_fresh",
    "mH",
    "mT",
    "moveaxis",
    "movedim",
    "narrow",
    "numpy_T",
    "permute",
    "positive",
    "ravel",
    "reshape",
    "reshape_as",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "swapaxes",
    "swapdims",
    "t",
    "tensor_split",
    "to",
    "transpose",
    "type_as",
    "unbind",
    "unflatten",
    "unfold",
    "unsafe_chunk",
    "unsafe_split",
    "unsqueeze",
    "view",
    "view_as",
    "vsplit",
}


def _ambiguous(graph: fx.Graph) -> bool:
    """Whether an operation reads memory that was changed in place under another name.

    Then torch must resolve the in-place operations. This writes the sizes of views into the graph.
    Otherwise an in-place operation can be treated like an ordinary one.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}  # whose memory a node shares
    family: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        name = name_of(node.target)
        inplace = name.endswith("_") and not name.endswith("__")
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        own = root.get(source, source) if (inplace or name in _VIEWS) and source else node
        root[node] = own
        family.setdefault(own, [own]).append(node)
    for node in graph.nodes:
        name = name_of(node.target)
        if not (name.endswith("_") and not name.endswith("__")):
            continue
        for other in family[root[node]]:
            made_before = order[other] < order[node]
            if made_before and any(order[user] > order[node] for user in other.users):
                return True
    return False
