"""Dynamics of integrate-and-fire neurons as pure functions.

The functions map (current, potential) to (spikes, potential):

    u[t] = u[t-1] + v[t]            integrate            (eq 2)
    s[t] = 1 if u[t] >= theta else 0   fire              (eq 3)
    u[t] = u[t] - theta s[t]        soft reset           (eq 4)

The surrogate gradient replaces the derivative of the step function (eq 20). It is a rectangle
around the threshold, in the normalised potential u / theta. Its width is `alpha` and its area is 1:

    h = ds/du = 1 / (alpha theta)   where |u / theta - 1| < alpha / 2, else 0

So the gradient through one time step, including the reset, is du[t]/du[t-1] = 1 - theta h (eq 21).

The neuron of a leaky ReLU with slope a > 0 (eq 22) has a second threshold, -theta / a. It is below
zero. A smaller slope moves it further down, so that the neuron sends fewer negative spikes:

    s[t] = -1 if u[t] <= -theta / a, and then u[t] = u[t] + theta / a

A spike of either sign stands for the value theta. The surrogate gradient at the lower threshold is
the same rectangle, in the normalised potential a u / theta:

    h' = ds/du = a / (alpha theta)   where |a u / theta + 1| < alpha / 2, else 0

Then du[t]/du[t-1] = 1 - theta h - (theta / a) h'. Inside either window this is 1 - 1 / alpha.

With a = 1 (the neuron of a linear bottleneck) the second threshold is 0: s[t] = -1 if u[t] < 0. The
potential then ends between 0 and theta, like that of a ReLU neuron. With an initial potential of
theta / 2 the rates are therefore rounded to the nearest level on both sides. With a threshold of
-theta, negative rates would be one level too small.

The neuron that corrects itself is such a neuron with a = 1, but it sends a negative spike only
after more positive than negative ones. So it takes back spikes that were too many, and its rate is
never negative (see `neurons.correcting`):

    s[t] = -1 if u[t] < -m theta and s[1] + ... + s[t-1] > 0, and then u[t] = u[t] + theta

The margin m is 0 or more. With a margin a neuron does not take back a spike for a small difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikedet.neurons import compiled
from spikedet.neurons.compiled import NO_SLOPE

CACHED = 1 << 16  # elements of a tensor that fit into a core's cache with the intermediate results


def integrate_and_fire(
    current: Tensor,
    potential: Tensor,
    threshold: Tensor,
    steps: int,
    dtype: torch.dtype | None = None,
    slope: float | Tensor = 0.0,
    counts: Tensor | None = None,
    margin: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run neurons over T time steps, without gradients (eq 2-4, and eq 22 with a slope).

    Args:
        current: Input currents v, [T*B, C, ...] with time first, or [B, C, ...] if the current is
            the same in every step.
        potential: Membrane potentials u before the first step, [B, C, ...] float32. They are not
            modified.
        threshold: Firing thresholds theta > 0, float32, a scalar or broadcastable to [B, C, ...].
        steps: Number of time steps T.
        dtype: Type of the spikes. None: the type of `current`. 0 and 1 are exact in every type.
        slope: Slope a of the negative side, 0..1, a number or broadcastable to [B, C, ...]. With 0
            there are no negative spikes.
        counts: For neurons that correct themselves (their slope is 1): positive minus negative
            spikes before the first step, [B, C, ...] float32. They are updated in place.
        margin: For the same neurons: how far the potential must be below 0 to take back a spike, in
            units of the threshold.

    Returns:
        Spikes [T*B, C, ...], which are 0 or 1 (with a slope -1, 0 or 1), and the potentials after
        the last step, [B, C, ...] float32.
    """
    batch = len(potential)
    spikes = _empty_spikes(current, batch, steps, dtype or current.dtype)
    u = potential.clone()
    if compiled.advance(current, u, threshold, slope, counts, margin, spikes):
        return spikes, u
    currents = current.unflatten(0, (-1, batch))  # [T, B, C, ...] or [1, B, C, ...]
    over_time = spikes.unflatten(0, (steps, batch))
    size = pictures_per_pass(u)
    sent = [None] * -(-batch // size) if counts is None else counts.split(size)
    parts = (currents.split(size, 1), u.split(size), over_time.split(size, 1), sent)
    for v, potentials, s, c in zip(*parts, strict=True):
        if signed(slope):
            _advance_signed(v, potentials, threshold, s, slope, c, margin)
        else:
            _advance(v, potentials, threshold, s)
    return spikes, u


def _advance(currents: Tensor, u: Tensor, threshold: Tensor, spikes: Tensor) -> None:
    """Compute `spikes` [T, B, C, ...] and update the potentials `u` [B, C, ...], in place."""
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
    currents: Tensor,
    u: Tensor,
    threshold: Tensor,
    spikes: Tensor,
    slope: float | Tensor,
    counts: Tensor | None,
    margin: float,
) -> None:
    """Like `_advance`, for neurons with a second, lower threshold."""
    above, below = torch.empty_like(u), torch.empty_like(u)
    spare = None if counts is None else torch.empty_like(u)
    for t in range(len(spikes)):
        u += currents[t if len(currents) > 1 else 0].float()
        _fire_signed(u, threshold, slope, above, below, counts, spare, margin)
        spikes[t] = above.sub_(below)


