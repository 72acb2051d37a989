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

With a = 1, the neuron of a linear bottleneck, the second threshold is 0: s[t] = -1 if u[t] < 0. The
potential then ends within 0 and theta, as that of the neuron of a ReLU, so that with a start at
theta / 2 rates are rounded on both sides. At -theta the negative side would be a whole level short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

NO_SLOPE = 1e-12  # below it a channel counts as one without a lower threshold
CACHED = 1 << 16  # elements that stay in a core's cache together with what is made of them


def integrate_and_fire(
    current: Tensor,
    potential: Tensor,
    threshold: Tensor,
    steps: int,
    dtype: torch.dtype | None = None,
    slope: float | Tensor = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run neurons over `steps` time steps; no gradient.

    Args:
        current: Input currents v, time-major [T*B, C, ...], or [B, C, ...] for a current that is
            the same in every step.
        potential: Membrane potentials u before the first step, [B, C, ...] float32. Not modified.
        threshold: Firing thresholds theta > 0, a scalar or broadcastable to [B, C, ...], float32.
        steps: T.
        dtype: Of the spikes, that of `current` by default. 0 and 1 are exact in every type.
        slope: Of the negative side, 0 <= slope <= 1, a number or broadcastable to [B, C, ...]; with
            0 there are no negative spikes.

    Returns:
        Spikes 0/1 (-1/0/1 with a slope) [T*B, C, ...], and the potentials after the last step in
        float32.
    """
    batch = len(potential)
    spikes = _empty_spikes(current, batch, steps, dtype or current.dtype)
    u = potential.clone()
    currents = current.unflatten(0, (-1, batch))  # [T, B, C, ...] or [1, B, C, ...]
    over_time = spikes.unflatten(0, (steps, batch))
    size = together(u)
    parts = (currents.split(size, 1), u.split(size), over_time.split(size, 1))
    for v, potentials, s in zip(*parts, strict=True):
        if signed(slope):
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
    currents: Tensor, u: Tensor, threshold: Tensor, spikes: Tensor, slope: float | Tensor
) -> None:
    """`_advance` for neurons with a negative threshold."""
    above, below = torch.empty_like(u), torch.empty_like(u)
    for t in range(len(spikes)):
        u += currents[t if len(currents) > 1 else 0].float()
        _fire_signed(u, threshold, slope, above, below)
        spikes[t] = above.sub_(below)


def signed(slope: float | Tensor) -> bool:
    """Whether neurons of this slope, or some of them, send negative spikes."""
    return isinstance(slope, Tensor) or slope != 0


def _fire_signed(
    u: Tensor, threshold: Tensor, slope: float | Tensor, above: Tensor, below: Tensor
) -> None:
    """Fill in where `u` reaches either threshold (0/1 float32 each); `u` is reset in place."""
    torch.ge(u, threshold, out=above)
    if isinstance(slope, Tensor):
        depth = threshold / slope.clamp(min=NO_SLOPE)
        below.copy_(torch.where(slope == 1, u < 0, u <= -depth) & (slope > 0))
    else:
        depth = threshold / slope
        if slope == 1:
            torch.lt(u, torch.zeros_like(depth), out=below)
        else:
            torch.le(u, -depth, out=below)
    u.addcmul_(above, threshold, value=-1).addcmul_(below, depth)


def together(batch: Tensor) -> int:
    """How many pictures of [B, ...] are computed together: on a CPU those that its cache holds."""
    if batch.device.type != "cpu" or not batch.numel():
        return max(1, len(batch))
    return max(1, CACHED // batch[0].numel())


def _empty_spikes(current: Tensor, batch: int, steps: int, dtype: torch.dtype) -> Tensor:
    """[T*B, C, ...] in the layout of `current`."""
    shape, layout = (steps * batch, *current.shape[1:]), memory_format(current)
    return torch.empty(shape, dtype=dtype, device=current.device, memory_format=layout)


class _IntegrateAndFire(torch.autograd.Function):
    """`integrate_and_fire` with the surrogate gradient; threshold gets no gradient.

    Masks are computed as 0.0 and 1.0 and only kept as bool: on a CPU operations that compare into
    bool, or choose by it, take five times as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        potential: Tensor,
        threshold: Tensor,
        steps: int,
        alpha: float,
        slope: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        batch = len(potential)
        ctx.constant, ctx.steps, ctx.alpha, ctx.slope = len(current) == batch, steps, alpha, slope
        spikes = _empty_spikes(current, batch, steps, current.dtype)
        near = _empty_spikes(current, batch, steps, torch.bool)
        near_below = torch.empty_like(near) if signed(slope) else None
        u = potential.clone()
        rows = _pictures(together(u), batch, u, current, spikes, near, near_below)
        for potentials, currents, fired, inside, below in rows:
            _advance_watched(potentials, currents, fired, inside, below, threshold, alpha, slope)
        ctx.save_for_backward(near, threshold, near_below)
        ctx.current_dtype = current.dtype
        return spikes, u

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor, grad_u: Tensor) -> tuple[Tensor | None, ...]:
        near, threshold, near_below = ctx.saved_tensors
        batch = len(near) // ctx.steps
        # in the layout of the spikes: that of grad_u is another where autograd filled it in
        grad = torch.empty_like(near[:batch], dtype=torch.float32).copy_(grad_u)
        if ctx.constant:
            grad_current = torch.zeros_like(grad)
        else:
            grad_current = torch.empty_like(near, dtype=ctx.current_dtype)
        rows = _pictures(together(grad), batch, grad, grad_spikes, grad_current, near, near_below)
        for grads, sent, current, inside, below in rows:
            _retreat(grads, sent, current, inside, below, threshold, ctx.alpha, ctx.slope)
        return grad_current.to(ctx.current_dtype), grad, None, None, None, None


