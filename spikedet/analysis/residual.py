"""The residual potential error: the spike rate differs from the quantised mean current.

Over T steps, theta n = T x + u[0] - u[T] (eq 7). Here x is the mean input current and n is the
number of spikes. If u[T] is in [0, theta), n equals clip(floor((T x + u[0]) / theta), 0, T). This
is T times the quantiser g (eq 11). With u[0] = theta / 2 it rounds half up (eq 16). A neuron with
another n has the error. There are two cases. Its potential may end below 0: it fired because of
current that later currents took away. Or its potential may end above theta: current came too late
to cause a spike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spikedet.neurons.layers import IFNeuron


@torch.no_grad()
def expected_counts(neuron: IFNeuron, received: Tensor, T: int) -> Tensor:
    """The number of spikes without residual error: T times the quantiser g (eq 11).

    It is computed with the neurons themselves: they get all their current in the first step, and
    then fire as often as the sum allows. So it is correct for any neuron with soft reset, signed
    neurons too, and for any initial potential.

    Args:
        neuron: The layer of neurons.
        received: Sum of its input currents over time, [B, C, ...].
        T: Time steps.

    Returns:
        Number of spikes with their signs, [B, C, ...].
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
    """The share of neurons with the error in each picture (figure 4).

    Args:
        neuron: The layer of neurons.
        received: Sum of its input currents over time, [B, C, ...].
        counts: Number of its spikes with their signs, [B, C, ...].
        T: Time steps.

    Returns:
        The share of neurons whose rate is above the quantiser, [B], and the share below, [B].
    """
    gap = counts - expected_counts(neuron, received, T)
    above, below = (side.flatten(1).double().mean(1) for side in (gap > 0, gap < 0))
    return above, below


@dataclass
class Periodic:
    """The response of one neuron (theta = 1, u[0] = 1/2) to one kind of current (figure 5a).

    Attributes:
        course: Course of the current over time.
        mean: Mean currents [N], in units of theta.
        quantiser: Quantiser g of the mean currents, [N].
        rate: Spike rates, [N].
    """

    course: str
    mean: Tensor
    quantiser: Tensor
    rate: Tensor


@torch.no_grad()
def periodic(T: int, count: int = 100) -> list[Periodic]:
    """Compare the quantiser with a neuron (figure 5a), for currents with equal means.

    Args:
        T: Time steps.
        count: Number of mean currents, evenly spaced in [-0.25, 1.25] theta.

    Returns:
        One result for each course of the current: `constant`; `every second step`; `first half` and
        `last half`, with no current in the other half; and `sine 1` to `sine 3`, with 1 to 3
        periods of amplitude theta around the mean.
    """
    mean = torch.rand(count, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25
    return [_response(name, mean, current) for name, current in _courses(mean, T).items()]


def _courses(mean: Tensor, T: int) -> dict[str, Tensor]:
    """Currents [T, N] with the mean over time `mean` [N], by the name of the course."""
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
