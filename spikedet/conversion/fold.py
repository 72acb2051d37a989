"""Batch norm into convolution, thresholds into weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from spikedet.conversion.trace import (
    NORMS,
    POOLS,
    WEIGHTED,
    Trace,
    expect_plain,
    fill,
    slots,
    store,
    trace,
)
from spikedet.errors import ConversionError
from spikedet.neurons.layers import CalledInTurn, IFNeuron, per_channel

# What ultralytics writes on the layers of a network: number, where the input comes from, kind.
ROUTE = ("i", "f", "type")


def set_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`, in the mode (training or not) of what it replaces."""
    parent, _, child = name.rpartition(".")
    before = network.get_submodule(name)
    for key in ROUTE:
        if hasattr(before, key):
            setattr(module, key, getattr(before, key))
    module.train(before.training)
    setattr(network.get_submodule(parent), child, module)


def separate_layers(network: nn.Module, example: Tensor) -> None:
    """Give every call of a weighted layer or a batch norm a module of its own, in place.

    One module may stand at many places or be called several times in one forward pass, and two
    may share a parameter; each place needs a scale, a state and a calibration of its own. The
    copies are equal, so that the network computes what it did.

    Args:
        network: In evaluation mode.
        example: Input [B, C, H, W].
    """
    seen: set[int] = set()
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, WEIGHTED + NORMS):
            shared = {id(module), *map(id, module.parameters())}
            if shared & seen:
                set_module(network, name, copy.deepcopy(module))
            seen |= shared
    call_in_turn(network, trace(network, example, strict=False), WEIGHTED + NORMS)


def call_in_turn(network: nn.Module, record: Trace, kinds: tuple[type, ...]) -> None:
    """Put copies of a module that is called several times in its place, one a call."""
    names = [call.where for call in record.of(kinds)]
    for name in dict.fromkeys(names):
        if (count := names.count(name)) > 1:
            module = network.get_submodule(name)
            copies = [copy.deepcopy(module) for _ in range(count)]
            set_module(network, name, CalledInTurn(copies))


