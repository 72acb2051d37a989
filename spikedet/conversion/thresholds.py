"""Estimate the thresholds of a float network from its activations on pictures.

`estimate_thresholds` finds the thresholds with the least quantisation error. `largest_activations`
uses the maximum of a layer (RMP, Han et al., CVPR 2020; OPT, Deng and Gu, ICLR 2021; OPI, Bu et
al., AAAI 2022). `channel_maxima` uses almost the maximum of each channel (Spiking-YOLO, Kim et al.,
AAAI 2020).

Spiking-YOLO divides the weights of each channel by the largest activation of that channel, and uses
the threshold 1. The same result comes from unchanged weights and a threshold that equals the
divisor. So here the divisors are used as thresholds, one for each channel. The value of a spike is
folded into the weights of the next layers, as in every other network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import leak
from spikedet.neurons.quantize import levels
from spikedet.neurons.slope import broadcast_slope

# Number of pre-activations that are sampled from each layer (from each channel) in each batch.
SAMPLE, CHANNEL_SAMPLE = 20_000, 500
CANDIDATES = 100  # number of candidate thresholds
POSITIONS = 256  # positions per picture that are sampled for the maximum of each channel


@torch.no_grad()
def sample_activations(
    graph: Graph, batches: Iterable[Tensor], sample: Callable[[Tensor, nn.Module], Tensor]
) -> dict[str, list[Tensor]]:
    """Run a graph on batches and apply `sample` to the input of every activation.

    Returns:
        The results for each batch, by the name of the activation's node.
    """
    seen: dict[str, list[Tensor]] = {node.name: [] for node in graph.of(ACTIVATIONS)}

    def call(node: Node, inputs: list[Tensor]) -> Tensor:
        if node.name in seen:
            seen[node.name].append(sample(inputs[0], node.module))
        return node.module(*inputs)

    for batch in batches:
        graph.run(graph.edges, {INPUT: batch}, (), call)
    return seen


def estimate_thresholds(
    graph: Graph,
    batches: Iterable[Tensor],
    steps: int,
    seed: int = 0,
    per_channel: bool = False,
) -> dict[str, Tensor]:
    """Find the threshold of each activation with the least mean squared quantisation error.

    Args:
        graph: Float graph in evaluation mode.
        batches: Pictures [B, ...].
        steps: Time steps T of the quantiser.
        seed: Seed for the choice of pre-activations.
        per_channel: Find one threshold for each channel instead of one for each layer.

    Returns:
        Thresholds by the name of the node, scalars or [C].
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(currents: Tensor, activation: nn.Module) -> Tensor:
        channels = per_channel or isinstance(leak(activation), tuple)
        values = currents.transpose(0, 1).flatten(1).T if channels else currents.flatten()
        count = CHANNEL_SAMPLE if channels else SAMPLE
        chosen = torch.randint(len(values), (count,), generator=generator)
        return values[chosen.to(values.device)].float()

    seen = sample_activations(graph, batches, sample)
    return {
        node.name: best_threshold(torch.cat(seen[node.name]), steps, node.module, per_channel)
        for node in graph.of(ACTIVATIONS)
    }


def best_threshold(
    values: Tensor, steps: int, activation: nn.Module | None = None, per_channel: bool = True
) -> Tensor:
    """Find the threshold whose quantise-clip is nearest to the activation (least squared error).

    It is chosen among `CANDIDATES` values, which are evenly spaced up to the largest activation.

    Args:
        values: Pre-activations, [N], or [N, C] by channel.
        steps: Time steps T of the quantiser.
        activation: The activation. None: ReLU.
        per_channel: For values [N, C]: find one threshold for each channel. Else one for all.

    Returns:
        The threshold, a scalar or [C]. If a channel has no activation in `values`, its threshold is
        at least 1/20 of the largest activation of the layer. So it can still fire on other
        pictures.
    """
    truth = values.clamp(min=0) if activation is None else activation(values.clone())
    slope = broadcast_slope(leak(activation), values) if activation is not None else 0.0
    each = per_channel and values.ndim > 1
    top = largest(truth if each else truth.flatten())
    # the largest first: it is taken where several do equally well
    grid = torch.stack([top * (k / CANDIDATES) for k in range(CANDIDATES, 0, -1)])
    errors = []
    for theta in grid:
        error = (levels(values / theta, steps, slope) * theta - truth).square()
        errors.append(error.mean(0) if each else error.mean())
    return grid.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]


