"""The quantise-clip activation of stage I (eq 12-15)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikedet.neurons import compiled
from spikedet.neurons.functional import memory_format, pictures_per_pass, signed
from spikedet.neurons.slope import Slope, broadcast_slope, check_slope


class _QuantClip(torch.autograd.Function):
    """Compute theta * level(x / theta) with a straight-through gradient (see `levels`).

    Only the input is stored for the backward pass. Without compiled kernels, a CPU processes a few
    pictures at a time, so that the intermediate results stay in its cache. This is four times as
    fast as whole batches.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        threshold: Tensor,
        steps: int,
        keep: Tensor | None,
        slope: float | Tensor,
        lag: float,
    ) -> Tensor:
        ctx.save_for_backward(x, threshold, keep)
        ctx.steps, ctx.slope, ctx.lag = steps, slope, lag
        done = compiled.quantise(x, threshold, steps, keep, slope, lag)
        if done:
            return done[0]
        y = torch.empty_like(x)
        size = pictures_per_pass(x)
        for x_part, y_part in zip(x.split(size), y.split(size), strict=True):
            level = levels(x_part.float() * (1 / threshold), steps, slope, keep)
            y_part.copy_(level.mul_(threshold))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, threshold, keep = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        arguments = (x, threshold, ctx.steps, keep, ctx.slope, ctx.lag, grad)
        done = compiled.quantise(*arguments)
        if done and done[1] is not None:
            return done[0], done[1].view_as(threshold), None, None, None, None
        grad_x, grad_theta = torch.empty_like(x), torch.zeros_like(threshold)
        size = pictures_per_pass(x)
        parts = (x.split(size), grad.split(size), grad_x.split(size))
        for x_part, part, out in zip(*parts, strict=True):
            z, part = x_part.float() * (1 / threshold), part.float()
            line = _slope_of_line(z, ctx.slope, ctx.lag)
            out.copy_(part * line)
            # d y / d theta: what rounding added, or 1 where it is clipped from above (eq 15),
            # -1 where it is clipped from below
            added = levels(z, ctx.steps, ctx.slope, keep).addcmul_(z, line, value=-1).mul_(part)
            grad_theta += added.sum_to_size(threshold.shape) if threshold.ndim else added.sum()
        return grad_x, grad_theta, None, None, None, None


def levels(
    z: Tensor, steps: int, slope: float | Tensor = 0.0, keep: Tensor | None = None
) -> Tensor:
    """The spike rate after T steps of a constant current z theta, starting at theta / 2.

    For z >= 0 it is clip(floor(z T + 1/2) / T, 0, 1), which rounds half up (eq 12). For z < 0 it is
    -clip(floor(slope (|z| T - 1/2)) / T, 0, 1) (eq 22): the start at theta / 2 is further away from
    the lower threshold, by theta / 2. With slope 1 both sides are rounded to the nearest level.

    Args:
        z: Pre-activation in units of the threshold, any shape, float32.
        steps: Number of time steps T.
        slope: Slope of the negative side, a number or broadcastable to z.
        keep: 1.0 where z is not rounded, else 0.0; broadcastable to z. Values that are not rounded
            are still clipped.

    Returns:
        Levels k / T, -1..1, with the shape of z.
    """
    level = (z * steps).add_(0.5).floor_()
    each = isinstance(slope, Tensor)
    if each or 0 < slope < 1:
        below = -((-0.5 - z * steps) * slope).floor_().clamp_(min=0)
        leaks = (z < 0) & (slope != 1) if each else z < 0  # with 1 both sides are rounded alike
        level = torch.where(leaks, below, level)
    level.div_(steps)
    if keep is not None:
        line = torch.where(z < 0, z * slope, z) if signed(slope) else z
        level = torch.where(keep != 0, line, level)
    return level.clamp_(-1 if signed(slope) else 0, 1)


def _slope_of_line(z: Tensor, slope: float | Tensor, lag: float = 0.0) -> Tensor:
    """Derivative of the activation without rounding: 1 above 0, the slope below 0, 0 if clipped.

    With `lag` of half a level, it is 0 where the rounded activation is clipped. The code uses no
    bool tensors, because CPUs are several times slower with bool than with float.
    """
    inside, other = torch.empty_like(z), torch.empty_like(z)
    torch.gt(z, -lag, out=inside)
    inside.mul_(torch.lt(z, 1 - lag, out=other))
    if not signed(slope):
        return inside
    leaking = torch.le(z, 0, out=torch.empty_like(z))
    leaking.mul_(torch.gt(z * slope, -1, out=other))
    return inside.mul_(1 - leaking).add_(leaking.mul_(slope))


class QuantClip(nn.Module):
    """Quantise-clip activation with a trainable threshold and quantisation noise.

    y = theta * clip(round(x T / theta) / T, 0, 1) (eq 12, 13)

    It is computed in float32. Halves are rounded up, which matches a neuron with an initial
    potential of theta / 2. In training, each element is left unquantised with probability `noise`
    (eq 14, like the published code). All pictures of a batch share one random mask.

    Args:
        threshold: Scalar, or [C] with one threshold for each channel.
        steps: Number of time steps T, which is also the number of levels.
        noise: Probability p that an element is not quantised in training.
        slope: Slope of the negative side: 0 for a ReLU, the slope of a leaky ReLU, or a list with
            one slope for each channel. With a slope, values are clipped at -theta (see `levels`).

    Attributes:
        clips_rounded: If True, the gradient passes where 0 <= floor(x T / theta + 1/2) < T, as in
            QCFS (Bu et al., ICLR 2022). If False, it passes where 0 < x < theta. It has no effect
            with a slope.

    Shape:
        [B, C, ...] -> [B, C, ...]
    """

    def __init__(self, threshold: Tensor, steps: int, noise: float = 0.1, slope: Slope = 0.0):
        super().__init__()
        self.threshold = nn.Parameter(threshold.detach().float().clone())
        self.steps, self.noise, self.slope = steps, noise, check_slope(slope)
        self.clips_rounded = False

    def forward(self, x: Tensor) -> Tensor:
        threshold = self.threshold.abs().clamp(min=1e-6)
        if threshold.ndim:
            threshold = threshold.view(1, -1, *[1] * (x.ndim - 2))
        keep = None
        if self.training and self.noise > 0:
            drawn = torch.empty_like(x[:1], dtype=torch.float32).uniform_()
            keep = torch.lt(drawn, self.noise, out=drawn)
        slope = broadcast_slope(self.slope, x)
        lag = 0.5 / self.steps if self.clips_rounded and not signed(slope) else 0.0
        return _QuantClip.apply(x, threshold, self.steps, keep, slope, lag)

    def extra_repr(self) -> str:
        slope = f", slope={self.slope}" if self.slope else ""
        return f"threshold={self.threshold.abs().mean().item():.3g}, T={self.steps}{slope}"
