"""Swap activations for quantisers, quantisers for neurons, and name what cannot be converted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spikedet.conversion.fold import (
    NormAndActivation,
    call_in_turn,
    fold_batch_norm,
    fold_thresholds,
    separate_layers,
    set_module,
)
from spikedet.conversion.quantize import QuantClip, levels
from spikedet.conversion.trace import (
    ACTIVATIONS,
    NORMS,
    POOLS,
    WEIGHTED,
    Call,
    Trace,
    slots,
    trace,
)
from spikedet.errors import ConversionError
from spikedet.neurons.layers import ConstantInput, IFNeuron, Readout, SpikingMaxPool

# Pre-activations kept of each layer (of each channel) and batch when thresholds are estimated.
SAMPLE, CHANNEL_SAMPLE = 20_000, 500
CANDIDATES = 100  # thetas that are tried for a threshold


def prepare(network: nn.Module, example: Tensor, fold: bool = True) -> None:
    """Make a float network ready for `quantize`, in place.

    Gives every call of a layer or an activation a module of its own, folds batch norm, and gives
    linear bottlenecks a neuron.

    Args:
        network: In evaluation mode.
        example: Input [B, C, H, W].
        fold: Fold batch norm now. Else `fold_batch_norm` makes the same modules of it later, once
            it was trained together with the quantisers.

    Raises:
        ConversionError: Names what cannot be converted.
    """
    if fold:
        fold_batch_norm(network, example)
    else:
        fold_batch_norm(copy.deepcopy(network), example)  # refuses what cannot be folded
        separate_layers(network, example)
    spike_linear_bottlenecks(network, example)
    separate_activations(network, example)


def spike_linear_bottlenecks(network: nn.Module, example: Tensor) -> None:
    """Let linear bottlenecks send spikes, in place, so that no layer multiplies in every step.

    A linear bottleneck (MobileNetV2) is a weighted layer whose output reaches another weighted
    layer, directly or through linear operations such as additions, without an activation between.
    It gets the identity as its activation, a leaky ReLU of slope 1, which `quantize` rounds and
    clips at +-theta and `make_spiking` turns into signed neurons. Layers that read the picture
    itself (they run once) and readouts stay as they are.

    Args:
        network: Batch norm folded, or directly behind a layer of its own.
        example: Input [B, C, H, W].

    Raises:
        ConversionError: An operation without a spiking counterpart.
    """
    record = trace(network, example)
    for call in bottlenecks(record):
        after = [c for c in record.calls if set(c.inputs) & set(slots(call.result))]
        place = after[0].module if len(after) == 1 else None
        identity = nn.LeakyReLU(1.0)
        if isinstance(place, NORMS):
            set_module(network, after[0].where, NormAndActivation(place, identity))
            continue
        if isinstance(place, nn.Identity) and sum(c.module is place for c in record.calls) == 1:
            set_module(network, after[0].where, identity)
            continue
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if module is call.module:
                set_module(network, name, nn.Sequential(call.module, identity))


def bottlenecks(record: Trace) -> list[Call]:
    """Calls of linear bottlenecks, see `spike_linear_bottlenecks`; one a module."""
    changing = record.over_time()
    read: set[int] = set()  # slots that reach a weighted layer without an activation between
    found: dict[nn.Module, Call] = {}
    for call in reversed(record.calls):
        out = set(slots(call.result))
        if isinstance(call.module, WEIGHTED):
            if out & read & changing:
                found[call.module] = call
            read.update(call.inputs)
        elif out & read and not isinstance(call.module, ACTIVATIONS):
            read.update(call.inputs)
    return list(found.values())[::-1]


def separate_activations(network: nn.Module, example: Tensor) -> None:
    """Give every call of an activation or a max-pooling a module of its own, in place.

    One instance may stand at many places (a default activation) or be called several times in one
    forward pass (`self.relu` of a residual block, the pooling of an SPPF block); each needs its
    own threshold and state.

    Raises:
        ConversionError: An operation without a spiking counterpart, or no activation at all.
    """
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, ACTIVATIONS + POOLS):
            set_module(network, name, copy.deepcopy(module))
    record = trace(network, example)
    if not record.of(ACTIVATIONS):
        raise ConversionError(f"{type(network).__name__}: no activation to convert")
    call_in_turn(network, record, ACTIVATIONS + POOLS)


def replace_activations(
    network: nn.Module, record: Trace, make: Callable[[str, nn.Module], nn.Module]
) -> None:
    """Replace each activation in the order of execution by `make(name, activation)`, in place."""
    for call in record.of(ACTIVATIONS):
        set_module(network, call.where, make(call.where, call.module))


@torch.no_grad()
def estimate_thresholds(
    network: nn.Module,
    record: Trace,
    batches: Iterable[Tensor],
    steps: int,
    seed: int = 0,
    per_channel: bool = False,
) -> dict[str, Tensor]:
    """Threshold of each activation with the least mean squared quantisation error.

    Args:
        network: Batch norm folded, activations separate.
        record: Its trace.
        batches: Pictures [B, C, H, W].
        steps: T of the quantiser.
        seed: Which pre-activations are looked at.
        per_channel: One threshold a channel instead of one a layer.

    Returns:
        Thresholds by module name, scalars or [C].
    """
    generator = torch.Generator().manual_seed(seed)

    def sample(currents: Tensor) -> Tensor:
        values = currents.transpose(0, 1).flatten(1).T if per_channel else currents.flatten()
        count = CHANNEL_SAMPLE if per_channel else SAMPLE
        chosen = torch.randint(len(values), (count,), generator=generator)
        return values[chosen.to(values.device)].float()

    seen = look(network, record, batches, sample)
    return {
        call.where: best_threshold(torch.cat(seen[call.where]), steps, call.module)
        for call in record.of(ACTIVATIONS)
    }


def look(
    network: nn.Module,
    record: Trace,
    batches: Iterable[Tensor],
    sample: Callable[[Tensor], Tensor],
) -> dict[str, list[Tensor]]:
    """What `sample` takes of the input of every activation, for each batch, by module name."""
    seen: dict[str, list[Tensor]] = {call.where: [] for call in record.of(ACTIVATIONS)}

    def keep(name: str):
        return lambda module, inputs: seen[name].append(sample(inputs[0]))

    handles = [c.module.register_forward_pre_hook(keep(c.where)) for c in record.of(ACTIVATIONS)]
    try:
        for batch in batches:
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def best_threshold(values: Tensor, steps: int, activation: nn.Module | None = None) -> Tensor:
    """Theta whose quantise-clip of `values` is nearest to their activation (least MSE).

    Of `CANDIDATES`, evenly spaced up to the largest activation.

    Args:
        values: Pre-activations, [N] for a scalar theta or [N, C] for one a channel.
        steps: T of the quantiser.
        activation: ReLU when None.

    Returns:
        Theta, scalar or [C]. A channel that is silent in `values` gets 1/20 of the largest
        activation of the layer, so that it can still answer to another picture.
    """
    truth = values.clamp(min=0) if activation is None else activation(values.clone())
    slope = leak(activation)
    top = largest(truth)
    # the largest first: it is taken where several do equally well
    grid = torch.stack([top * (k / CANDIDATES) for k in range(CANDIDATES, 0, -1)])
    errors = [(levels(values / t, steps, slope) * t - truth).square().mean(0) for t in grid]
    return grid.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]


def largest(activations: Tensor) -> Tensor:
    """Largest size of activations, [N] -> scalar or [N, C] -> [C].

    A silent channel gets 1/20 of the largest activation of the layer, so that it can still answer
    to another picture.
    """
    top = activations.abs().amax(0).clamp(min=1e-3)
    return top.maximum(top.max() / 20)


def leak(activation: nn.Module | None) -> float:
    """Slope of an activation's negative side."""
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope
    return getattr(activation, "slope", 0.0)


