"""Dynamics of integrate-and-fire neurons, pure: (current, potential) -> (spikes, potential).

    u[t] = u[t-1] + v[t]            integrate            (eq 2)
    s[t] = 1 if u[t] >= theta else 0   fire              (eq 3)
    u[t] = u[t] - theta s[t]        soft reset           (eq 4)

The surrogate gradient of the step (eq 20) is written in the normalised potential u / theta, a
rectangle of width `alpha` and area 1 around the threshold:

    h = ds/du = 1 / (alpha theta)   where |u / theta - 1| < alpha / 2, else 0

so the gradient that passes one step (eq 21) is du[t]/du[t-1] = 1 - theta h, the reset included.

The neuron of a leaky ReLU (eq 22) has a second threshold below zero, where its slope a > 0 makes
it fire less often:

    s[t] = -1 if u[t] <= -theta / a, and then u[t] = u[t] + theta / a

A spike of either sign carries theta. The surrogate of the lower step is the same rectangle in its
own normalised potential, a u / theta:

    h' = ds/du = a / (alpha theta)   where |a u / theta + 1| < alpha / 2, else 0

and du[t]/du[t-1] = 1 - theta h - (theta / a) h': each factor is 1 - 1 / alpha in its window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def integrate_and_fire(
    current: Tensor,
    potential: Tensor,
    threshold: Tensor,
    steps: int,
    dtype: torch.dtype | None = None,
    slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run neurons over `steps` time steps; no gradient.

    Args:
        current: Input currents v, time-major [T*B, C, ...], or [B, C, ...] for a current that is
            the same in every step.
        potential: Membrane potentials u before the first step, [B, C, ...] float32. Not modified.
        threshold: Firing thresholds theta > 0, a scalar or broadcastable to [B, C, ...], float32.
        steps: T.
        dtype: Of the spikes, that of `current` by default. 0 and 1 are exact in every type.
        slope: Of the negative side, 0 <= slope <= 1; with 0 there are no negative spikes.

    Returns:
        Spikes 0/1 (-1/0/1 with a slope) [T*B, C, ...], and the potentials after the last step in
        float32.
    """
    batch = len(potential)
    spikes = _empty_spikes(current, batch, steps, dtype or current.dtype)
    u = potential.clone()
    currents = current.unflatten(0, (-1, batch))  # [T, B, C, ...] or [1, B, C, ...]
    over_time = spikes.unflatten(0, (steps, batch))
    for v, potentials, s in zip(parts(currents, 1), parts(u), parts(over_time, 1), strict=True):
        if slope:
            _advance_signed(v, potentials, threshold, s, slope)
        else:
            _advance(v, potentials, threshold, s)
    return spikes, u


def _advance(currents: Tensor, u: Tensor, threshold: Tensor, spikes: Tensor) -> None:
    """Fill `spikes` [T, B, C, ...] and advance the potentials `u` [B, C, ...] in place."""
    same = spikes.dtype == u.dtype
    fired = torch.empty_like(u)
    for t in range(len(spikes)):
        u += currents[t if len(currents) > 1 else 0].float()
        fired = spikes[t] if same else fired
        torch.ge(u, threshold, out=fired)  # into another type it would be several times slower
        if not same:
            spikes[t] = fired
        u.addcmul_(fired, threshold, value=-1)


def _advance_signed(
    currents: Tensor, u: Tensor, threshold: Tensor, spikes: Tensor, slope: float
) -> None:
    """`_advance` for neurons with a negative threshold."""
    for t in range(len(spikes)):
        u += currents[t if len(currents) > 1 else 0].float()
        above, below = _fire_signed(u, threshold, slope)
        spikes[t] = above - below