@torch.no_grad()
def fold_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Fold each batch norm into the weighted layer before it, in place (eq 5).

    Layers that several places share become layers of their own (see `separate_layers`).

    Args:
        network: In evaluation mode.
        example: Input [B, C, H, W].

    Raises:
        ConversionError: A batch norm that does not directly follow a weighted layer of its own, or
            one of the two only looks like what it is (see `expect_plain`).
    """
    separate_layers(network, example)
    record = trace(network, example, strict=False)
    made_by = {slot: call for call in record.of(WEIGHTED) for slot in slots(call.result)}
    readers: dict[int, int] = {}
    for call in record.calls:
        for slot in call.inputs:
            readers[slot] = readers.get(slot, 0) + 1
    for call in record.of(NORMS):
        source = call.inputs[0]
        if source not in made_by or readers[source] != 1:
            raise ConversionError(
                f"{call.where}: batch norm does not directly follow a convolution or a linear "
                "layer of its own, so it cannot be folded"
            )
        for place in (made_by[source], call):
            expect_plain(place.module, place.where, place.module.forward)
        _fold(made_by[source].module, call.module)
        set_module(network, call.where, nn.Identity())


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale *= norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift += norm.bias.double()
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        shift += layer.bias.double() * scale
    layer.weight.data = weight.to(layer.weight.dtype)
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype))


@torch.no_grad()
def fold_thresholds(network: nn.Module, record: Trace) -> None:
    """Scale weights so that 0/1 travels between layers, in place.

    A neuron's spike stands for theta. Which theta an input channel of a layer carries is found by
    a probe: each neuron sends its theta on every channel, and the probe follows the wires through
    up-sampling, pooling, slices and concatenations. Where several thetas meet on one channel, as
    after an addition of two branches, no weight can stand for them all, and where a shortcut leads
    to a neuron there is none: the neurons that feed such a place keep theta on the wire
    (`IFNeuron.folded` is False), and so one weight remains per edge. Which neurons those are
    depends on the wiring alone and never on the values of the thresholds.

    Args:
        network: With `IFNeuron` in place of every activation; no layer is called twice.
        record: Its trace.
    """
    for neuron in _unfoldable(record):
        neuron.folded = False
    neurons = [call.module for call in record.of((IFNeuron,))]
    values = _probe(record, {n: n.threshold.double() for n in neurons if n.folded})
    ones = _probe(record, {})
    for call in record.of(WEIGHTED):
        number = call.inputs[0]
        if number in values:
            _, scale = _channel_range(values[number], ones[number])
            _scale_inputs(call.module, scale.to(call.module.weight))


def _unfoldable(record: Trace) -> set[IFNeuron]:
    """Neurons whose theta no weight can stand for.

    They feed other neurons without a weight between (the identity shortcut of a residual block),
    or a channel on which different spikes, or spikes and real currents, meet.

    Every channel of every neuron sends a number of its own; currents send 1, and so do neurons
    already found. Linear operations form weighted sums of what meets, and by the inequality of
    Cauchy and Schwarz those of the squares tell whether all that was summed is the same.
    """
    generator = torch.Generator().manual_seed(0)
    marks = {}
    for call in record.of((IFNeuron,)):
        channels = record.shapes[next(slots(call.result))][1]
        marks[call.module] = 1 + torch.rand(channels, generator=generator, dtype=torch.float64)
    read = {call.inputs[0] for call in record.of(WEIGHTED + POOLS)}
    currents = {call.inputs[0] for call in record.of((IFNeuron,))}
    ones = _probe(record, {})
    read, currents = read & ones.keys(), currents & ones.keys()
    reached = {}  # by neuron and slot: the channels that its spikes reach
    for neuron in marks:
        probe = _probe(record, {neuron: torch.ones((), dtype=torch.float64)}, others=0.0)
        reached[neuron] = {n: _by_channel(probe[n]).any(1) for n in read | currents}
    found = {neuron for neuron in marks if any(reached[neuron][n].any() for n in currents)}
    while True:
        sent = {neuron: mark for neuron, mark in marks.items() if neuron not in found}
        sums = _probe(record, sent)
        squares = _probe(record, {neuron: mark.square() for neuron, mark in sent.items()})
        mixed = {n: _mixed(sums[n], squares[n], ones[n]) for n in read}
        more = {n for n in marks if any(bool((reached[n][k] & mixed[k]).any()) for k in read)}
        if more <= found:
            return found
        found |= more


def _by_channel(tensor: Tensor) -> Tensor:
    """[B, C, ...] -> [C, N], of the first picture."""
    return tensor[0].reshape(tensor.shape[1], -1)


def _mixed(sums: Tensor, squares: Tensor, ones: Tensor) -> Tensor:
    """Channels [C] on which different values meet, or of different values from place to place."""
    low, high = _channel_range(sums, ones)
    spread = squares * ones - sums.square() > 1e-9 * sums.square()
    return (high - low > 1e-9) | _by_channel(spread).any(1)


def _probe(record: Trace, values: dict[IFNeuron, Tensor], others: float = 1.0) -> dict[int, Tensor]:
    """What each slot holds if neurons send their values, scalar or [C], and all else `others`.

    Slots that hold the same in every time step (see `Trace.over_time`) are left out.
    """
    tensors: dict[int, Tensor] = {}
    changing = record.over_time()
    rest = torch.full((), others, dtype=torch.float64)
    for call in record.calls:
        if isinstance(call.module, (IFNeuron, *WEIGHTED)):
            number = next(slots(call.result))
            if number in changing:
                shape = record.shapes[number]
                value = values.get(call.module, rest).to("cpu")
                tensors[number] = per_channel(value, len(shape)).expand(shape)
        elif all(number in tensors for number in call.inputs):
            # copies, since some functions work in place
            read = {number: tensors[number].clone() for number in call.inputs}
            result = call.function(*fill(call.args, read), **fill(call.kwargs, read))
            store(call.result, result, tensors)
    return tensors


def _scale_inputs(layer: nn.Module, scale: Tensor) -> None:
    """Multiply the weights of a layer by a scale for each of its input channels, [C]."""
    if getattr(layer, "groups", 1) > 1:
        per_group = scale.view(layer.groups, 1, -1)
        rows = per_group.expand(-1, len(layer.weight) // layer.groups, -1)
        scale = rows.reshape(len(layer.weight), -1)
    else:
        scale = scale[None]
    layer.weight *= scale.view(*scale.shape, *[1] * (layer.weight.ndim - 2))


def _channel_range(sums: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest mean [C] of what reaches a channel: sums over ones, [B, C, ...] each.

    Places that nothing reaches, as in a padded border, do not count; 1 where there are no others.
    """
    sums, ones = _by_channel(sums), _by_channel(ones)
    reached = ones > 0
    mean = sums / ones
    low = mean.where(reached, torch.inf).min(1).values
    high = mean.where(reached, -torch.inf).max(1).values
    some = reached.any(1)
    return low.where(some, 1.0), high.where(some, 1.0)