def _pictures(size: int, batch: int, *tensors: Tensor | None) -> Iterator[list[Any]]:
    """Tensors [B, C, ...] or [T*B, C, ...] (or None), a few pictures at a time, [T, B, C, ...]."""
    split: list[Sequence[Tensor | None]] = []
    for tensor in tensors:
        if tensor is None:
            split.append([None] * -(-batch // size))
        else:
            split.append(tensor.unflatten(0, (-1, batch)).split(size, 1))
    yield from map(list, zip(*split, strict=True))


def _within(u: Tensor, low: Tensor, high: Tensor, out: Tensor, other: Tensor) -> Tensor:
    """1 where low < u < high, else 0; `other` is overwritten."""
    torch.gt(u, low, out=out)
    torch.lt(u, high, out=other)
    return out.mul_(other)


def _depth(u: Tensor, threshold: Tensor, slope: float | Tensor) -> Tensor:
    """How far `u` is on its way down: the threshold where a neuron fires downwards."""
    if isinstance(slope, Tensor):
        return torch.where(slope == 1, threshold - u, u * -slope)
    return threshold - u if slope == 1 else u * -slope


def _advance_watched(
    potentials: Tensor,
    currents: Tensor,
    spikes: Tensor,
    near: Tensor,
    near_below: Tensor | None,
    threshold: Tensor,
    alpha: float,
    slope: float | Tensor,
) -> None:
    """Advance potentials [1, B, C, ...] in place; fill spikes and windows [T, B, C, ...]."""
    u = potentials[0]
    low, high = threshold * (1 - alpha / 2), threshold * (1 + alpha / 2)
    one, other = torch.empty_like(u), torch.empty_like(u)
    for t in range(len(spikes)):
        u += currents[t if len(currents) > 1 else 0].float()
        near[t] = _within(u, low, high, one, other)
        if near_below is not None:
            # the same window around the lower threshold, which is 0 or -theta / slope
            near_below[t] = _within(_depth(u, threshold, slope), low, high, one, other)
            _fire_signed(u, threshold, slope, one, other)
            spikes[t] = one.sub_(other)
            continue
        fired = torch.ge(u, threshold, out=one)
        spikes[t] = fired
        u.addcmul_(fired, threshold, value=-1)


def _retreat(
    grads: Tensor,
    grad_spikes: Tensor,
    grad_currents: Tensor,
    near: Tensor,
    near_below: Tensor | None,
    threshold: Tensor,
    alpha: float,
    slope: float | Tensor,
) -> None:
    """Take the gradient of the last potentials [1, B, C, ...] back to the first, in place.

    `grad_currents` [T, B, C, ...] is filled; [1, B, C, ...] gets the sum over the steps.
    """
    grad = grads[0]
    height = 1 / (alpha * threshold)
    passed = 1 / alpha  # theta h inside a window, of either sign
    inside, kept = torch.empty_like(grad), torch.empty_like(grad)
    for t in reversed(range(len(near))):
        # dL/du = h dL/ds + (1 - theta h) dL/du[t] in a window
        sent = grad_spikes[t].float() * height
        inside.copy_(near[t].view(torch.uint8))
        torch.mul(inside, -passed, out=kept).add_(1)
        if near_below is None:
            grad.mul_(kept).addcmul_(inside, sent)
        else:
            below = near_below[t].view(torch.uint8).to(grad.dtype)
            kept.sub_(below, alpha=passed)
            grad.mul_(kept).addcmul_(inside, sent).add_(below.mul_(sent).mul_(slope))
        if len(grad_currents) == len(near):
            grad_currents[t] = grad
        else:
            grad_currents[0] += grad


def integrate_and_fire_surrogate(
    current: Tensor,
    potential: Tensor,
    threshold: Tensor,
    steps: int,
    alpha: float = 1.0,
    slope: float | Tensor = 0.0,
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
