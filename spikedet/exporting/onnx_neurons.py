"""One time step of neurons as nodes of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from spikedet.exporting.lowering import channels
from spikedet.exporting.onnx_writer import Writer
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.functional import NO_SLOPE
from spikedet.neurons.layers import IFNeuron

State: TypeAlias = tuple[str, ...]  # names of the values that neurons keep between time steps
Step: TypeAlias = Callable[[State, str], tuple[str, State]]  # (state, current) -> (output, state)


def start(to: Writer, neuron: IFNeuron, ndim: int) -> dict[str, str]:
    """The state of neurons before the first step: potentials, and counts if they have them.

    Args:
        to: Where the nodes are added.
        neuron: The layer of neurons.
        ndim: Number of dimensions of its output.
    """
    state = {"potential": to.constant(channels(neuron.initial, ndim), "initial")}
    if isinstance(neuron, CorrectingNeuron):
        state["counts"] = to.number(0.0)
    return state


def fire(to: Writer, neuron: IFNeuron, ndim: int) -> Step:
    """A function that adds one time step of neurons. The arguments are those of `start`."""
    if isinstance(neuron, CorrectingNeuron):
        return _correct(to, neuron, ndim)
    theta = neuron.threshold.detach()
    threshold = to.constant(channels(theta, ndim), "threshold")
    slope = torch.tensor(neuron.slope, dtype=torch.float32)
    slope = torch.where(slope > NO_SLOPE, slope, torch.zeros_like(slope))
    signed = bool((slope > 0).any())
    depth = theta / slope.clamp(min=NO_SLOPE)
    bound = torch.where((slope > 0) & (slope < 1), -depth, -torch.inf)
    linear = slope == 1
    if signed:
        lower = to.constant(channels(bound, ndim), "lower")
        up = to.constant(channels(torch.where(slope > 0, depth, 0.0), ndim), "up")
    if bool(linear.any()):
        whether = to.constant(channels(linear, ndim) == 1, "linear")

    def step(state: State, current: str) -> tuple[str, State]:
        u = to.op("Add", state[0], current)
        fired = to.cast(to.op("GreaterOrEqual", u, threshold))
        after = to.op("Sub", u, to.op("Mul", fired, threshold))
        if signed:
            below = to.op("LessOrEqual", u, lower)
            if bool(linear.any()):
                under = to.op("And", to.op("Less", u, to.number(0.0)), whether)
                below = to.op("Or", below, under)
            below = to.cast(below)
            after = to.op("Add", after, to.op("Mul", below, up))
            fired = to.op("Sub", fired, below)
        sent = fired if neuron.folded else to.op("Mul", fired, threshold)
        return sent, (after,)

    return step


def _correct(to: Writer, neuron: CorrectingNeuron, ndim: int) -> Step:
    """`fire` of neurons that correct themselves. The state is potentials and counts."""
    theta = neuron.threshold.detach()
    threshold = to.constant(channels(theta, ndim), "threshold")
    lower = to.constant(channels(-neuron.margin * theta, ndim), "lower")

    def step(state: State, current: str) -> tuple[str, State]:
        potential, counts = state
        u = to.op("Add", potential, current)
        above = to.cast(to.op("GreaterOrEqual", u, threshold))
        below = to.op("Less", u, lower)
        below = to.op("And", below, to.op("Greater", counts, to.number(0.0)))
        fired = to.op("Sub", above, to.cast(below))
        change = to.op("Mul", fired, threshold)
        sent = fired if neuron.folded else change
        return sent, (to.op("Sub", u, change), to.op("Add", counts, fired))

    return step
