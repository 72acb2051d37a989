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
from spikedet.errors import UsageError
from spikedet.neurons.layers import MeanOverTime
from spikedet.precision import device_of
from spikedet.runtime.network import SpikingNetwork

ROUND = 100  # steps after which a pass can be taken up again


def distill(
    spiking: SpikingNetwork,
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[Any], Tensor],
    *,
    steps: int,
    rate: float,
    warmup: int = 20,
    batch_norm: bool = False,
    int8: bool = False,
    sparsity: float = 0.0,
    state: dict[str, Any] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Train weights, biases, initial potentials and what steps count in readouts; thresholds stay.

    In place, with Adam: each tensor at `rate` times its root mean square (the logarithms of step
    weights at `rate`), linear warm-up, cosine decay to zero. Where `batches` gives a round the same
    batches again, a pass that was taken up ends with the weights of one that was not interrupted.

    Args:
        spiking: The network.
        batches: Called with the first step of each round of `ROUND` steps; gives its batches, of
            whatever `loss` takes.
        loss: Runs the network on a batch and returns a scalar.
        steps: Steps.
        rate: Relative learning rate at its peak.
        warmup: Steps of warm-up.
        batch_norm: Train beside batch norm, and fold it afterwards (see `beside_batch_norm`).
        int8: Train with the weights, biases, thresholds and potentials that integer engines make of
            them (gradients go straight through the rounding), and leave them in the end.
        sparsity: Weight of a penalty on spikes (see `sparsity.Operations`).
        state: What `on_round` last got in a pass that was interrupted, to go on from there.
        on_step: Called with the step and its loss.
        on_round: Called after each round with what the pass can be taken up from: `step`, the steps
            done, the `operations` of each, and the states of `network` and `optimizer`.

    Returns:
        With `sparsity` that weight, and the operations of the first and the last eighth of the
        steps: `sparsity`, `operations_before`, `operations_after`.

    Raises:
        UsageError: `int8` and `batch_norm` together, or a penalty below 0.
        NoIntegers: With `int8`, a network that has no whole numbers.
        ValueError, KeyError, RuntimeError: The state is of another network.
    """
    if int8 and batch_norm:
        raise UsageError("weights that are rounded have no batch norm beside them; choose one")
    if not 0 <= sparsity < math.inf:
        raise UsageError(f"sparsity is {sparsity}; expected a number of 0 or more")
    network = spiking.graph
    for node in network.of((MeanOverTime,)):
        if node.module.log_weights is None:
            weighed = MeanOverTime(spiking.T).to(device_of(network))
            network.replace(node.name, weighed)
    rounder = Rounder(network) if int8 else None
    if rounder is not None:
        rounder.spread()
    operations = Operations(network) if sparsity else None
    seen: list[float] = []  # operations of each step
    beside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if batch_norm:
        beside = beside_batch_norm(network, lambda: loss(next(batches(0))))
    try:
        with beside:
            optimiser = relative_adam(spiking, rate)
            begun = 0
            if state is not None:
                network.load_state_dict(state["network"])
                optimiser.load_state_dict(state["optimizer"])
                begun, seen = state["step"], list(state.get("operations", []))
            for first in range(begun, steps, ROUND):
                now = batches(first)
                last = min(first + ROUND, steps)
                for step in range(first, last):
                    for group in optimiser.param_groups:
                        group["lr"] = group["peak"] * warm_cosine(step, steps, warmup)
                    rounded = contextlib.nullcontext() if rounder is None else rounder.applied()
                    with rounded:
                        if operations is None:
                            value = loss(next(now))
                        else:
                            with operations.counted():
                                value = loss(next(now))
                            counted = operations.part()
                            seen.append(counted.item())
                            value = value + sparsity * counted
                        optimiser.zero_grad()
                        value.backward()
                    optimiser.step()
                    if on_step is not None:
                        on_step(step, value.item())
                if on_round is not None:
                    states = {"network": network.state_dict(), "optimizer": optimiser.state_dict()}
                    on_round({"step": last, "operations": seen, **states})
    finally:
        spiking.requires_grad_(False)
    if rounder is not None:
        rounder.write()
    if not seen:
        return {"sparsity": sparsity} if sparsity else {}
    part = max(1, len(seen) // 8)
    return {
        "sparsity": sparsity,
        "operations_before": sum(seen[:part]) / part,
        "operations_after": sum(seen[-part:]) / part,
    }


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
