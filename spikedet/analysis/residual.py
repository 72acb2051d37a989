"""The residual potential error: where a neuron's rate is not the quantiser of its mean current.

Over T steps theta n = T x + u[0] - u[T] (eq 7), x the mean input current and n the number of
spikes. Were u[T] in [0, theta), n would be clip(floor((T x + u[0]) / theta), 0, T), the quantiser
g (eq 11; with u[0] = theta / 2 it rounds half up, eq 16). A neuron whose n differs has the error:
it fired on current that was taken back later (its potential ended below 0), or current came too
late to be fired off (its potential ended above theta).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikedet.neurons.layers import IFNeuron


@torch.no_grad()
def expected_counts(neuron: IFNeuron, received: Tensor, T: int) -> Tensor:
    """Spikes that neurons owe for what they received: T times the quantiser g (eq 11).

    It is what the neurons themselves fire when all their current comes in the first step: every
    spike is fired that the sum allows, and none that it does not. So it holds for any neuron with
    a soft reset, signed ones too, and for any initial potential.

    Args:
        neuron: The layer.
        received: Sum over time of its input currents, [B, C, ...].
        T: Time steps.

    Returns:
        [B, C, ...], spikes with their signs.
    """
    current, potential = received.float(), None
    counts = torch.zeros_like(current)
    for _ in range(T):
        spikes, potential = neuron.advance(current, len(current), 1, potential)
        counts += spikes.sign()
        current = torch.zeros_like(current)
    return counts


def residual_error(
    neuron: IFNeuron, received: Tensor, counts: Tensor, T: int
) -> tuple[Tensor, Tensor]:
    """Share of neurons with the error, in each picture (figure 4).

    Args:
        neuron: The layer.
        received: Sum over time of its input currents, [B, C, ...].
        counts: Spikes that it fired, with their signs, [B, C, ...].
        T: Time steps.

    Returns:
        Share whose rate is above the quantiser, [B], and share whose rate is below, [B].
    """
    gap = counts - expected_counts(neuron, received, T)
    above, below = (side.flatten(1).double().mean(1) for side in (gap > 0, gap < 0))
    return above, below


@dataclass
class Periodic:
    """Response of one neuron (theta = 1, u[0] = 1/2) to currents of one course (figure 5a).

    Attributes:
        course: How the current is spread over time.
        mean: Mean currents [N], in units of theta.
        quantiser: g of the mean current, [N].
        rate: Firing rates, [N].
    """

    course: str
    mean: Tensor
    quantiser: Tensor
    rate: Tensor


@torch.no_grad()
def periodic(T: int, count: int = 100) -> list[Periodic]:
    """Quantiser against neuron (figure 5a): currents of the same means, spread differently.

    Args:
        T: Time steps.
        count: Mean currents, drawn evenly from [-0.25, 1.25] theta.

    Returns:
        One result for each course: `constant`; `every second step`; `first half` and `last half`,
        which leave the other half without current; and `sine 1` to `sine 3`, so many periods of
        amplitude theta around the mean.
    """
    mean = torch.rand(count, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25
    return [_response(name, mean, current) for name, current in _courses(mean, T).items()]


def _courses(mean: Tensor, T: int) -> dict[str, Tensor]:
    """Currents [T, N] whose mean over time is `mean` [N]."""
    t = torch.arange(T)
    half = (T + 1) // 2
    shares = {
        "constant": torch.ones(T),
        "every second step": (t % 2 == 0).float(),
        "first half": (t < half).float(),
        "last half": (t >= T - half).float(),
    }
    courses = {name: mean * (share / share.mean())[:, None] for name, share in shares.items()}
    for periods in (1, 2, 3):
        wave = torch.sin(2 * math.pi * periods * t / T)
        courses[f"sine {periods}"] = mean + (wave - wave.mean())[:, None]
    return courses


def _response(name: str, mean: Tensor, current: Tensor) -> Periodic:
    T, count = current.shape
    neuron = IFNeuron(torch.ones(1))
    spikes, _ = neuron.advance(current.reshape(T * count, 1), count, T, None)
    rate = spikes.view(T, count).mean(0)
    received = current.sum(0, dtype=torch.float64)
    return Periodic(name, mean, expected_counts(neuron, received[:, None], T)[:, 0] / T, rate)