def quantize(
    network: nn.Module, record: Trace, thresholds: dict[str, Tensor], steps: int, noise: float = 0.1
) -> None:
    """Stage I: put a `QuantClip` in place of every activation.

    Args:
        network: Batch norm folded, activations separate.
        record: Its trace.
        thresholds: By module name, scalar or [C] (see `estimate_thresholds`).
        steps: T.
        noise: Probability that an element is not quantised while training.

    Raises:
        ConversionError: A leaky ReLU whose slope is not within 0..1.
    """

    def quantiser(name: str, activation: nn.Module) -> QuantClip:
        slope = leak(activation)
        if not 0 <= slope <= 1:
            raise ConversionError(f"{name}: a leaky ReLU of slope {slope}; expected 0 to 1")
        return QuantClip(thresholds[name], steps, noise, slope)

    replace_activations(network, record, quantiser)


@torch.no_grad()
def make_spiking(
    network: nn.Module, example: Tensor, initial: float = 0.5, pooling: str = "count"
) -> None:
    """Quantised network -> spiking network with copied weights, in place.

    Quantisers become integrate-and-fire neurons of the same threshold, max-pooling that of spike
    counts, thresholds are folded into the weights that read them, the layers before the first
    neuron run once, and the layers after the last run on the mean rate.

    Args:
        network: Stage-I network in evaluation mode.
        example: Input [B, C, H, W].
        initial: Potential before the first step in units of the threshold (1/2: eq 16).
        pooling: How max-pooling is done: `count`, or `step` (see `SpikingMaxPool`).

    Raises:
        ConversionError: Names what cannot be converted.
    """
    record = trace(network, example)
    refuse_mixed_times(record)
    refuse_shared_layers(record)
    refuse_spikes_as_output(record)
    channels = {call.where: record.shapes[call.inputs[0]][1] for call in record.of(ACTIVATIONS)}

    def neuron(name: str, quantiser: QuantClip) -> IFNeuron:
        threshold = quantiser.threshold.abs().clamp(min=1e-6)
        start = (threshold * initial).expand(channels[name])
        return IFNeuron(threshold, start, quantiser.slope)

    replace_activations(network, record, neuron)
    record = trace(network, example)
    fold_thresholds(record)
    changing = record.over_time()
    for call in record.of(POOLS):
        if changing & set(call.inputs):
            set_module(network, call.where, SpikingMaxPool(call.module, pooling))
    for call in record.constant():
        set_module(network, call.where, ConstantInput(call.module))
    for call in record.readouts():
        set_module(network, call.where, Readout(call.module))