def largest(activations: Tensor) -> Tensor:
    """The largest absolute activation, [N] -> scalar or [N, C] -> [C].

    A channel gets at least 1/20 of the largest activation of the layer. So a channel without
    activations on these pictures can still fire on others.
    """
    top = activations.abs().amax(0).clamp(min=1e-3)
    return top.maximum(top.max() / 20)


def largest_activations(
    graph: Graph, batches: Iterable[Tensor], per_channel: bool = False
) -> dict[str, Tensor]:
    """Use the largest absolute activation of each layer as its threshold.

    Args:
        graph: Float graph in evaluation mode.
        batches: Pictures [B, ...].
        per_channel: Use the largest activation of each channel instead.

    Returns:
        Thresholds by the name of the node, scalars or [C].
    """

    def extremes(currents: Tensor, _: nn.Module) -> Tensor:  # [2, C]; activations rise
        values = currents.transpose(0, 1).flatten(1).float()
        return torch.stack([values.amin(1), values.amax(1)])

    seen = sample_activations(graph, batches, extremes)
    maxima = {}
    for node in graph.of(ACTIVATIONS):
        activations = node.module(torch.cat(seen[node.name]))
        maxima[node.name] = largest(activations if per_channel else activations.flatten())
    return maxima


def channel_maxima(
    graph: Graph, batches: Iterable[Tensor], percentile: float = 99.9
) -> dict[str, Tensor]:
    """Use a high percentile of the absolute activations of each channel as its threshold.

    Args:
        graph: Float graph in evaluation mode.
        batches: Pictures [B, ...].
        percentile: Percentile of the activations of a channel.

    Returns:
        Thresholds [C] by the name of the node. If the percentile of a channel is 0, because few of
        its activations are above 0, its threshold is the median of the other channels of the layer
        (1 if there are none).
    """
    generator = torch.Generator().manual_seed(0)

    def sample(currents: Tensor, _: nn.Module) -> Tensor:
        values = currents.transpose(0, 1).flatten(1)  # [C, B * H * W]
        count = min(values.shape[1], POSITIONS * len(currents))
        places = torch.randint(values.shape[1], (count,), generator=generator)
        return values[:, places.to(values.device)].float()

    seen = sample_activations(graph, batches, sample)
    return {
        node.name: _largest(node.module(torch.cat(seen[node.name], 1).T).abs().T, percentile)
        for node in graph.of(ACTIVATIONS)
    }


THRESHOLDS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "least-error": estimate_thresholds,
    "largest": lambda graph, batches, T, per_channel=False: largest_activations(
        graph, batches, per_channel
    ),
    "channels": lambda graph, batches, T, per_channel=False: channel_maxima(graph, batches),
}


def thresholds_by(
    rule: str | Callable[..., dict[str, Tensor]],
    graph: Graph,
    batches: Iterable[Tensor],
    T: int,
    per_channel: bool = False,
) -> dict[str, Tensor]:
    """Compute thresholds by the rule of a method (see `methods.Method.thresholds`)."""
    if callable(rule):
        return rule(graph, batches, T)
    return THRESHOLDS[rule](graph, batches, T, per_channel=per_channel)


def _largest(values: Tensor, percentile: float) -> Tensor:
    """The percentile of each channel, [C, N] -> [C] (see `channel_maxima`)."""
    rank = max(1, round(values.shape[1] * percentile / 100))
    top = values.kthvalue(rank, dim=1).values
    alive = top > 0
    typical = top[alive].median() if bool(alive.any()) else torch.ones((), device=top.device)
    return torch.where(alive, top, typical)
