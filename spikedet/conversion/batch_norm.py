"""Batch norm for as long as a spiking network is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.graph.graph import Graph
from spikedet.graph.operations import WEIGHTED, NormLayer
from spikedet.graph.rewrites.fold_batch_norm import fold
from spikedet.graph.time import readouts


@contextmanager
def beside_batch_norm(graph: Graph, run: Callable[[], Any]) -> Iterator[None]:
    """Put a batch norm behind every weighted layer but the readouts, in place, and fold it again.

    A step that moves the currents of one layer cannot drown those behind it then. It starts from
    the statistics of one batch, with scale and shift that undo them: in evaluation mode the network
    computes what it did. Inside of the `with` block only batch norms are in training mode; their
    statistics are those of all frames of a batch, every time step counting alike.

    Args:
        graph: Spiking, its batch norm folded.
        run: Runs it on a batch.
    """
    last = set(readouts(graph))
    layers = {n.name: n.module for n in graph if isinstance(n.module, WEIGHTED)}
    layers = {name: layer for name, layer in layers.items() if name not in last}
    norms: dict[str, NormLayer] = {}
    handles = [
        layer.register_forward_hook(partial(_measure, norms, name))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    placed = {}
    for name, norm in norms.items():
        placed[name] = graph.insert_behind(name, f"{name}_norm", norm)
        norm.train()
    try:
        yield
    finally:
        for name, norm in norms.items():
            fold(layers[name], norm)
            graph.remove(placed[name])


def _measure(
    norms: dict[str, NormLayer], name: str, layer: nn.Module, inputs: tuple[Tensor], out: Tensor
) -> None:
    """A batch norm that in evaluation mode leaves the output [N, C, ...] of a layer as it is.

    None for features that there is one value of.
    """
    if out.numel() == out.shape[1]:
        return
    kind = nn.BatchNorm2d if out.ndim == 4 else nn.BatchNorm1d
    norm = kind(out.shape[1], device=out.device)
    var, mean = torch.var_mean(out.float().transpose(0, 1).flatten(1), 1, correction=0)
    assert norm.running_mean is not None and norm.running_var is not None  # it tracks both
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.weight.data.copy_((var + norm.eps).sqrt())
    norm.bias.data.copy_(mean)
    norms[name] = norm