def _fire_signed(u: Tensor, threshold: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Where `u` reaches either threshold (0/1 float32 each); `u` is reset in place."""
    depth = threshold / slope
    above, below = (u >= threshold).float(), (u <= -depth).float()
    u.addcmul_(above, threshold, value=-1).addcmul_(below, depth)
    return above, below


def parts(batch: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of the pictures computed together: one on a CPU, where it stays in the cache."""
    return batch.split(1, dim) if batch.device.type == "cpu" else (batch,)


def _empty_spikes(current: Tensor, batch: int, steps: int, dtype: torch.dtype) -> Tensor:
    """[T*B, C, ...] in the layout of `current`."""
    shape, layout = (steps * batch, *current.shape[1:]), memory_format(current)
    return torch.empty(shape, dtype=dtype, device=current.device, memory_format=layout)


class _IntegrateAndFire(torch.autograd.Function):
    """`integrate_and_fire` with the surrogate gradient; threshold gets no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        potential: Tensor,
        threshold: Tensor,
        steps: int,
        alpha: float,
        slope: float,
    ) -> tuple[Tensor, Tensor]:
        batch = len(potential)
        ctx.constant, ctx.steps, ctx.alpha, ctx.slope = len(current) == batch, steps, alpha, slope
        spikes = _empty_spikes(current, batch, steps, current.dtype)
        near = _empty_spikes(current, batch, steps, torch.bool)
        near_below = torch.empty_like(near) if slope else None
        low, high = threshold * (1 - alpha / 2), threshold * (1 + alpha / 2)
        u = potential.clone()
        for t in range(steps):
            now = slice(t * batch, (t + 1) * batch)
            u += (current if ctx.constant else current[now]).float()
            torch.logical_and(u > low, u < high, out=near[now])
            if slope:
                torch.logical_and(u * -slope > low, u * -slope < high, out=near_below[now])
                above, below = _fire_signed(u, threshold, slope)
                spikes[now] = above - below
                continue
            fired = (u >= threshold).float()
            spikes[now] = fired
            u.addcmul_(fired, threshold, value=-1)
        ctx.save_for_backward(near, threshold, near_below)
        ctx.current_dtype = current.dtype
        return spikes, u

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor, grad_u: Tensor) -> tuple[Tensor | None, ...]:
        near, threshold, near_below = ctx.saved_tensors
        batch = len(near) // ctx.steps
        height = 1 / (ctx.alpha * threshold)
        passed = 1 / ctx.alpha  # theta h inside a window, of either sign
        grad = grad_u.float().clone()
        grad_current = None if ctx.constant else torch.empty_like(near, dtype=torch.float32)
        total = torch.zeros_like(grad) if ctx.constant else None
        for t in reversed(range(ctx.steps)):
            now = slice(t * batch, (t + 1) * batch)
            inside, later, grad_s = near[now], grad, grad_spikes[now]
            # dL/du = h dL/ds + (1 - theta h) dL/du[t]
            grad = torch.where(inside, later * (1 - passed) + grad_s * height, later)
            if near_below is not None:
                change = grad_s * (height * ctx.slope) - later * passed
                grad = torch.where(near_below[now], grad + change, grad)
            if total is not None:
                total += grad
            else:
                grad_current[now] = grad
        grad_current = total if total is not None else grad_current
        return grad_current.to(ctx.current_dtype), grad, None, None, None, None


def integrate_and_fire_surrogate(
    current: Tensor,
    potential: Tensor,
    threshold: Tensor,
    steps: int,
    alpha: float = 1.0,
    slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`integrate_and_fire` that can be trained by back-propagation through time (eq 20, 21).

    Args:
        current: As for `integrate_and_fire`; gets a gradient.
        potential: As there; gets a gradient.
        threshold: As there; a constant.
        steps: T.
        alpha: Width of the surrogate's windows in units of their threshold.
        slope: As there.

    Returns:
        Spikes and final potentials, equal to those of `integrate_and_fire`.
    """
    return _IntegrateAndFire.apply(current, potential, threshold, steps, alpha, slope)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Layout in which results are allocated, so that convolutions need not convert."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
