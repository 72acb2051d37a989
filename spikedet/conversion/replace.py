"""Swap activations for quantisers, quantisers for neurons, and name what cannot be converted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spikedet.conversion.fold import fold_thresholds, set_module
from spikedet.conversion.quantize import QuantClip
from spikedet.conversion.trace import ACTIVATIONS, Trace, trace
from spikedet.errors import ConversionError
from spikedet.neurons.layers import CalledInTurn, ConstantInput, IFNeuron, Readout

SAMPLE = 20_000  # pre-activations kept of each layer and batch when thresholds are estimated


def separate_activations(network: nn.Module, example: Tensor) -> None:
    """Give every call of an activation a module of its own, in place.

    One instance may stand at many places (a default activation) or be called twice in one forward
    pass (`self.relu` of a residual block); each needs its own threshold and potential.

    Raises:
        ConversionError: An operation without a spiking counterpart, or no activation at all.
    """
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, ACTIVATIONS):
            set_module(network, name, copy.deepcopy(module))
    calls = trace(network, example).of(ACTIVATIONS)
    if not calls:
        raise ConversionError(f"{type(network).__name__}: no activation to convert")
    names = [call.where for call in calls]
    for name in dict.fromkeys(names):
        module, count = network.get_submodule(name), names.count(name)
        if count > 1 and not isinstance(module, CalledInTurn):
            copies = [copy.deepcopy(module) for _ in range(count)]
            set_module(network, name, CalledInTurn(copies))


def replace_activations(
    network: nn.Module, record: Trace, make: Callable[[str, nn.Module], nn.Module]
) -> None:
    """Replace each activation in the order of execution by `make(name, activation)`, in place."""
    for call in record.of(ACTIVATIONS):
        set_module(network, call.where, make(call.where, call.module))


@torch.no_grad()
def estimate_thresholds(
    network: nn.Module, record: Trace, batches: Iterable[Tensor], steps: int, seed: int = 0
) -> dict[str, Tensor]:
    """Threshold of each activation with the least mean squared quantisation error.

    Args:
        network: Batch norm folded, activations separate.
        record: Its trace.
        batches: Pictures [B, C, H, W].
        steps: T of the quantiser.
        seed: Which pre-activations are looked at.

    Returns:
        Scalar thresholds by module name.
    """
    seen: dict[str, list[Tensor]] = {call.where: [] for call in record.of(ACTIVATIONS)}
    generator = torch.Generator().manual_seed(seed)

    def keep(name: str):
        def hook(module, inputs):
            values = inputs[0].flatten()
            chosen = torch.randint(len(values), (SAMPLE,), generator=generator)
            seen[name].append(values[chosen.to(values.device)].float())

        return hook

    handles = [
        call.module.register_forward_pre_hook(keep(call.where)) for call in record.of(ACTIVATIONS)
    ]
    try:
        for batch in batches:
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: best_threshold(torch.cat(values), steps) for name, values in seen.items()}


def best_threshold(values: Tensor, steps: int, candidates: int = 100) -> Tensor:
    """Scalar theta whose quantise-clip of `values` [N] is nearest to their ReLU (least MSE)."""
    truth = values.clamp(min=0)
    top = truth.max().clamp(min=1e-3)
    grid = top * torch.linspace(1 / candidates, 1, candidates, device=values.device)
    errors = [
        ((truth * (steps / theta) + 0.5).floor().clamp(max=steps) * (theta / steps) - truth)
        .square()
        .mean()
        for theta in grid
    ]
    return grid[int(torch.stack(errors).argmin())]


def quantize(
    network: nn.Module, record: Trace, thresholds: dict[str, Tensor], steps: int, noise: float = 0.1
) -> None:
    """Stage I: put a `QuantClip` in place of every activation."""
    replace_activations(network, record, lambda name, _: QuantClip(thresholds[name], steps, noise))


@torch.no_grad()
def make_spiking(network: nn.Module, example: Tensor, initial: float = 0.5) -> None:
    """Quantised network -> spiking network with copied weights, in place.

    Quantisers become integrate-and-fire neurons of the same threshold, thresholds are folded into
    the weights that read them, the layers before the first neuron run once, and the layers after
    the last run on the mean rate.

    Args:
        network: Stage-I network in evaluation mode.
        example: Input [B, C, H, W].
        initial: Potential before the first step in units of the threshold (1/2: eq 16).

    Raises:
        ConversionError: Names what cannot be converted.
    """
    record = trace(network, example)
    channels = {call.where: record.shapes[call.inputs[0]][1] for call in record.of(ACTIVATIONS)}

    def neuron(name: str, quantiser: nn.Module) -> IFNeuron:
        threshold = quantiser.threshold.abs().clamp(min=1e-6)
        return IFNeuron(threshold, (threshold * initial).expand(channels[name]))

    replace_activations(network, record, neuron)
    record = trace(network, example)
    fold_thresholds(network, record)
    for call in record.constant():
        set_module(network, call.where, ConstantInput(call.module))
    for call in record.readouts():
        set_module(network, call.where, Readout(call.module))
