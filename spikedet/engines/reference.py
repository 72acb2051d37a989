"""Run an integer program in torch, one operation after the other.

This code is slow and simple. It is the reference: every kernel must give the same spikes. The
integers are stored as float64, which is exact up to 2**53. So torch's own convolutions and pooling
compute them without errors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.engines.program import (
    Current,
    Move,
    Neuron,
    Op,
    Plus,
    Pool,
    Program,
    Sums,
    Times,
    Weighted,
)
from spikedet.graph.operations import WeightedLayer
from spikedet.neurons.layers import per_channel


class Reference:
    """One run of an integer program.

    Args:
        program: The program to run.
        currents: Values of the constant nodes, float32 [B, ...], by their names.
        batch: Batch size B.
    """

    def __init__(self, program: Program, currents: dict[str, Tensor], batch: int):
        self.program, self.currents, self.batch = program, currents, batch
        self.memory: dict[str, Any] = {}

    @torch.no_grad()
    def advance(self, steps: int) -> dict[str, Tensor]:
        """Run the next steps; returns outputs of neurons and pooling, [steps*B, ...] float64."""
        values: dict[str, Tensor] = {}
        for op in self.program.ops.values():
            if op.name not in self.program.running:
                continue
            values[op.name] = self.value(op, [values[source] for source in op.inputs], steps)
        return values

    def value(self, op: Op, inputs: list[Tensor], steps: int) -> Tensor:
        """Compute the value of one operation for the next steps, [steps*B, ...]."""
        if isinstance(op, Current):
            current = rounded(op, self.currents[op.node])
            return current.repeat(steps, *[1] * (current.ndim - 1))
        if isinstance(op, Pool | Neuron):
            args = (inputs[0], self.batch, steps, self.memory.get(op.name))
            done = _pool(op, *args) if isinstance(op, Pool) else _fire(op, *args)
            value, self.memory[op.name] = done
            return value
        return at_once(op, inputs)


def rounded(op: Current, value: Tensor) -> Tensor:
    """Round a constant current to integers, [B, C, ...] float64."""
    limit = per_channel(op.limit, value.ndim)
    scaled = value.float() * per_channel(op.inverse, value.ndim)
    return torch.minimum(torch.maximum(scaled, -limit), limit).round().double()


def at_once(op: Op, inputs: list[Tensor]) -> Tensor:
    """Compute an operation that does not depend on time, on [N, ...] float64."""
    if isinstance(op, Weighted):
        return _weighted(op.like, inputs[0], op.weight.to(inputs[0]))
    if isinstance(op, Times):
        return inputs[0] * per_channel(op.factor.to(inputs[0]), inputs[0].ndim)
    if isinstance(op, Plus):
        total = sum(inputs[1:], inputs[0])
        return total if op.offset is None else total + op.offset.to(total)
    if isinstance(op, Sums):
        return (op.module(inputs[0]) * op.times).round()
    assert isinstance(op, Move)
    if op.zeros:
        remaining = iter(inputs)
        first = inputs[0]
        inputs = [
            first.new_zeros(len(first), *op.zeros[i][1:]) if i in op.zeros else next(remaining)
            for i in range(len(inputs) + len(op.zeros))
        ]
    return op.module(*inputs)


def _weighted(like: WeightedLayer, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(like, nn.Linear):
        return F.linear(x, weight)
    if isinstance(like, nn.ConvTranspose1d | nn.ConvTranspose2d):
        reversing: Any = F.conv_transpose1d if weight.ndim == 3 else F.conv_transpose2d
        options = (like.stride, like.padding, like.output_padding, like.groups, like.dilation)
        return reversing(x, weight, None, *options)
    function: Any = F.conv1d if weight.ndim == 3 else F.conv2d
    return function(x, weight, None, like.stride, like.padding, like.dilation, like.groups)


def _fire(op: Neuron, current: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
    """Spikes [steps*B, C, ...], and the potentials and counts of spikes after them."""

    def each(value: Tensor) -> Tensor:
        return per_channel(value.to(current), current.ndim)

    if memory is None:
        u = each(op.initial).expand(batch, *current.shape[1:])
        sent = torch.zeros_like(u)
    else:
        u, sent = memory
    spikes = []
    for now in current.split(batch):
        u = u + now + each(op.bias)
        above = (u >= each(op.threshold)).to(current.dtype)
        below = torch.zeros_like(above)
        if op.low is not None and op.up is not None:
            under = u <= each(op.low)
            below = (under & (sent > 0) if op.corrects else under).to(current.dtype)
            u = u + below * each(op.up)
        u = u - above * each(op.threshold)
        spikes.append(above - below)
        sent = sent + spikes[-1]
    return torch.cat(spikes), (u, sent)


def _pool(op: Pool, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
    """Like `SpikingMaxPool.advance`, in float64."""
    if op.module.mode == "step":
        return op.module.pool(x), None
    counts = x.unflatten(0, (steps, batch)).cumsum(0)
    if memory is not None:
        counts = counts + memory[0]
    pooled = op.module.pool(counts.flatten(0, 1)).unflatten(0, (steps, batch))
    before = torch.zeros_like(pooled[0]) if memory is None else memory[1]
    sent = pooled - torch.cat([before[None], pooled[:-1]])
    return sent.flatten(0, 1), (counts[-1], pooled[-1])


def shapes_of(program: Program, sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of all values for one picture, without computing the values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in program.ops.values():
        inputs = [torch.empty(shapes[s], dtype=torch.float64, device="meta") for s in op.inputs]
        if isinstance(op, Current):
            shapes[op.name] = tuple(sizes[op.node])
        elif isinstance(op, Neuron):
            shapes[op.name] = shapes[op.inputs[0]]
        elif isinstance(op, Pool):
            shapes[op.name] = tuple(op.module.pool(inputs[0]).shape)
        else:
            shapes[op.name] = tuple(at_once(op, inputs).shape)
    return shapes