def signed(slope: float | Tensor) -> bool:
    """Whether neurons with this slope can send negative spikes."""
    return isinstance(slope, Tensor) or slope != 0


def _fire_signed(
    u: Tensor,
    threshold: Tensor,
    slope: float | Tensor,
    above: Tensor,
    below: Tensor,
    counts: Tensor | None = None,
    spare: Tensor | None = None,
    margin: float = 0.0,
) -> None:
    """Set `above` and `below` to 1 where `u` reaches that threshold, else to 0; reset `u`.

    With `counts`, `below` is 1 only where a count is above 0, and the counts are updated; `spare`
    is overwritten. All tensors are float32 and are changed in place.
    """
    torch.ge(u, threshold, out=above)
    if isinstance(slope, Tensor):
        depth = threshold / slope.clamp(min=NO_SLOPE)
        below.copy_(torch.where(slope == 1, u < 0, u <= -depth) & (slope > 0))
    else:
        depth = threshold / slope
        if slope == 1:
            torch.lt(u, depth * -margin, out=below)
        else:
            torch.le(u, -depth, out=below)
    if counts is not None:
        below.mul_(torch.gt(counts, 0, out=spare))
        counts.add_(above).sub_(below)
    u.addcmul_(above, threshold, value=-1).addcmul_(below, depth)


def pictures_per_pass(batch: Tensor) -> int:
    """Number of pictures of [B, ...] to compute together. On a CPU, as many as fit its cache."""
    if batch.device.type != "cpu" or not batch.numel():
        return max(1, len(batch))
    return max(1, CACHED // batch[0].numel())


def _empty_spikes(current: Tensor, batch: int, steps: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor [T*B, C, ...] with the memory layout of `current`."""
    shape, layout = (steps * batch, *current.shape[1:]), memory_format(current)
    return torch.empty(shape, dtype=dtype, device=current.device, memory_format=layout)


class _IntegrateAndFire(torch.autograd.Function):
    """`integrate_and_fire` with the surrogate gradient. The threshold gets no gradient.

    The windows of the surrogate gradient are stored as bytes: 1 near the threshold, 2 near the
    lower threshold, 3 near both. Masks are computed as 0.0 and 1.0: on a CPU, comparisons that
    write bool and selections by bool take five times as long.
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
        counts: Tensor | None,
        margin: float,
    ) -> tuple[Tensor, Tensor]:
        batch = len(potential)
        ctx.constant, ctx.steps, ctx.alpha, ctx.slope = len(current) == batch, steps, alpha, slope
        spikes = _empty_spikes(current, batch, steps, current.dtype)
        near = _empty_spikes(current, batch, steps, torch.uint8)
        ctx.save_for_backward(near, threshold)
        ctx.current_dtype = current.dtype
        u = potential.clone()
        neurons = (threshold, slope, counts, margin)
        if compiled.advance(current, u, *neurons, spikes, near, alpha):
            return spikes, u
        rows = _pictures(pictures_per_pass(u), batch, u, current, spikes, near, counts)
        for potentials, currents, fired, inside, sent in rows:
            _advance_watched(
                potentials, currents, fired, inside, threshold, alpha, slope,
                None if sent is None else sent[0], margin,
            )  # fmt: skip
        return spikes, u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor, grad_u: Tensor) -> tuple[Tensor | None, ...]:
        near, threshold = ctx.saved_tensors
        batch = len(near) // ctx.steps
        # in the layout of the spikes: that of grad_u is another where autograd filled it in
        grad = torch.empty_like(near[:batch], dtype=torch.float32).copy_(grad_u)
        if ctx.constant:
            grad_current = torch.zeros_like(grad)
        else:
            grad_current = torch.empty_like(near, dtype=ctx.current_dtype)
        grad_spikes = grad_spikes.contiguous(memory_format=memory_format(near))
        neurons = (threshold, ctx.alpha, ctx.slope)
        if not compiled.retreat(near, grad_spikes, grad_current, grad, *neurons):
            size = pictures_per_pass(grad)
            rows = _pictures(size, batch, grad, grad_spikes, grad_current, near)
            for grads, sent, current, inside in rows:
                _retreat(grads, sent, current, inside, *neurons)
        return grad_current.to(ctx.current_dtype), grad, *[None] * 6


