"""Normalisation of float weights by the largest activations, as the baselines do it.

`largest_activations` takes the maximum of a layer (RMP, Han et al., CVPR 2020; OPT, Deng and Gu,
ICLR 2021; OPI, Bu et al., AAAI 2022), `channel_maxima` nearly that of each channel (Spiking-YOLO,
Kim et al., AAAI 2020).

Spiking-YOLO divides the weights of every channel by that channel's largest activation and lets all
neurons fire at 1. Dividing a channel's current and letting it fire at 1 is the same as leaving the
current alone and firing at the divisor, so here the divisors are thresholds, one a channel; what a
spike stands for is folded into the weights that read it, as for every other network.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spikedet.conversion.replace import largest, look
from spikedet.conversion.trace import ACTIVATIONS, Trace

POSITIONS = 256  # places of each picture at which every channel is looked at


@torch.no_grad()
def largest_activations(
    network: nn.Module, record: Trace, batches: Iterable[Tensor], per_channel: bool = False
) -> dict[str, Tensor]:
    """The largest activation of every layer, negative ones (leaky ReLU) by their size.

    Args:
        network: Batch norm folded, activations separate.
        record: Its trace.
        batches: Pictures [B, C, H, W].
        per_channel: That of every channel instead.

    Returns:
        Thresholds by module name, scalars or [C].
    """

    def extremes(currents: Tensor) -> Tensor:  # [2, C]; activations rise with their current
        values = currents.transpose(0, 1).flatten(1).float()
        return torch.stack([values.amin(1), values.amax(1)])

    seen = look(network, record, batches, extremes)
    found = {}
    for call in record.of(ACTIVATIONS):
        activations = call.module(torch.cat(seen[call.where]))
        found[call.where] = largest(activations if per_channel else activations.flatten())
    return found


@torch.no_grad()
def channel_maxima(
    network: nn.Module,
    record: Trace,
    batches: Iterable[Tensor],
    percentile: float = 99.9,
) -> dict[str, Tensor]:
    """Nearly the largest activation of every channel, negative ones by their size.

    Args:
        network: Batch norm folded, activations separate.
        record: Its trace.
        batches: Pictures [B, C, H, W].
        percentile: Which percentile of a channel's activations counts as its maximum.

    Returns:
        Thresholds [C] by module name; a channel whose percentile is 0, as it fires at fewer
        places than that, gets the median of its layer's others (1 where there are none).
    """
    generator = torch.Generator().manual_seed(0)

    def sample(currents: Tensor) -> Tensor:
        values = currents.transpose(0, 1).flatten(1)  # [C, B * H * W]
        count = min(values.shape[1], POSITIONS * len(currents))
        places = torch.randint(values.shape[1], (count,), generator=generator)
        return values[:, places.to(values.device)].float()

    seen = look(network, record, batches, sample)
    return {
        call.where: _largest(call.module(torch.cat(seen[call.where], 1)).abs(), percentile)
        for call in record.of(ACTIVATIONS)
    }


def _largest(values: Tensor, percentile: float) -> Tensor:
    """[C, N] -> [C]."""
    rank = max(1, round(values.shape[1] * percentile / 100))
    top = values.kthvalue(rank, dim=1).values
    alive = top > 0
    typical = top[alive].median() if bool(alive.any()) else torch.ones((), device=top.device)
    return torch.where(alive, top, typical)
