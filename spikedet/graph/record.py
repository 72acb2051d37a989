"""Record the graph of a float network with `torch.export`.

`torch.export` runs the network once and records every operation, of modules, functions, methods and
in-place calls (`capture`). The handlers of the package `table` translate each operation
(`translate`). At the end the graph must compute what the network computes (`equivalence`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spikedet.errors import ConversionError
from spikedet.graph.capture import export
from spikedet.graph.equivalence import expect_equal, fixed_dims
from spikedet.graph.graph import Graph
from spikedet.graph.translate import translate

BATCH = 3  # pictures of the recorded pass; an unusual size, so that it is easy to recognise


def record(network: nn.Module, example: Tensor) -> Graph:
    """Record the graph of a network.

    Every call of a layer becomes a separate operation with its own copy of the tensors, even if one
    layer is called several times.

    Args:
        network: The network. It, its buffers, its device and its mode are not changed. It is
            recorded in evaluation mode.
        example: Pictures [B, ...]. One picture is enough. The graph is recorded at their size. The
            graph is compared with the network on these pictures and on noise.

    Returns:
        The graph in evaluation mode, on the device of the network, with copies of its tensors.

    Raises:
        ConversionError: An operation has no spiking counterpart (the message names it and its
            place), the forward function cannot be recorded, or the network is not in float32.
    """
    pictures = _several(example)
    _expect_float32(network, example)
    with _evaluation(network), torch.no_grad():
        graph = translate(network, export(network, pictures))
        graph.eval()
        for seen in (pictures, example):
            expect_equal(graph, network, seen)
        graph.measure_shapes(pictures[:1])
        graph.fixed = fixed_dims(graph, network, pictures[:1])
    return graph


def _several(example: Tensor) -> Tensor:
    """Make `BATCH` pictures from these."""
    if not isinstance(example, Tensor) or example.ndim < 2 or not len(example):
        kind = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ConversionError(f"the example is {kind}; expected a tensor of pictures [B, ...]")
    pictures = example.detach()[:1].expand(BATCH, *example.shape[1:]).clone()
    if pictures.is_floating_point():  # other pictures each, so that a mixture of them shows
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(pictures.shape, generator=generator).to(pictures)
        pictures = pictures + noise
    return pictures


def _expect_float32(network: nn.Module, example: Tensor) -> None:
    """Check that the network and its pictures are in float32, as graphs compute in float32.

    Raises:
        ConversionError: They have another number format.
    """
    named = (*network.named_parameters(), *network.named_buffers())
    kinds = {"pictures": example.dtype, **{name: tensor.dtype for name, tensor in named}}
    for name, kind in kinds.items():
        if kind.is_floating_point and kind != torch.float32:
            raise ConversionError(
                f"{type(network).__name__}: {name} in {str(kind).removeprefix('torch.')}; expected "
                "float32, so call .float() on the network and on the pictures"
            )


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Set the network to evaluation mode; afterwards, restore its modes and its buffers."""
    modes = {module: module.training for module in network.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.detach().copy_(value)
            module._buffers[name] = buffer
