"""Spiking neurons as modules: they hold threshold and initial potential, and unfold time.

Between layers time is folded into the batch, [T*B, C, ...], time-major. Only these modules know T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikedet.errors import UsageError
from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
    memory_format,
)
from spikedet.precision import mixed


class IFNeuron(nn.Module):
    """Integrate-and-fire neurons of one layer, soft reset, spikes 0/1 (-1/0/1 with a slope).

    The network around it calls `start` before each pass; potentials live from there to the end of
    the pass and never longer.

    Args:
        threshold: Firing threshold theta > 0, scalar (one a layer) or [C] (one a channel).
        initial: Potential before the first step [C] or [C, H, W]; theta / 2 when None, which makes
            the rate of a constant current equal to round-half-up (eq 16).
        slope: Of the negative side, 0 <= slope <= 1: the leak of a leaky ReLU (eq 22), 0 of a ReLU.

    Attributes:
        folded: The layers that read the spikes have theta in their weights, and 0/1 travels. False
            where theta itself has to travel, as before an addition of unlike thresholds or on a
            shortcut to other neurons: then the output is theta times the spikes.

    Shape:
        current [T*B, C, ...] or, constant over time, [B, C, ...] -> spikes [T*B, C, ...]
    """

    def __init__(self, threshold: Tensor, initial: Tensor | None = None, slope: float = 0.0):
        super().__init__()
        if not 0 <= slope <= 1:
            raise ValueError(f"the slope of the negative side is {slope}; expected 0 to 1")
        threshold = threshold.detach().float()
        if not bool((threshold > 0).all()):
            raise ValueError(f"thresholds must be positive, not {threshold.min().item()}")
        self.register_buffer("threshold", threshold.clone())
        if initial is None:
            initial = threshold / 2
        self.initial = nn.Parameter(initial.detach().float().clone())
        self.slope, self.folded = slope, True
        self.spike_dtype: torch.dtype | None = None  # that of the current
        self.steps, self.batch = 1, 1
        self.potential: Tensor | None = None

    def start(self, batch: int) -> None:
        """Forget the last pass; the next calls belong to `batch` new pictures."""
        self.batch, self.potential = batch, None

    def forward(self, current: Tensor) -> Tensor:
        threshold = per_channel(self.threshold, current.ndim)
        potential = self.potential
        if potential is None:
            potential = self.first_potential(current, self.batch)
        if torch.is_grad_enabled() and (current.requires_grad or potential.requires_grad):
            spikes, potential = integrate_and_fire_surrogate(
                current, potential, threshold, self.steps, slope=self.slope
            )
        else:
            spikes, potential = integrate_and_fire(
                current, potential, threshold, self.steps, self.spike_dtype, self.slope
            )
        self.potential = potential
        return self.on_wire(spikes)

    def first_potential(self, current: Tensor, batch: int) -> Tensor:
        """Potentials before the first step, [B, C, ...], for currents [.., C, ...].

        Raises:
            UsageError: Initial potentials of each neuron, at another size than they were made for.
        """
        size = current.shape[2:]
        if self.initial.ndim > 1 and self.initial.shape[1:] != size:
            raise UsageError(
                f"a layer of {tuple(size)} neurons a channel has initial potentials for "
                f"{tuple(self.initial.shape[1:])}; run this network at the picture size that it "
                "was calibrated for"
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


class Readout(nn.Module):
    """A linear layer without a neuron: computed on the mean of its input over time.

    The mean is that of all steps since `start`, in however many calls they came. Steps may count
    unequally, as later ones know more than the first, whose neurons have seen a single spike of
    each layer: with `log_weights` w, step t counts exp(w[t]) times, and a step after the last of
    them as much as that one.

    Args:
        layer: The linear layer.

    Attributes:
        log_weights: [T], a parameter; None where all steps count alike.
        each_step: Compute the layer on the mean over the steps up to each, for an any-time readout.

    Shape:
        spikes [t*B, C, ...] -> mean input potential [B, K, ...], or that after each step
        [t*B, K, ...]
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.register_parameter("log_weights", None)
        self.each_step = False
        self.start(1)

    def weigh_steps(self, T: int) -> None:
        """Give each of T steps a weight of its own, all alike for now."""
        weights = torch.zeros(T, device=next(self.layer.parameters()).device)
        self.log_weights = nn.Parameter(weights)

    def start(self, batch: int) -> None:
        """Forget the last pass; the next calls belong to `batch` new pictures."""
        self.batch, self.steps = batch, 0
        self.mean: Tensor | None = None  # of the input so far [B, C, ...]
        self.mass: Tensor | None = None  # what the steps so far count

    def forward(self, spikes: Tensor) -> Tensor:
        weights = self._weights(len(spikes) // self.batch, spikes.device)
        if self.each_step:
            means = self._means(spikes.unflatten(0, (-1, self.batch)), weights)
            return self.layer(means.flatten(0, 1))
        mean, mass = mean_over_time(spikes, self.batch, weights), weights.sum()
        if self.mean is not None:
            mass = self.mass + mass
            mean = torch.lerp(mean, self.mean, self.mass / mass)
        self.mean, self.mass = mean, mass
        return self.layer(mean)

    def _weights(self, steps: int, device: torch.device) -> Tensor:
        """What each of the next steps counts, [steps]."""
        first, self.steps = self.steps, self.steps + steps
        if self.log_weights is None:
            return torch.ones(steps, device=device)
        now = torch.arange(first, self.steps, device=device)
        return self.log_weights[now.clamp(max=len(self.log_weights) - 1)].exp()

    def _means(self, over_time: Tensor, weights: Tensor) -> Tensor:
        """Mean input up to each of the next steps, [t, B, C, ...]."""
        sums = (over_time * _leading(weights, over_time.ndim)).cumsum(0)
        masses = weights.cumsum(0)
        if self.mean is not None:
            sums, masses = sums + self.mean * self.mass, masses + self.mass
        means = sums / _leading(masses, sums.ndim)
        self.mean, self.mass = means[-1], masses[-1]
        return means


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
        return self.result.clone()  # the network may go on in place


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


class SpikingMaxPool(nn.MaxPool2d):
    """Max-pooling of cumulative spike counts c: out[t] = maxpool(c[t]) - maxpool(c[t-1]).

    The sum of the outputs over time is the maximum of the sums of the inputs, so the rate that
    leaves is exactly the largest that enters; a maximum taken in every step lies above it. The
    output at t needs nothing later than t. 0/1 stay 0/1 and -1/0/1 stay -1/0/1: a count moves by
    one a step at most, and so does the largest. Real currents may be pooled in the same way.

    Args:
        pool: Its window, stride, padding, dilation and ceil_mode are taken over.
        mode: `count`, or `step` for the maximum in every step.

    Shape:
        [T*B, C, H, W] -> [T*B, C, H', W']
    """

    def __init__(self, pool: nn.MaxPool2d, mode: str = "count"):
        if mode not in ("count", "step"):
            raise ValueError(f"max-pooling mode is {mode!r}; expected 'count' or 'step'")
        super().__init__(
            pool.kernel_size,
            pool.stride,
            pool.padding,
            pool.dilation,
            ceil_mode=pool.ceil_mode,
        )
        self.mode = mode
        self.start(1)

    def start(self, batch: int) -> None:
        """Forget the last pass; the next calls belong to `batch` new pictures."""
        self.batch = batch
        self.count: Tensor | None = None  # c [B, C, H, W] at the end of the last call, float32
        self.pooled: Tensor | None = None  # its maximum

    def forward(self, spikes: Tensor) -> Tensor:
        if self.mode == "step":
            return super().forward(spikes)
        counts = spikes.float().unflatten(0, (-1, self.batch)).cumsum(0)  # [T, B, C, H, W]
        if self.count is not None:
            counts = counts + self.count
        pooled = super().forward(counts.flatten(0, 1)).unflatten(0, (-1, self.batch))
        before = torch.zeros_like(pooled[0]) if self.pooled is None else self.pooled
        self.count, self.pooled = counts[-1], pooled[-1]
        return (pooled - torch.cat([before[None], pooled[:-1]])).flatten(0, 1).to(spikes.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode}"


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
    """Weighted mean of spikes [T*B, C, ...] over time, [B, C, ...] float32.

    Traces record it as one operation.

    Args:
        spikes: Time-major.
        batch: B.
        weights: [T].
    """
    if torch.overrides.has_torch_function((spikes,)):
        return torch.overrides.handle_torch_function(
            mean_over_time, (spikes,), spikes, batch, weights
        )
    # a product of matrices in the order of memory: a sum over time takes ten times as long on a CPU
    channels_last = memory_format(spikes) == torch.channels_last
    frames = spikes.permute(0, 2, 3, 1) if channels_last else spikes
    over_time = frames.unflatten(0, (len(weights), batch)).flatten(1).to(weights.dtype)
    with mixed(spikes.device.type, False):
        mean = (weights / weights.sum() @ over_time).view(batch, *frames.shape[1:])
    return mean.permute(0, 3, 1, 2) if channels_last else mean


def _leading(value: Tensor, ndim: int) -> Tensor:
    """[T] -> broadcastable to [T, ...] of `ndim` dimensions."""
    return value.view(-1, *[1] * (ndim - 1))
