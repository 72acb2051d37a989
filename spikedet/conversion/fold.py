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


class NormAndActivation(nn.Sequential):
    """A batch norm, and the activation that stands in its place once it is folded."""


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
        fold(made_by[source].module, call.module)
        pair = call.where.rpartition(".")[0]
        if isinstance(network.get_submodule(pair), NormAndActivation):
            set_module(network, pair, network.get_submodule(pair)[1])
        else:
            set_module(network, call.where, nn.Identity())


@torch.no_grad()
def fold(layer: nn.Module, norm: nn.Module) -> None:
    """Make a weighted layer compute what it and the batch norm behind it compute (eq 5)."""
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
def fold_thresholds(record: Trace) -> None:
    """Scale weights so that 0/1 travels between layers, in place.

    A neuron's spike stands for theta. Which theta an input channel of a layer carries is found by
    a probe: each neuron sends its theta on every channel, and the probe follows the wires through
    up-sampling, pooling, slices and concatenations. Where several thetas meet on one channel, as
    after an addition of two branches, no weight can stand for them all, and where a shortcut leads
    to a neuron there is none: the neurons that feed such a place keep theta on the wire
    (`IFNeuron.folded` is False), and so one weight remains per edge. Which neurons those are
    depends on the wiring alone and never on the values of the thresholds.

    Args:
        record: Trace of a network with `IFNeuron` in place of every activation, where no layer is
            called twice.
    """
    for neuron in _unfoldable(record):
        neuron.folded = False
    neurons = [call.module for call in record.of((IFNeuron,))]
    probes = _Probes(record)
    probes.scale({n: n.threshold.double() for n in neurons if n.folded})
    for call in record.of(WEIGHTED):
        number = call.inputs[0]
        if number in probes.plain[0]:
            scale, _ = probes.compare(number)
            _scale_inputs(call.module, scale.to(call.module.weight))


def _unfoldable(record: Trace) -> set[IFNeuron]:
    """Neurons whose theta no weight can stand for.

    They feed other neurons without a weight between (the identity shortcut of a residual block),
    or a channel on which different spikes, or spikes and real currents or constants, meet.

    Every channel of every neuron is scaled by a number of its own; currents are not, nor are
    neurons already found.
    """
    generator = torch.Generator().manual_seed(0)
    marks = {}
    for call in record.of((IFNeuron,)):
        channels = record.shapes[next(slots(call.result))][1]
        marks[call.module] = 1 + torch.rand(channels, generator=generator, dtype=torch.float64)
    probes = _Probes(record)
    read = {call.inputs[0] for call in record.of(WEIGHTED + POOLS)} & probes.plain[0].keys()
    currents = {call.inputs[0] for call in record.of((IFNeuron,))} & probes.plain[0].keys()
    reached = {neuron: probes.reached(neuron, read | currents) for neuron in marks}
    found = {neuron for neuron in marks if any(reached[neuron][n].any() for n in currents)}
    while True:
        probes.scale({neuron: mark for neuron, mark in marks.items() if neuron not in found})
        mixed = {n: probes.compare(n)[1] for n in read}
        more = {n for n in marks if any(bool((reached[n][k] & mixed[k]).any()) for k in read)}
        if more <= found:
            return found
        found |= more


class _Probes:
    """Random numbers that neurons and weighted layers send through the wires between them.

    What a channel of a slot holds is linear in what is sent, with weights of any sign, and
    constants may be added. If all of it grows by the same factor when each neuron's share is
    scaled, that factor is the scale of the channel; else different spikes, or spikes and something
    else, meet there.

    Attributes:
        plain: What each slot holds, of two draws. Slots that hold the same in every time step (see
            `Trace.over_time`) are left out.
        scaled: The same after `scale`.
        nothing: What each slot holds if nothing is sent.
    """

    def __init__(self, record: Trace):
        self.record = record
        others = [call for call in record.calls if not isinstance(call.module, IFNeuron)]
        read = record.over_time() & {number for call in others for number in call.inputs}
        generator = torch.Generator().manual_seed(0)
        self.sent: list[dict[int, Tensor]] = [{}, {}]
        for call in record.of((IFNeuron, *WEIGHTED)):
            if (number := next(slots(call.result))) in read:
                shape = record.shapes[number]
                for sent in self.sent:
                    sent[number] = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        self.plain = [self.follow(sent) for sent in self.sent]
        self.scaled = self.plain
        self.silent = dict.fromkeys(self.sent[0], torch.zeros((), dtype=torch.float64))
        self.nothing = self.follow(self.silent)

    def scale(self, values: dict[IFNeuron, Tensor]) -> None:
        """Send everything again, that of neurons times their value, scalar or [C]."""
        factors = {}
        for call in self.record.of((IFNeuron,)):
            if call.module in values:
                number = next(slots(call.result))
                value = values[call.module].to("cpu")
                factors[number] = per_channel(value, len(self.record.shapes[number]))
        self.scaled = [
            self.follow({number: x * factors.get(number, 1.0) for number, x in sent.items()})
            for sent in self.sent
        ]

    def compare(self, number: int) -> tuple[Tensor, Tensor]:
        """Scale of each channel of a slot, and whether it has none, [C] each."""
        x, y = (
            torch.cat([_by_channel(probe[number]) for probe in probes], 1)
            for probes in (self.plain, self.scaled)
        )
        power = x.square().sum(1)
        scale = torch.where(power > 0, (x * y).sum(1) / power, 1.0)
        apart = (y - scale[:, None] * x).abs().amax(1)
        return scale, apart > 1e-9 * y.abs().amax(1)

    def reached(self, neuron: IFNeuron, numbers: set[int]) -> dict[int, Tensor]:
        """Channels [C] of slots that the spikes of a neuron reach, by slot."""
        own = {n for c in self.record.calls if c.module is neuron for n in slots(c.result)}
        alone = {n: x for n, x in self.sent[0].items() if n in own}
        alone = self.follow(self.silent | alone)
        return {n: _by_channel(alone[n] != self.nothing[n]).any(1) for n in numbers}

    def follow(self, sent: dict[int, Tensor]) -> dict[int, Tensor]:
        """What each slot holds if these slots hold what is given."""
        tensors: dict[int, Tensor] = {}
        for call in self.record.calls:
            if isinstance(call.module, (IFNeuron, *WEIGHTED)):
                if (number := next(slots(call.result))) in sent:
                    tensors[number] = sent[number].expand(self.record.shapes[number])
            elif all(number in tensors for number in call.inputs):
                # copies, since some functions work in place
                read = {number: tensors[number].clone() for number in call.inputs}
                result = call.function(*fill(call.args, read), **fill(call.kwargs, read))
                store(call.result, result, tensors)
        return tensors


def _by_channel(tensor: Tensor) -> Tensor:
    """[B, C, ...] -> [C, N], of the first picture."""
    return tensor[0].reshape(tensor.shape[1], -1)


def _scale_inputs(layer: nn.Module, scale: Tensor) -> None:
    """Multiply the weights of a layer by a scale for each of its input channels, [C]."""
    if getattr(layer, "groups", 1) > 1:
        per_group = scale.view(layer.groups, 1, -1)
        rows = per_group.expand(-1, len(layer.weight) // layer.groups, -1)
        scale = rows.reshape(len(layer.weight), -1)
    else:
        scale = scale[None]
    layer.weight *= scale.view(*scale.shape, *[1] * (layer.weight.ndim - 2))
