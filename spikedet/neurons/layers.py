"""What knows time: neurons, pooling of spike counts, and the mean that a readout reads.

Between layers time is folded into the batch, [T*B, C, ...], time-major. Only these modules unfold
it. They keep nothing of a pass: what one call leaves for the next (potentials, counts, a mean) is
returned by `advance` and handed to it again, so that several passes may run at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.errors import UsageError
from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
    memory_format,
)
from spikedet.neurons.slope import Slope, checked, spread
from spikedet.precision import mixed


class Temporal(nn.Module, ABC):
    """A module whose output at a step depends on the steps before it."""

    @abstractmethod
    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """Go on by some steps.

        Args:
            x: Inputs of these steps, [steps*B, ...].
            batch: B.
            steps: How many.
            memory: What the call for the steps before returned; None at the start of a pass.

        Returns:
            Outputs [steps*B, ...] (of a mean [B, ...]), and what the next call needs.
        """

    def forward(self, x: Tensor) -> Tensor:
        """The first step of a pass over [B, ...]."""
        return self.advance(x, len(x), 1, None)[0]


class IFNeuron(Temporal):
    """Integrate-and-fire neurons of one layer, soft reset, spikes 0/1 (-1/0/1 with a slope).

    Args:
        threshold: Firing threshold theta > 0, scalar (one a layer) or [C] (one a channel).
        initial: Potential before the first step [C] or [C, H, W]; theta / 2 when None, which makes
            the rate of a constant current equal to round-half-up (eq 16).
        slope: Of the negative side, 0 <= slope <= 1: the leak of a leaky ReLU (eq 22), 0 of a ReLU;
            of a list one a channel.
        folded: The layers that read the spikes have theta in their weights, and 0/1 travels. False
            where theta itself has to travel, as before an addition of unlike thresholds or on a
            shortcut to other neurons: then the output is theta times the spikes.

    Shape:
        current [T*B, C, ...] or, constant over time, [B, C, ...] -> spikes [T*B, C, ...]
    """

    threshold: Tensor

    def __init__(
        self,
        threshold: Tensor,
        initial: Tensor | None = None,
        slope: Slope = 0.0,
        folded: bool = True,
    ):
        super().__init__()
        threshold = threshold.detach().float()
        if threshold.device.type != "meta" and not bool((threshold > 0).all()):
            raise ValueError(
                f"the smallest threshold is {threshold.min().item()}; expected thresholds above 0"
            )
        self.register_buffer("threshold", threshold.clone())
        if initial is None:
            initial = threshold / 2
        self.initial = nn.Parameter(initial.detach().float().clone())
        self.slope, self.folded = checked(slope), folded
        self.spike_dtype: torch.dtype | None = None  # that of the current

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """As `Temporal.advance`; what goes on are the potentials [B, C, ...]."""
        potential = self.first_potential(x, batch) if memory is None else memory
        spikes, potential = self.fire(x, potential, steps)
        return self.on_wire(spikes), potential

    def fire(
        self, current: Tensor, potential: Tensor, steps: int, alpha: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Spikes of some steps, -1, 0 or 1, and the potentials after them (eq 2-4)."""
        threshold = per_channel(self.threshold, current.ndim)
        slope = spread(self.slope, current)
        if torch.is_grad_enabled() and (current.requires_grad or potential.requires_grad):
            return integrate_and_fire_surrogate(current, potential, threshold, steps, alpha, slope)
        return integrate_and_fire(current, potential, threshold, steps, self.spike_dtype, slope)

    def first_potential(self, current: Tensor, batch: int) -> Tensor:
        """Potentials before the first step, [B, C, ...], for currents [.., C, ...].

        Raises:
            UsageError: Initial potentials of each neuron, at another size than they were made for.
        """
        size = current.shape[2:]
        if self.initial.ndim > 1 and self.initial.shape[1:] != size:
            raise UsageError(
                f"a channel of this layer has {tuple(size)} neurons, but initial potentials for "
                f"{tuple(self.initial.shape[1:])}; use the picture size of the calibration"
            )
        initial = per_channel(self.initial, current.ndim).expand(batch, *current.shape[1:])
        return initial.contiguous(memory_format=memory_format(current))

    def on_wire(self, spikes: Tensor) -> Tensor:
        """What the next layers receive for spikes [.., C, ...]: see `folded`."""
        if self.folded:
            return spikes
        return spikes * per_channel(self.threshold, spikes.ndim).to(spikes.dtype)

    def extra_repr(self) -> str:
        wire = "" if self.folded else ", theta on the wire"
        slope = f", slope={self.slope}" if self.slope else ""
        return f"threshold={self.threshold.mean().item():.3g}{slope}{wire}"


