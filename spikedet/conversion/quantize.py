"""Stage I: the quantise-clip activation (eq 12-15)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _QuantClip(torch.autograd.Function):
    """theta * clip(round(x T / theta), 0, T) / T, rounding half up, straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, steps: int, keep: Tensor | None) -> Tensor:
        z = x.float() * (1 / threshold)
        level = (z * steps).add_(0.5).floor_().div_(steps)
        if keep is not None:
            level = torch.where(keep, z, level)
        y = level.clamp_(0, 1)
        # d y / d theta: what rounding added, or 1 where it is clipped from above (eq 15)
        ctx.save_for_backward(z, y)
        ctx.theta = threshold
        return (y * threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, y = ctx.saved_tensors
        inside = (z > 0) & (z < 1)
        grad_x = grad * inside
        by_theta = grad * (y - z * inside)
        shape = ctx.theta.shape
        grad_theta = by_theta.sum_to_size(shape) if shape else by_theta.sum()
        return grad_x, grad_theta.float(), None, None


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
            keep = torch.rand(x.shape[1:], device=x.device) < self.noise
        return _QuantClip.apply(x, threshold, self.steps, keep)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold.abs().mean().item():.3g}, T={self.steps}"