def _pictures(size: int, batch: int, *tensors: Tensor | None) -> Iterator[list[Any]]:
    """Split tensors [B, C, ...] or [T*B, C, ...] (or None) into parts of `size` pictures.

    Each part is [1, size, C, ...] or [T, size, C, ...].
    """
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


def _depth(u: Tensor, threshold: Tensor, slope: float | Tensor, margin: float) -> Tensor:
    """The potential measured downwards: it equals the threshold where a negative spike is sent."""
    if isinstance(slope, Tensor):
        return torch.where(slope == 1, threshold - u, u * -slope)
    return threshold * (1 - margin) - u if slope == 1 else u * -slope


def _advance_watched(
    potentials: Tensor,
    currents: Tensor,
    spikes: Tensor,
    near: Tensor,
    threshold: Tensor,
    alpha: float,
    slope: float | Tensor,
    counts: Tensor | None,
    margin: float,
) -> None:
    """Update the potentials [1, B, C, ...], compute spikes and windows [T, B, C, ...], in place."""
    u = potentials[0]
    low, high = threshold * (1 - alpha / 2), threshold * (1 + alpha / 2)
    one, other = torch.empty_like(u), torch.empty_like(u)
    spare = None if counts is None else torch.empty_like(u)
    for t in range(len(spikes)):
        u += currents[t if len(currents) > 1 else 0].float()
        near[t] = _within(u, low, high, one, other)
        if signed(slope):
            # the same window around the lower threshold
            inside = _within(_depth(u, threshold, slope, margin), low, high, one, other)
            if counts is not None:
                inside.mul_(torch.gt(counts, 0, out=other))
            near[t] += inside.mul_(2).to(torch.uint8)
            _fire_signed(u, threshold, slope, one, other, counts, spare, margin)
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
    threshold: Tensor,
    alpha: float,
    slope: float | Tensor,
) -> None:
    """Back-propagate from the last potentials to the first: `grads` [1, B, C, ...], in place.

    `grad_currents` [T, B, C, ...] gets the gradient of each step. If it is [1, B, C, ...], it gets
    the sum over the steps.
    """
    grad = grads[0]
    height = 1 / (alpha * threshold)
    passed = 1 / alpha  # theta h inside a window, of either sign
    inside, kept = torch.empty_like(grad), torch.empty_like(grad)
    for t in reversed(range(len(near))):
        # dL/du = h dL/ds + (1 - theta h) dL/du[t] in a window
        sent = grad_spikes[t].float() * height
        inside.copy_(near[t] & 1 if signed(slope) else near[t])
        torch.mul(inside, -passed, out=kept).add_(1)
        if not signed(slope):
            grad.mul_(kept).addcmul_(inside, sent)
        else:
            below = (near[t] >> 1).to(grad.dtype)
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
    counts: Tensor | None = None,
    margin: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Like `integrate_and_fire`, but with gradients through time (eq 20, 21).

    Args:
        current: Input currents, as for `integrate_and_fire`. They get a gradient.
        potential: Potentials before the first step, as for `integrate_and_fire`. They get a
            gradient.
        threshold: Firing thresholds, as for `integrate_and_fire`. They get no gradient.
        steps: Number of time steps T.
        alpha: Width of the windows of the surrogate gradient, in units of the threshold.
        slope: Slope of the negative side, as for `integrate_and_fire`.
        counts: Counts of neurons that correct themselves, as for `integrate_and_fire`. They are
            updated in place.
        margin: Margin of these neurons, as for `integrate_and_fire`.

    Returns:
        Spikes and final potentials. They equal those of `integrate_and_fire`.
    """
    arguments = (current, potential, threshold, steps, alpha, slope, counts, margin)
    return _IntegrateAndFire.apply(*arguments)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The memory layout for results, so that convolutions need not convert them."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
