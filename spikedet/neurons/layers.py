"""Spiking neurons as modules: they hold threshold and initial potential, and unfold time.

Between layers time is folded into the batch, [T*B, C, ...], time-major. Only these modules know T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
    memory_format,
    rate_through,
)


class IFNeuron(nn.Module):
    """Integrate-and-fire neurons of one layer, soft reset, spikes 0/1.

    The network around it calls `start` before each pass; potentials live from there to the end of
    the pass and never longer.

    Args:
        threshold: Firing threshold theta > 0, scalar (one a layer) or [C] (one a channel).
        initial: Potential before the first step [C] or [C, H, W]; theta / 2 when None, which makes
            the rate of a constant current equal to round-half-up (eq 16).

    Shape:
        current [T*B, C, ...] or, constant over time, [B, C, ...] -> spikes [T*B, C, ...]
    """

    def __init__(self, threshold: Tensor, initial: Tensor | None = None):
        super().__init__()
        threshold = threshold.detach().float()
        if not bool((threshold > 0).all()):
            raise ValueError(f"thresholds must be positive, not {threshold.min().item()}")
        self.register_buffer("threshold", threshold.clone())
        if initial is None:
            initial = threshold / 2
        self.initial = nn.Parameter(initial.detach().float().clone())
        self.alpha = 1.0
        self.spike_dtype: torch.dtype | None = None  # that of the current
        self.steps, self.batch = 1, 1
        self.potential: Tensor | None = None
        self.spike_sum: Tensor | None = None
        self.spike_size = 0
        self.simulated: list[Tensor] | None = None  # spike counts, when they are to be kept
        self.through: tuple[Tensor, int] | None = None  # rate and T to differentiate through

    def start(self, batch: int) -> None:
        """Forget the last pass; the next calls belong to `batch` new pictures."""
        self.batch, self.potential = batch, None

    def keep_rates(self) -> None:
        """Keep the spike counts of the next pass."""
        self.simulated, self.through = [], None

    def go_through(self, steps: int) -> None:
        """Answer the next mean current with the rates just kept, over `steps` time steps."""
        self.through = torch.stack(self.simulated).sum(0) / steps, steps
        self.simulated = None

    def forward(self, current: Tensor) -> Tensor:
        threshold = _per_channel(self.threshold, current.ndim)
        if self.through is not None:
            initial = _per_channel(self.initial, current.ndim)
            rate, steps = self.through
            self.through = None
            return rate_through(current, initial, threshold, rate, steps)
        potential = self.potential
        if potential is None:
            initial = _per_channel(self.initial, current.ndim)
            shape = (self.batch, *current.shape[1:])
            potential = initial.expand(shape).contiguous(memory_format=memory_format(current))
        if torch.is_grad_enabled() and (current.requires_grad or potential.requires_grad):
            spikes, potential = integrate_and_fire_surrogate(
                current, potential, threshold, self.steps, self.alpha
            )
        else:
            spikes, potential = integrate_and_fire(
                current, potential, threshold, self.steps, self.spike_dtype
            )
        self.potential = potential
        if self.simulated is not None:
            counts = spikes.unflatten(0, (self.steps, self.batch)).sum(0, dtype=torch.float32)
            self.simulated.append(counts)
        if self.spike_sum is not None:
            self.spike_sum += spikes.detach().sum(dtype=torch.float64)
            self.spike_size += spikes.numel()
        return spikes

    def count_spikes(self, on: bool) -> None:
        """Start counting spikes from zero, or stop."""
        device = self.threshold.device
        self.spike_sum = torch.zeros((), dtype=torch.float64, device=device) if on else None
        self.spike_size = 0

    def extra_repr(self) -> str:
        return f"threshold={self.threshold.mean().item():.3g}"


class Readout(nn.Module):
    """A linear layer without a neuron: computed once, on the mean of its input over time.

    With `each_step` it is computed on the input of every step, for an any-time readout.

    Shape:
        spikes [T*B, C, ...] -> mean input potential [B, K, ...], or that of each step [T*B, K, ...]
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.batch = 1
        self.each_step = False

    def start(self, batch: int) -> None:
        """The next call belongs to `batch` new pictures."""
        self.batch = batch

    def forward(self, spikes: Tensor) -> Tensor:
        if self.each_step:
            return self.layer(spikes.float())
        rates = spikes.unflatten(0, (-1, self.batch)).mean(0, dtype=torch.float32)
        return self.layer(rates)


class ConstantInput(nn.Module):
    """A layer before the first neuron: its input is the same in every step, so it runs once.

    Shape:
        [B, C, ...] -> [B, K, ...]
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.result: Tensor | None = None

    def start(self, batch: int) -> None:
        """Forget the last pass."""
        self.result = None

    def forward(self, analog: Tensor) -> Tensor:
        if self.result is None:
            self.result = self.layer(analog)
        return self.result


class CalledInTurn(nn.Module):
    """One module called at several places of a network: another neuron at each call."""

    def __init__(self, neurons: list[nn.Module]):
        super().__init__()
        self.neurons = nn.ModuleList(neurons)
        self.turn = 0

    def forward(self, current: Tensor) -> Tensor:
        neuron = self.neurons[self.turn]
        self.turn = (self.turn + 1) % len(self.neurons)
        return neuron(current)


def _per_channel(value: Tensor, ndim: int) -> Tensor:
    """Scalar, [C] or [C, H, W] -> broadcastable to [B, C, ...] of `ndim` dimensions."""
    if value.ndim == 1:
        return value.view(1, -1, *[1] * (ndim - 2))
    return value
