"""Add batch norm to a spiking network while it is trained."""

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
    """Add batch norm after every weighted layer except the readouts; fold it at the end. In place.

    With batch norm, a training step that changes the currents of one layer cannot overwhelm the
    later layers. The batch norm starts from the statistics of one batch. Its scale and shift undo
    these statistics, so in evaluation mode the network gives the same outputs as before. Inside the
    `with` block only the batch norms are in training mode. Their statistics are over all frames of
    a batch, with equal weight for every time step.

    Args:
        graph: Spiking graph whose own batch norm is folded.
        run: Function that runs the graph on a batch.
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
    """Make a batch norm that does not change the output [N, C, ...] of a layer in evaluation mode.

    No batch norm is made if there is only one value of each feature.
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