def refuse_shared_layers(record: Trace) -> None:
    """Refuse a layer that is called twice: the thresholds before its places are not the same.

    Raises:
        ConversionError: There is one; `prepare` leaves none.
    """
    seen: set[nn.Module] = set()
    for call in record.of(WEIGHTED):
        if call.module in seen:
            raise ConversionError(
                f"{call.where}: this layer is called at several places; `prepare` the network, "
                "which gives each a layer of its own"
            )
        seen.add(call.module)


def refuse_mixed_times(record: Trace) -> None:
    """Refuse what would need the picture, or the mean over time, at every single time step.

    Raises:
        ConversionError: An operation that joins a signal which is the same in every step (before
            the first neuron, or after a readout) to spikes, or max-pooling after a readout.
    """
    changing = record.over_time()
    read_out = {slot for call in record.readouts() for slot in slots(call.result)}
    for call in record.calls:
        inputs = set(call.inputs)
        if inputs & changing and inputs - changing:
            origin = "a readout" if inputs & read_out else "computed from the picture alone"
            raise ConversionError(
                f"{call.where}: spikes meet a signal that has no time steps ({origin}); put an "
                "activation (torch.nn.ReLU) behind that signal"
            )
        if inputs & read_out:
            read_out.update(slots(call.result))
            if isinstance(call.module, POOLS):
                raise ConversionError(
                    f"{call.where}: max-pooling after the last activation has no spiking "
                    "counterpart; put it before that activation"
                )


def refuse_spikes_as_output(record: Trace) -> None:
    """Refuse a network that ends without a readout, whose outputs would be those of every step.

    Raises:
        ConversionError: Names the neurons, or the layer, that such an output comes from.
    """
    sent = set(slots(record.output)) & record.over_time()
    for call in reversed(record.calls):
        if not sent & set(slots(call.result)):
            continue
        if isinstance(call.module, ACTIVATIONS + WEIGHTED):
            raise ConversionError(
                f"{call.where}: what this sends in every time step is an output of the network; "
                "let it be made by a convolution or a linear layer that no activation follows"
            )
        sent.update(call.inputs)
