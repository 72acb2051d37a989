"""Thresholds of a float network, from the activations of pictures.

`estimate_thresholds` takes those of the least quantisation error. `largest_activations` takes the
maximum of a layer (RMP, Han et al., CVPR 2020; OPT, Deng and Gu, ICLR 2021; OPI, Bu et al., AAAI
2022), `channel_maxima` nearly that of each channel (Spiking-YOLO, Kim et al., AAAI 2020).

Spiking-YOLO divides the weights of every channel by that channel's largest activation and lets all
neurons fire at 1. Dividing a channel's current and letting it fire at 1 is the same as leaving the
current alone and firing at the divisor, so here the divisors are thresholds, one a channel; what a
spike stands for is folded into the weights that read it, as for every other network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import leak
from spikedet.neurons.quantize import levels
from spikedet.neurons.slope import spread

# Pre-activations kept of each layer (of each channel) and batch when thresholds are estimated.
SAMPLE, CHANNEL_SAMPLE = 20_000, 500
CANDIDATES = 100  # thetas that are tried for a threshold
POSITIONS = 256  # places of each picture at which every channel is looked at for its maximum


@torch.no_grad()
def look(
    graph: Graph, batches: Iterable[Tensor], sample: Callable[[Tensor, nn.Module], Tensor]
) -> dict[str, list[Tensor]]:
    """What `sample` takes of the input of every activation, for each batch, by name of the node."""
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
    """Threshold of each activation with the least mean squared quantisation error.

    Args:
        graph: Float, in evaluation mode.
        batches: Pictures [B, ...].
        steps: T of the quantiser.
        seed: Which pre-activations are looked at.
        per_channel: One threshold a channel instead of one a layer.

    Returns:
        Thresholds by name of the node, scalars or [C].
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(currents: Tensor, activation: nn.Module) -> Tensor:
        channels = per_channel or isinstance(leak(activation), tuple)
        values = currents.transpose(0, 1).flatten(1).T if channels else currents.flatten()
        count = CHANNEL_SAMPLE if channels else SAMPLE
        chosen = torch.randint(len(values), (count,), generator=generator)
        return values[chosen.to(values.device)].float()

    seen = look(graph, batches, sample)
    return {
        node.name: best_threshold(torch.cat(seen[node.name]), steps, node.module, per_channel)
        for node in graph.of(ACTIVATIONS)
    }


def best_threshold(
    values: Tensor, steps: int, activation: nn.Module | None = None, per_channel: bool = True
) -> Tensor:
    """Theta whose quantise-clip of `values` is nearest to their activation (least MSE).

    Of `CANDIDATES`, evenly spaced up to the largest activation.

    Args:
        values: Pre-activations, [N], or [N, C] by channel.
        steps: T of the quantiser.
        activation: ReLU when None.
        per_channel: Of values by channel one theta a channel, else one for all of them.

    Returns:
        Theta, scalar or [C]. A channel that is silent in `values` gets 1/20 of the largest
        activation of the layer, so that it can still answer to another picture.
    """
    truth = values.clamp(min=0) if activation is None else activation(values.clone())
    slope = spread(leak(activation), values) if activation is not None else 0.0
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
    """Largest size of activations, [N] -> scalar or [N, C] -> [C].

    A silent channel gets 1/20 of the largest activation of the layer, so that it can still answer
    to another picture.
    """
    top = activations.abs().amax(0).clamp(min=1e-3)
    return top.maximum(top.max() / 20)


def largest_activations(
    graph: Graph, batches: Iterable[Tensor], per_channel: bool = False
) -> dict[str, Tensor]:
    """The largest activation of every layer, negative ones (leaky ReLU) by their size.

    Args:
        graph: Float, in evaluation mode.
        batches: Pictures [B, ...].
        per_channel: That of every channel instead.

    Returns:
        Thresholds by name of the node, scalars or [C].
    """

    def extremes(currents: Tensor, _: nn.Module) -> Tensor:  # [2, C]; activations rise
        values = currents.transpose(0, 1).flatten(1).float()
        return torch.stack([values.amin(1), values.amax(1)])

    seen = look(graph, batches, extremes)
    maxima = {}
    for node in graph.of(ACTIVATIONS):
        activations = node.module(torch.cat(seen[node.name]))
        maxima[node.name] = largest(activations if per_channel else activations.flatten())
    return maxima


def channel_maxima(
    graph: Graph, batches: Iterable[Tensor], percentile: float = 99.9
) -> dict[str, Tensor]:
    """Nearly the largest activation of every channel, negative ones by their size.

    Args:
        graph: Float, in evaluation mode.
        batches: Pictures [B, ...].
        percentile: Which percentile of a channel's activations counts as its maximum.

    Returns:
        Thresholds [C] by name of the node; a channel whose percentile is 0, as it fires at fewer
        places than that, gets the median of its layer's others (1 where there are none).
    """
    generator = torch.Generator().manual_seed(0)

    def sample(currents: Tensor, _: nn.Module) -> Tensor:
        values = currents.transpose(0, 1).flatten(1)  # [C, B * H * W]
        count = min(values.shape[1], POSITIONS * len(currents))
        places = torch.randint(values.shape[1], (count,), generator=generator)
        return values[:, places.to(values.device)].float()

    seen = look(graph, batches, sample)
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
    """Thresholds as a method takes them (see `methods.Method.thresholds`)."""
    if callable(rule):
        return rule(graph, batches, T)
    return THRESHOLDS[rule](graph, batches, T, per_channel=per_channel)


def _largest(values: Tensor, percentile: float) -> Tensor:
    """[C, N] -> [C]."""
    rank = max(1, round(values.shape[1] * percentile / 100))
    top = values.kthvalue(rank, dim=1).values
    alive = top > 0
    typical = top[alive].median() if bool(alive.any()) else torch.ones((), device=top.device)
    return torch.where(alive, top, typical)
