"""How far the outputs of a spiking network are from those of its float network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from spikedet.engines.registry import AUTO
from spikedet.graph.graph import Graph
from spikedet.runtime.network import SpikingNetwork

MOST = 32  # number of pictures that the error is measured on
LARGE = 0.25  # of the variance; with more, much of the accuracy is lost (docs/convert.md)


@torch.no_grad()
def output_error(
    network: Callable[[Tensor], Any], spiking: Graph, T: int, batches: Iterable[Tensor]
) -> float:
    """Measure how far the outputs of a spiking network are from those of the float network.

    Args:
        network: Computes the outputs of the float network.
        spiking: The spiking graph. The fastest engine that supports it runs it.
        T: Time steps.
        batches: Pictures, [B, ...] each. The first `MOST` are used.

    Returns:
        The mean squared difference divided by the variance of the float network's output, as the
        mean over all outputs. 0 means equal outputs, and 1 an error as large as the variance.
    """
    runner = SpikingNetwork(spiking, T)
    runner.use_engine(AUTO)
    total, done = torch.zeros(()), 0
    for batch in batches:
        pictures = batch[: MOST - done]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the numbers are the same if torch has to run it
            results = tree_leaves(runner(pictures))
        pairs = zip(results, tree_leaves(network(pictures)), strict=True)
        tensors = [(a.double(), b.double()) for a, b in pairs if isinstance(a, Tensor)]
        total = total + torch.stack([_sums(a, b) for a, b in tensors]).cpu()
        done += len(pictures)
        if done >= MOST:
            break
    number, values, squares, differences = total.unbind(1)
    variances = (squares - values**2 / number).clamp(min=1e-12 * number)
    return float((differences / variances).mean())


def _sums(result: Tensor, wanted: Tensor) -> Tensor:
    """Number of values, and the sums of the values, their squares, and the squared differences."""
    sums = [wanted.sum(), wanted.square().sum(), (result - wanted).square().sum()]
    return torch.stack([sums[0].new_tensor(wanted.numel()), *sums])


def warn_if_large(error: float, T: int, better: Sequence[str]) -> None:
    """Warn if the outputs are so far from those of the float network that accuracy collapses.

    Args:
        error: What `output_error` measured.
        T: Time steps.
        better: What usually loses less.
    """
    if error <= LARGE:  # not with NaN
        return
    warnings.warn(
        f"at T={T} the outputs are far from those of the float network: the squared error is "
        f"{error:.2f} of their variance, and above {LARGE} much of the accuracy is lost; better "
        f"are {', '.join(better)}",
        stacklevel=3,
    )
