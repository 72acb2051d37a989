"""The end-to-end pass after stage II: train the whole spiking network through time.

Layer-wise calibration improves each layer for its own inputs. But a layer cannot correct errors
that appear only in later layers. A short training of all layers together, towards the outputs of
the network before conversion, removes much of the remaining error. This pass is not in the paper.
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
from spikedet.errors import TrainingError
from spikedet.neurons.layers import MeanOverTime
from spikedet.options import expect_limits
from spikedet.precision import device_of
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd
from spikedet.training.optimizer import restore_optimizer

ROUND = 100  # training steps between two saved states of a pass


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
    """Train weights, biases, initial potentials and the step weights of readouts, in place.

    Thresholds are not trained. The optimiser is Adam. The learning rate of each tensor is `rate`
    times its root mean square (for the step weights, it is `rate`). It has a linear warm-up and a
    cosine decay to zero. If `batches` gives the same batches again for a round, a resumed pass ends
    with the same weights as a pass without interruption.

    Args:
        spiking: The network.
        batches: Function that is called with the first training step of each round of `ROUND`
            steps. It gives the batches of that round.
        loss: Function that runs the network on a batch and returns a scalar.
        options: `steps`, `rate`, `batch_norm`, `int8` and `sparsity` are used. With `int8`,
            gradients pass the rounding unchanged.
        warmup: Training steps of warm-up, but at most a quarter of all.
        state: State of an interrupted pass to continue from, as `on_round` got it last.
        on_step: Function that is called with each training step and its loss.
        on_round: Function that is called after each round with the state of the pass: `step`
            (training steps so far), the `operations` of each step, and the states of `network` and
            `optimizer`.

    Returns:
        An empty dict without `sparsity`. With it: `sparsity`, and the mean operations in the first
        and the last eighth of the training steps, `operations_before` and `operations_after`.

    Raises:
        UsageError: `int8` and `batch_norm` are both set, or an option is outside its limits.
        NoIntegers: With `int8`: the integer engines do not support the network.
        TrainingError: The loss is not finite. Then the network is useless.
        ValueError, KeyError, RuntimeError: The state belongs to another network.
    """
    expect_limits(options)
    warmup = min(warmup, options.steps // 4)
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
    """Give every mean over time one weight for each time step, in place."""
    network = spiking.graph
    for node in network.of((MeanOverTime,)):
        if node.module.log_weights is None:
            weighed = MeanOverTime(spiking.T).to(device_of(network))
            network.replace(node.name, weighed)


def _spikes(operations: list[float], sparsity: float) -> dict[str, float]:
    """The result of `distill`, from the operations of each training step."""
    if not operations:
        return {"sparsity": sparsity} if sparsity else {}
    part = max(1, len(operations) // 8)
    return {
        "sparsity": sparsity,
        "operations_before": sum(operations[:part]) / part,
        "operations_after": sum(operations[-part:]) / part,
    }


class _Pass:
    """The network, the optimiser and the rounding of one pass."""

    def __init__(
        self, spiking: SpikingNetwork, loss: Callable[[Any], Tensor], options: EndToEnd
    ) -> None:
        self.spiking, self.loss, self.options = spiking, loss, options
        self.rounder = Rounder(spiking.graph) if options.int8 else None
        if self.rounder is not None:
            self.rounder.expand_parameters()
        self.operations = Operations(spiking.graph) if options.sparsity else None
        self.operations_seen: list[float] = []  # of each step

    def begin(self, state: dict[str, Any] | None) -> int:
        """Make the optimiser and load the state; returns the number of the first step."""
        self.optimiser = relative_adam(self.spiking, self.options.rate)
        if state is None:
            return 0
        try:
            self.spiking.graph.load_state_dict(state["network"])
            restore_optimizer(self.optimiser, state["optimizer"], by_place=False)
        except (KeyError, ValueError, RuntimeError):
            raise TrainingError(
                "the state of the end-to-end pass is of another network or of an older version; "
                "choose another --out"
            ) from None
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
        """Run the training steps of a round; call `on_step` with the loss of each."""
        for number in numbers:
            part = warm_cosine(number, self.options.steps, warmup)
            value = self.step(next(batches), part)
            if on_step is not None:
                on_step(number, value)

    def step(self, batch: Any, part: float) -> float:
        """Train one step at the fraction `part` of the peak rate; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * part
        with contextlib.nullcontext() if self.rounder is None else self.rounder.applied():
            value = self._value(batch)
            expect_finite(value)
            self.optimiser.zero_grad()
            value.backward()
        self.optimiser.step()
        return value.item()

    def _value(self, batch: Any) -> Tensor:
        """The loss plus the penalty on synaptic operations."""
        if self.operations is None:
            return self.loss(batch)
        with self.operations.counted():
            value = self.loss(batch)
        counted = self.operations.part()
        self.operations_seen.append(counted.item())
        return value + self.options.sparsity * counted


def relative_adam(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Make Adam for all parameters, with a separate peak learning rate for each."""
    groups = []
    for name, parameter in network.named_parameters():
        size = max(parameter.detach().square().mean().sqrt().item(), 1e-3)
        relative = name.endswith("log_weights")
        groups.append({"params": [(name, parameter)], "peak": rate * (1.0 if relative else size)})
    network.requires_grad_(True)
    return torch.optim.Adam(groups)


def expect_finite(loss: Tensor) -> None:
    """Check the loss of a training step.

    Raises:
        TrainingError: It is infinite or not a number.
    """
    if not loss.isfinite():
        raise TrainingError(f"the loss became {loss.item()}; lower the learning rate")


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """The learning rate of a training step, as a fraction of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    part = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(part * math.pi))
