"""Stage I: the quantise-clip activation (eq 12-15)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikedet.neurons.functional import parts


class _QuantClip(torch.autograd.Function):
    """theta * clip(round(x T / theta), 0, T) / T, rounding half up, straight-through gradient.

    Only the input is kept for the backward pass, and a CPU goes through it one picture at a time,
    so that the intermediate results stay in its cache: four times faster than whole batches.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, steps: int, keep: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, threshold, keep)
        ctx.steps = steps
        y = torch.empty_like(x)
        for x_part, y_part in zip(parts(x), parts(y), strict=True):
            level = _quantised(x_part.float() * (1 / threshold), steps, keep)
            y_part.copy_(level.mul_(threshold))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, threshold, keep = ctx.saved_tensors
        grad_x, grad_theta = torch.empty_like(x), torch.zeros_like(threshold)
        for x_part, part, out in zip(parts(x), parts(grad), parts(grad_x), strict=True):
            z, part = x_part.float() * (1 / threshold), part.float()
            inside = (z > 0) & (z < 1)
            out.copy_(part * inside)
            # d y / d theta: what rounding added, or 1 where it is clipped from above (eq 15)
            added = _quantised(z, ctx.steps, keep).sub_(z * inside).mul_(part)
            grad_theta += added.sum_to_size(threshold.shape) if threshold.ndim else added.sum()
        return grad_x, grad_theta, None, None


def _quantised(z: Tensor, steps: int, keep: Tensor | None) -> Tensor:
    """z -> clip(round(z T) / T, 0, 1), unrounded where `keep`."""
    level = (z * steps).add_(0.5).floor_().div_(steps)
    if keep is not None:
        level = torch.where(keep, z, level)
    return level.clamp_(0, 1)


class QuantClip(nn.Module):
    """Quantise-clip activation with a trainable threshold and quantisation noise.

    y = theta * clip(round(x T / theta) / T, 0, 1) (eq 12, 13), computed in float32, rounding half
    up, which is what a neuron that starts at theta / 2 does. While training, an element stays
    unquantised with probability `noise` (eq 14, as the published code does it); one mask is drawn
    for all pictures of a batch.

    Args:
        threshold: Scalar, or [C] for one a channel.
        steps: T; None clips without quantising.
        noise: Probability p that an element is not quantised while training.

    Shape:
        [B, C, ...] -> [B, C, ...]
    """

    def __init__(self, threshold: Tensor, steps: int | None, noise: float = 0.1):
        super().__init__()
        self.threshold = nn.Parameter(threshold.detach().float().clone())
        self.steps, self.noise = steps, noise

    def forward(self, x: Tensor) -> Tensor:
        threshold = self.threshold.abs().clamp(min=1e-6)
        if threshold.ndim:
            threshold = threshold.view(1, -1, *[1] * (x.ndim - 2))
        if self.steps is None:
            return torch.minimum(x.float().clamp(min=0), threshold).to(x.dtype)
        keep = None
        if self.training and self.noise > 0:
            keep = torch.empty_like(x[:1], dtype=torch.float32).uniform_() < self.noise
        return _QuantClip.apply(x, threshold, self.steps, keep)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold.abs().mean().item():.3g}, T={self.steps}"
