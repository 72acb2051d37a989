"""The end-to-end pass after stage II: the whole spiking network by back-propagation through time.

Layer-wise calibration lets every layer do its best with what it receives, but no layer can make up
for what a later one will need. A short pass over all of them, towards the outputs of the network
before conversion, closes much of what is left. Beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from spikedet.conversion.network import SpikingNetwork
from spikedet.neurons.layers import Readout


def distill(
    spiking: SpikingNetwork,
    batches: Iterator[Any],
    loss: Callable[[Any], Tensor],
    *,
    steps: int,
    rate: float,
    warmup: int = 20,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train weights, biases, initial potentials and what steps count in readouts; thresholds stay.

    In place, with Adam: each tensor at `rate` times its root mean square (the logarithms of step
    weights at `rate`), linear warm-up, cosine decay to zero.

    Args:
        spiking: The network.
        batches: Endless batches, of whatever `loss` takes.
        loss: Runs the network on a batch and returns a scalar.
        steps: Steps.
        rate: Relative learning rate at its peak.
        warmup: Steps of warm-up.
        on_step: Called with the step and its loss.
    """
    for module in spiking.modules():
        if isinstance(module, Readout) and module.log_weights is None:
            module.weigh_steps(spiking.T)
    parameters, groups = list(spiking.parameters()), []
    for name, parameter in spiking.named_parameters():
        parameter.requires_grad_(True)
        size = max(parameter.detach().square().mean().sqrt().item(), 1e-3)
        relative = name.endswith("log_weights")
        groups.append({"params": [parameter], "lr": rate * (1.0 if relative else size)})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_cosine(steps, warmup))
    try:
        for step in range(steps):
            value = loss(next(batches))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            if on_step is not None:
                on_step(step, value.item())
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _warm_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        part = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + float(torch.cos(torch.tensor(part * torch.pi))))

    return factor
