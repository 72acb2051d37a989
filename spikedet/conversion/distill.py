"""The end-to-end pass after stage II: the whole spiking network by back-propagation through time.

Layer-wise calibration lets every layer do its best with what it receives, but no layer can make up
for what a later one will need. A short pass over all of them, towards the outputs of the network
before conversion, closes much of what is left. Beyond the paper.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.conversion.batch_norm import beside_batch_norm
from spikedet.conversion.sparsity import Operations
from spikedet.engines.rounding import Rounder
from spikedet.neurons.layers import MeanOverTime
from spikedet.precision import device_of
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd, expect_limits

ROUND = 100  # steps after which a pass can be taken up again


def distill(
    spiking: SpikingNetwork,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], Tensor],
    options: EndToEnd,
    *,
    warmup: int = 20,
    state: dict[str, Any] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Train weights, biases, initial potentials and what steps count in readouts; thresholds stay.

    In place, with Adam: each tensor at the rate times its root mean square (the logarithms of step
    weights at the rate), linear warm-up, cosine decay to zero. Where `batches` gives a round the
    same batches again, a pass that was taken up ends with the weights of one that was not
    interrupted.

    Args:
        spiking: The network.
        batches: Called with the first step of each round of `ROUND` steps; gives its batches, of
            whatever `loss` takes.
        loss: Runs the network on a batch and returns a scalar.
        options: `steps`, `rate`, `batch_norm`, `int8` (gradients go straight through the rounding)
            and `sparsity`.
        warmup: Steps of warm-up.
        state: What `on_round` last got in a pass that was interrupted, to go on from there.
        on_step: Called with the step and its loss.
        on_round: Called after each round with what the pass can be taken up from: `step`, the steps
            done, the `operations` of each, and the states of `network` and `optimizer`.

    Returns:
        With `sparsity` that weight, and the operations of the first and the last eighth of the
        steps: `sparsity`, `operations_before`, `operations_after`.

    Raises:
        UsageError: `int8` and `batch_norm` together, or an option that is outside its limits.
        NoIntegers: With `int8`, a network that has no whole numbers.
        ValueError, KeyError, RuntimeError: The state is of another network.
    """
    expect_limits(options)
    _weigh_steps(spiking)
    training = _Pass(spiking, loss, options)
    beside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if options.batch_norm:
        beside = beside_batch_norm(spiking.graph, lambda: loss(next(batches(0))))
    try:
        with beside:
            begun = training.begin(state)
            for first in range(begun, options.steps, ROUND):
                last = min(first + ROUND, options.steps)
                training.steps(range(first, last), batches(first), warmup, on_step)
                if on_round is not None:
                    on_round({"step": last, **training.state_dict()})
    finally:
        spiking.requires_grad_(False)
    if training.rounder is not None:
        training.rounder.write()
    return _spikes(training.operations_seen, options.sparsity)


def _weigh_steps(spiking: SpikingNetwork) -> None:
    """Give every mean over time a weight of each step, in place."""
    network = spiking.graph
    for node in network.of((MeanOverTime,)):
        if node.module.log_weights is None:
            weighed = MeanOverTime(spiking.T).to(device_of(network))
            network.replace(node.name, weighed)


def _spikes(operations: list[float], sparsity: float) -> dict[str, float]:
    """What `distill` returns, of the operations of each step."""
    if not operations:
        return {"sparsity": sparsity} if sparsity else {}
    part = max(1, len(operations) // 8)
    return {
        "sparsity": sparsity,
        "operations_before": sum(operations[:part]) / part,
        "operations_after": sum(operations[-part:]) / part,
    }


class _Pass:
    """Network, optimiser and rounding of a pass, a step at a time."""

    def __init__(
        self, spiking: SpikingNetwork, loss: Callable[[Any], Tensor], options: EndToEnd
    ) -> None:
        self.spiking, self.loss, self.options = spiking, loss, options
        self.rounder = Rounder(spiking.graph) if options.int8 else None
        if self.rounder is not None:
            self.rounder.spread()
        self.operations = Operations(spiking.graph) if options.sparsity else None
        self.operations_seen: list[float] = []  # of each step

    def begin(self, state: dict[str, Any] | None) -> int:
        """Make the optimiser, for what is trained by now; the number of the first step."""
        self.optimiser = relative_adam(self.spiking, self.options.rate)
        if state is None:
            return 0
        self.spiking.graph.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimizer"])
        self.operations_seen = list(state.get("operations", []))
        return state["step"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "operations": self.operations_seen,
            "network": self.spiking.graph.state_dict(),
            "optimizer": self.optimiser.state_dict(),
        }

    def steps(
        self,
        numbers: range,
        batches: Iterator[Any],
        warmup: int,
        on_step: Callable[[int, float], None] | None,
    ) -> None:
        """The steps of a round, each told with its loss."""
        for number in numbers:
            part = warm_cosine(number, self.options.steps, warmup)
            value = self.step(next(batches), part)
            if on_step is not None:
                on_step(number, value)

    def step(self, batch: Any, part: float) -> float:
        """The loss of a batch, after a step at this part of the rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * part
        with contextlib.nullcontext() if self.rounder is None else self.rounder.applied():
            value = self._value(batch)
            self.optimiser.zero_grad()
            value.backward()
        self.optimiser.step()
        return value.item()

    def _value(self, batch: Any) -> Tensor:
        """The loss, and the penalty on operations."""
        if self.operations is None:
            return self.loss(batch)
        with self.operations.counted():
            value = self.loss(batch)
        counted = self.operations.part()
        self.operations_seen.append(counted.item())
        return value + self.options.sparsity * counted


def relative_adam(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam over all parameters, each with its own learning rate at the peak."""
    groups = []
    for name, parameter in network.named_parameters():
        size = max(parameter.detach().square().mean().sqrt().item(), 1e-3)
        relative = name.endswith("log_weights")
        groups.append({"params": [parameter], "peak": rate * (1.0 if relative else size)})
    network.requires_grad_(True)
    return torch.optim.Adam(groups)


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Learning rate of a step as a part of its peak."""
    if step < warmup:
        return (step + 1) / warmup
    part = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(part * math.pi))