class MeanOverTime(Temporal):
    """The mean over all steps of a pass so far: what a readout, a layer without a neuron, reads.

    Steps may count unequally, as later ones know more than the first, whose neurons have seen a
    single spike of each layer: with `log_weights` w, step t counts exp(w[t]) times, and a step
    after the last of them as much as that one.

    Args:
        steps: Steps that have a weight of their own; None where all count alike.

    Attributes:
        log_weights: [steps], a parameter, or None.

    Shape:
        [t*B, C, ...] -> [B, C, ...]
    """

    log_weights: nn.Parameter | None

    def __init__(self, steps: int | None = None):
        super().__init__()
        self.register_parameter("log_weights", None)
        if steps is not None:
            self.log_weights = nn.Parameter(torch.zeros(steps))

    @property
    def steps(self) -> int | None:
        """Steps that have a weight of their own."""
        return None if self.log_weights is None else len(self.log_weights)

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """As `Temporal.advance`; what goes on is the mean, what it counts, and how many steps."""
        done = memory[2] if memory else 0
        weights = self._weights(done, steps, x.device)
        new, total = mean_over_time(x, batch, weights), weights.sum()
        if memory:
            mean, mass, _ = memory
            total = mass + total
            new = torch.lerp(new, mean, mass / total)
        return new, (new, total, done + steps)

    def each(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """As `advance`, but the means up to each of the steps, [steps*B, C, ...]."""
        done = memory[2] if memory else 0
        weights = self._weights(done, steps, x.device)
        over_time = x.unflatten(0, (steps, batch))
        sums = (over_time * _leading(weights, over_time.ndim)).cumsum(0)
        masses = weights.cumsum(0)
        if memory:
            mean, mass, _ = memory
            sums, masses = sums + mean * mass, masses + mass
        means = sums / _leading(masses, sums.ndim)
        return means.flatten(0, 1), (means[-1], masses[-1], done + steps)

    def _weights(self, done: int, steps: int, device: torch.device) -> Tensor:
        """What each of the next steps counts, [steps]."""
        if self.log_weights is None:
            return torch.ones(steps, device=device)
        now = torch.arange(done, done + steps, device=device)
        return self.log_weights[now.clamp(max=len(self.log_weights) - 1)].exp()


class SpikingMaxPool(Temporal):
    """Max-pooling of cumulative spike counts c: out[t] = maxpool(c[t]) - maxpool(c[t-1]).

    The sum of the outputs over time is the maximum of the sums of the inputs, so the rate that
    leaves is exactly the largest that enters; a maximum taken in every step lies above it. The
    output at t needs nothing later than t. 0/1 stay 0/1 and -1/0/1 stay -1/0/1: a count moves by
    one a step at most, and so does the largest. Real currents may be pooled in the same way.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: As of `torch.nn.MaxPool2d`.
        dimensions: 1 or 2.
        mode: `count`, or `step` for the maximum in every step.

    Shape:
        [T*B, C, H, W] -> [T*B, C, H', W'], or without H
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        ceil_mode: bool = False,
        dimensions: int = 2,
        mode: str = "count",
    ):
        if mode not in ("count", "step"):
            raise ValueError(f"max-pooling mode is {mode!r}; expected 'count' or 'step'")
        if dimensions not in (1, 2):
            raise ValueError(f"max-pooling over {dimensions} dimensions; expected 1 or 2")
        super().__init__()
        self.kernel_size, self.padding, self.dilation = kernel_size, padding, dilation
        self.stride = kernel_size if stride is None else stride
        self.ceil_mode, self.dimensions, self.mode = ceil_mode, dimensions, mode

    def pool(self, x: Tensor) -> Tensor:
        """The maximum of each window of [B, C, H, W]."""
        function = F.max_pool2d if self.dimensions == 2 else F.max_pool1d
        return function(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """As `Temporal.advance`; what goes on are the counts [B, C, H, W] and their maxima."""
        if self.mode == "step":
            return self.pool(x), None
        counts = x.float().unflatten(0, (steps, batch)).cumsum(0)  # [t, B, C, H, W]
        if memory is not None:
            counts = counts + memory[0]
        pooled = self.pool(counts.flatten(0, 1)).unflatten(0, (steps, batch))
        before = torch.zeros_like(pooled[0]) if memory is None else memory[1]
        sent = pooled - torch.cat([before[None], pooled[:-1]])
        return sent.flatten(0, 1).to(x.dtype), (counts[-1], pooled[-1])

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, mode={self.mode}"


def count_spikes(spikes: Tensor) -> Tensor:
    """Number of spikes in each frame of [T*B, C, ...], [T*B] float32; of any sign and amplitude.

    Exact up to 2**24 spikes a frame, and a hundred times faster on a CPU than one sum in float64.
    """
    fired = [torch.ne(frame, 0, out=torch.empty_like(frame)) for frame in spikes]
    return torch.stack([frame.sum(dtype=torch.float32) for frame in fired])


def per_channel(value: Tensor, ndim: int) -> Tensor:
    """Scalar, [C] or [C, H, W] -> broadcastable to [B, C, ...] of `ndim` dimensions."""
    if value.ndim == 1:
        return value.view(1, -1, *[1] * (ndim - 2))
    return value


def mean_over_time(spikes: Tensor, batch: int, weights: Tensor) -> Tensor:
    """Weighted mean of spikes [T*B, C, ...] over time, [B, C, ...] float32 (float64 of float64).

    Args:
        spikes: Time-major.
        batch: B.
        weights: [T].
    """
    # a product of matrices in the order of memory: a sum over time takes ten times as long on a CPU
    channels_last = memory_format(spikes) == torch.channels_last
    frames = spikes.permute(0, 2, 3, 1) if channels_last else spikes
    weights = weights.to(torch.promote_types(weights.dtype, spikes.dtype))
    over_time = frames.unflatten(0, (len(weights), batch)).flatten(1).to(weights.dtype)
    with mixed(spikes.device.type, False):
        mean = (weights / weights.sum() @ over_time).view(batch, *frames.shape[1:])
    return mean.permute(0, 3, 1, 2) if channels_last else mean


def _leading(value: Tensor, ndim: int) -> Tensor:
    """[T] -> broadcastable to [T, ...] of `ndim` dimensions."""
    return value.view(-1, *[1] * (ndim - 1))
