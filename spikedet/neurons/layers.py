"""Layers that depend on time: neurons, max-pooling of spike counts, and the mean over time.

Between layers, time is folded into the batch: [T*B, C, ...], time first. Only these modules unfold
it. They store no state of a run. `advance` returns the state (potentials, counts or a mean), and
the caller passes it to the next call. So several runs may be active at the same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.errors import UsageError
from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
    memory_format,
)
from spikedet.neurons.slope import Slope, broadcast_slope, check_slope
from spikedet.precision import mixed


class Temporal(nn.Module, ABC):
    """A module whose output at a time step depends on earlier time steps."""

    @abstractmethod
    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """Compute the next time steps.

        Args:
            x: Inputs of these steps, [steps*B, ...].
            batch: Batch size B.
            steps: Number of time steps.
            memory: The state that the previous call returned. None at the start of a run.

        Returns:
            Outputs [steps*B, ...] (of `MeanOverTime` [B, ...]), and the state for the next call.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the first time step of a run for inputs [B, ...]."""
        return self.advance(x, len(x), 1, None)[0]


class IFNeuron(Temporal):
    """A layer of integrate-and-fire neurons with soft reset (eq 2-4).

    Spikes are 0 or 1. With a slope they are -1, 0 or 1.

    Args:
        threshold: Firing threshold theta > 0: a scalar for the layer, or [C] for each channel.
        initial: Potential before the first step, [C] or [C, H, W]. None: theta / 2. With theta / 2
            the rate of a constant current is rounded to the nearest level, half up (eq 16).
        slope: Slope of the negative side, 0..1: 0 for a ReLU, the slope of a leaky ReLU (eq 22),
            or a list with one slope for each channel.
        folded: True: the weights of the next layers contain theta, and the output is the spikes
            themselves. False: the output is theta times the spikes. This is needed where the next
            layers cannot contain theta: before a sum of spikes with different thresholds, or on a
            shortcut to other neurons.

    Shape:
        current [T*B, C, ...], or [B, C, ...] if constant over time -> spikes [T*B, C, ...]

    Raises:
        ValueError: A threshold is not above 0, or a slope is outside 0..1.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ("slope", "folded")  # stored in files
    LATER_SETTINGS: ClassVar[dict[str, Any]] = {}  # the same; files without them mean these values
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
        self.slope, self.folded = check_slope(slope), folded
        self.spike_dtype: torch.dtype | None = None  # that of the current

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """See `Temporal.advance`. The state is that of `fire`."""
        state = self.start(x, batch) if memory is None else memory
        spikes, state = self.fire(x, state, steps)
        return self.scale_spikes(spikes), state

    @property
    def signed(self) -> bool:
        """Whether it can send negative spikes."""
        return bool(self.slope)

    def start(self, current: Tensor, batch: int) -> Any:
        """The state before the first step, for currents [.., C, ...] (see `fire`)."""
        return self.first_potential(current, batch)

    def fire(
        self, current: Tensor, state: Any, steps: int, alpha: float = 1.0
    ) -> tuple[Tensor, Any]:
        """Compute the spikes (-1, 0 or 1) of some steps, and the state after them (eq 2-4).

        Args:
            current: [steps*B, C, ...], or [B, C, ...] if constant over time.
            state: The state before these steps: the potentials, [B, C, ...].
            steps: Number of time steps.
            alpha: Width of the surrogate gradient, in units of the threshold.
        """
        return self._integrate(current, state, steps, alpha, broadcast_slope(self.slope, current))

    def _integrate(
        self,
        current: Tensor,
        potential: Tensor,
        steps: int,
        alpha: float,
        slope: float | Tensor,
        counts: Tensor | None = None,
        margin: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Spikes and potentials, with the surrogate gradient if one is needed."""
        threshold = per_channel(self.threshold, current.ndim)
        if torch.is_grad_enabled() and (current.requires_grad or potential.requires_grad):
            return integrate_and_fire_surrogate(
                current, potential, threshold, steps, alpha, slope, counts, margin
            )
        dtype = self.spike_dtype
        return integrate_and_fire(
            current, potential, threshold, steps, dtype, slope, counts, margin
        )

    def first_potential(self, current: Tensor, batch: int) -> Tensor:
        """The potentials before the first step, [B, C, ...], for currents [.., C, ...].

        Raises:
            UsageError: There is one initial potential for each neuron, and the size of the currents
                differs from the size of the calibration.
        """
        size = current.shape[2:]
        if self.initial.ndim > 1 and self.initial.shape[1:] != size:
            raise UsageError(
                f"a channel of this layer has {tuple(size)} neurons, but initial potentials for "
                f"{tuple(self.initial.shape[1:])}; use the picture size of the calibration"
            )
        initial = per_channel(self.initial, current.ndim).expand(batch, *current.shape[1:])
        return initial.contiguous(memory_format=memory_format(current))

    def scale_spikes(self, spikes: Tensor) -> Tensor:
        """The output for spikes [.., C, ...]: the spikes, or theta times them (see `folded`)."""
        if self.folded:
            return spikes
        return spikes * per_channel(self.threshold, spikes.ndim).to(spikes.dtype)

    def extra_repr(self) -> str:
        wire = "" if self.folded else ", theta on the wire"
        slope = f", slope={self.slope}" if self.slope else ""
        return f"threshold={self.threshold.mean().item():.3g}{slope}{wire}"


class MeanOverTime(Temporal):
    """The mean over all time steps so far. It is the input of a readout (a layer without neurons).

    The steps may have different weights, because later steps carry more information than the first
    ones. With `log_weights` w, step t has the weight exp(w[t]). Steps after the last entry of w
    have the weight of that entry.

    Args:
        steps: Number of time steps with their own weight. None: all steps have the same weight.

    Attributes:
        log_weights: Parameter [steps], or None.

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
        """Number of time steps with their own weight. None if there are no weights."""
        return None if self.log_weights is None else len(self.log_weights)

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """See `Temporal.advance`. The state is the mean, its total weight, and the step count."""
        done = memory[2] if memory else 0
        weights = self._weights(done, steps, x.device)
        new, total = mean_over_time(x, batch, weights), weights.sum()
        if memory:
            mean, mass, _ = memory
            total = mass + total
            new = torch.lerp(new, mean, mass / total)
        return new, (new, total, done + steps)

    def each(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """Like `advance`, but returns the mean up to each of the steps, [steps*B, C, ...]."""
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
        """The weight of each of the next steps, [steps]."""
        if self.log_weights is None:
            return torch.ones(steps, device=device)
        now = torch.arange(done, done + steps, device=device)
        return self.log_weights[now.clamp(max=len(self.log_weights) - 1)].exp()


class SpikingMaxPool(Temporal):
    """Max-pooling of cumulative spike counts c: out[t] = maxpool(c[t]) - maxpool(c[t-1]).

    The sum of the outputs over time equals the maximum of the sums of the inputs. So the output
    rate is exactly the largest input rate. The maximum of each single step would give a larger
    rate. The output at step t needs no later step. A count changes by at most one in a step, and so
    does the largest count: inputs 0/1 give outputs 0/1, and inputs -1/0/1 give outputs -1/0/1. Real
    currents may be pooled in the same way.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: See `torch.nn.MaxPool2d`.
        dimensions: 1 or 2.
        mode: `count` for the maximum of spike counts, `step` for the maximum in every step.

    Shape:
        [T*B, C, H, W] -> [T*B, C, H', W']; with 1 dimension [T*B, C, W] -> [T*B, C, W']

    Raises:
        ValueError: `mode` or `dimensions` is another value.
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
        """Ordinary max-pooling of [B, C, H, W]."""
        function = F.max_pool2d if self.dimensions == 2 else F.max_pool1d
        return function(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """See `Temporal.advance`. The state is the counts [B, C, H, W] and their pooled maxima."""
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
    """Count the spikes of any sign and amplitude in each frame of [T*B, C, ...].

    Returns:
        [T*B] float32. The counts are exact up to 2**24 spikes in a frame. On a CPU this is a
        hundred times faster than one sum in float64.
    """
    fired = [torch.ne(frame, 0, out=torch.empty_like(frame)) for frame in spikes]
    return torch.stack([frame.sum(dtype=torch.float32) for frame in fired])


def per_channel(value: Tensor, ndim: int) -> Tensor:
    """Reshape a scalar, [C] or [C, H, W] so that it broadcasts to [B, C, ...] (`ndim` dims)."""
    if value.ndim == 1:
        return value.view(1, -1, *[1] * (ndim - 2))
    return value


def mean_over_time(spikes: Tensor, batch: int, weights: Tensor) -> Tensor:
    """Weighted mean of spikes over time.

    Args:
        spikes: [T*B, C, ...], time first.
        batch: Batch size B.
        weights: Weight of each time step, [T].

    Returns:
        [B, C, ...] float32 (float64 for float64 spikes).
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
    """Reshape [T] so that it broadcasts to [T, ...] with `ndim` dimensions."""
    return value.view(-1, *[1] * (ndim - 1))
