"""Spike rates, synaptic operations and energy (section VI-E and table VII of the paper).

What is counted, for each picture and all its T steps:

- One accumulate for each spike times its fan-out: every weight that reads it, borders, stride,
  dilation and groups exact. An up-sampled spike is read at all its copies and counts at each; so
  does a spike at each window of average pooling, whose factor belongs to the weights. A spike that
  meets an addition without weights (an identity shortcut) is one accumulate of the neurons it
  reaches.
- One multiply-accumulate for each weight that reads an analog value, whatever the value: once for
  the layers before the first neuron and for the readouts (they read the mean rate), at every step
  for a layer between which and the one before no neuron lies.
- Weights that would read padding read nothing. Biases, thresholds and resets are not counted,
  neither here nor in the float network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.analysis.record import Recorder
from spikedet.conversion.network import SpikingNetwork, trace_steps
from spikedet.conversion.trace import ACTIVATIONS, WEIGHTED, Call, Trace, fill, slots, store, trace
from spikedet.neurons.layers import SpikingMaxPool

PJ_ACCUMULATE, PJ_MULTIPLY = 0.9, 4.6  # 32-bit floating point, table VII


def fan_out(layer: nn.Module, shape: torch.Size) -> Tensor:
    """Weights that read each position of a layer's input.

    Args:
        layer: A convolution or a linear layer.
        shape: Of its input, [B, C, ...].

    Returns:
        [...] (the same for every channel), or a scalar for a linear layer.
    """
    if isinstance(layer, nn.Linear):
        return torch.tensor(float(layer.out_features), device=layer.weight.device)
    options = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    kind = next(kind for kind in WEIGHTED if isinstance(layer, kind))
    with torch.inference_mode(False), torch.enable_grad():  # reads are the gradient of a sum
        ones = nn.utils.skip_init(kind, 1, 1, layer.kernel_size, bias=False, **options)
        nn.init.ones_(ones.weight)
        place = torch.ones(1, 1, *shape[2:], requires_grad=True)
        (reads,) = torch.autograd.grad(ones(place).sum(), place)
    return (reads[0, 0] * (layer.out_channels // layer.groups)).to(layer.weight.device)


@torch.no_grad()
def multiply_accumulates(network: nn.Module, picture: Tensor) -> dict[str, int]:
    """Multiply-accumulates of each weighted layer of a float network, for one picture.

    Args:
        network: Its forward runs as it is.
        picture: [B, C, H, W]; only its size matters.
    """
    return _analog_uses(trace(network, picture, strict=False))


def _analog_uses(record: Trace) -> dict[str, int]:
    """Weight uses of each weighted layer for one picture, were all its inputs analog."""
    found: dict[str, int] = {}
    for call in record.of(WEIGHTED):
        shape = record.shapes[call.inputs[0]]
        uses = fan_out(call.module, shape).expand(shape).sum(dtype=torch.float64)
        found[call.where] = found.get(call.where, 0) + round(uses.item() / record.shapes[0][0])
    return found


def picojoules(
    accumulates: Tensor | float,
    multiplies: Tensor | float,
    accumulate: float = PJ_ACCUMULATE,
    multiply: float = PJ_MULTIPLY,
) -> Tensor | float:
    """Energy in pJ of so many operations at `accumulate` and `multiply` pJ each."""
    return accumulates * accumulate + multiplies * multiply


@dataclass
class Cost:
    """What a spiking network did for each of N pictures.

    Attributes:
        T: Time steps.
        neurons: Number of neurons of each layer of neurons.
        rates: Spikes per neuron and step of each of them, [N].
        accumulates: Accumulates of each layer, [N].
        multiplies: Multiply-accumulates of each layer, [N].
        float_multiplies: Multiply-accumulates of the same layers on analog values.
    """

    T: int
    neurons: dict[str, int]
    rates: dict[str, Tensor]
    accumulates: dict[str, Tensor]
    multiplies: dict[str, Tensor]
    float_multiplies: dict[str, int]

    def rate(self) -> Tensor:
        """Spikes per neuron and step over all layers, [N]."""
        total = sum(self.neurons.values())
        return sum(self.rates[name] * size for name, size in self.neurons.items()) / total


@torch.no_grad()
def measure_cost(spiking: SpikingNetwork, batches: Iterable[Tensor], T: int) -> Cost:
    """Count spikes and operations of a spiking network.

    Args:
        spiking: The network.
        batches: Pictures [B, C, H, W].
        T: Time steps.
    """
    neurons: dict[str, int] = {}
    counted: tuple[dict[str, list[Tensor]], ...] = ({}, {}, {})
    analog: dict[str, int] = {}
    recorder = Recorder(spiking)
    for pictures in batches:
        counter = _Counter(spiking, pictures)
        analog = _analog_uses(counter.record)
        for _ in recorder.run(pictures, T):
            counter.step(recorder.now)
        rates = {}
        for layer in recorder.neurons:
            neurons[layer.name] = layer.fired[0].numel()
            rates[layer.name] = layer.fired.flatten(1).mean(1, dtype=torch.float64) / T
        for lists, new in zip(counted, (rates, *counter.totals(T)), strict=True):
            for name, values in new.items():
                lists.setdefault(name, []).append(values.cpu())
    joined = [{name: torch.cat(parts) for name, parts in lists.items()} for lists in counted]
    return Cost(T, neurons, *joined, analog)


@dataclass
class _Reader:
    """Something that reads a slot: a weighted layer, or neurons behind an addition.

    Attributes:
        accumulates: Accumulates that a spike at each place of the slot costs.
        multiplies: Multiply-accumulates a picture and step (a picture, if `once`).
    """

    name: str
    slot: int
    accumulates: Tensor
    multiplies: float
    once: bool


class _Counter:
    """Counts the operations of one batch from the spikes of each step.

    The trace of a step says what lies between the neurons and the weighted layers; the number of
    spikes is followed through it.
    """

    def __init__(self, spiking: SpikingNetwork, pictures: Tensor):
        self.batch, self.device = len(pictures), pictures.device
        self.record = trace_steps(spiking.network, pictures)
        often = {call.module for call in self.record.run_in_every_step()}
        self.once = {call.module for call in self.record.of(WEIGHTED)} - often
        self.pools: dict[nn.Module, Tensor] = {}  # where they send spikes and not real currents
        self.readers = self._readers()
        self.counted = {
            r.name: torch.zeros(self.batch, dtype=torch.float64, device=self.device)
            for r in self.readers
        }

    def _readers(self) -> list[_Reader]:
        """What reads spikes or analog values, found by following ones from where each starts."""
        start = {0: torch.ones(self.record.shapes[0], device=self.device)}
        analog = _follow(self.record, self._ones(WEIGHTED), start)
        spikes = _follow(self.record, self._ones(ACTIVATIONS))
        for call in self.record.of((SpikingMaxPool,)):
            number = next(slots(call.result))
            if number in spikes:
                real = analog.get(number, torch.zeros(()))
                self.pools[call.module] = (spikes[number] > 0) & (real == 0)
        readers = []
        for call in self.record.calls:
            slot = call.inputs[0]
            if isinstance(call.module, WEIGHTED):
                readers.append(self._weighted_reader(call, analog.get(slot)))
            elif isinstance(call.module, ACTIVATIONS) and slot in spikes:
                readers.append(_Reader(call.where, slot, torch.ones(()), 0.0, False))
        return readers

    def _weighted_reader(self, call: Call, analog: Tensor | None) -> _Reader:
        slot, once = call.inputs[0], call.module in self.once
        shape = self.record.shapes[slot]
        uses = fan_out(call.module, shape).expand(shape)
        real = torch.full(shape, once) if analog is None else (analog > 0) | once
        real = real.to(uses.device)
        multiplies = (uses * real).sum(dtype=torch.float64).item() / self.batch
        return _Reader(call.where, slot, uses * ~real, multiplies, once)

    def _ones(self, kinds: tuple[type, ...]) -> dict[nn.Module, Tensor]:
        """Ones as the output of each module of some kinds."""
        shapes, calls = self.record.shapes, self.record.of(kinds)
        return {
            c.module: torch.ones(shapes[next(slots(c.result))], device=self.device) for c in calls
        }

    def step(self, fired: dict[nn.Module, Tensor]) -> None:
        """Add the operations of one step from its spikes 0/1."""
        sent = {m: spikes for m, spikes in fired.items() if isinstance(m, ACTIVATIONS)}
        pooled = {m: fired[m] * places.to(fired[m].device) for m, places in self.pools.items()}
        events = _follow(self.record, sent | pooled)
        for reader in self.readers:
            if not reader.once and reader.slot in events:
                operations = events[reader.slot] * reader.accumulates
                each = operations.reshape(self.batch, -1).sum(1, dtype=torch.float64)
                self.counted[reader.name] += each

    def totals(self, T: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Accumulates and multiply-accumulates of each layer, [B]."""
        multiplies = {name: torch.zeros_like(value) for name, value in self.counted.items()}
        for reader in self.readers:
            multiplies[reader.name] += reader.multiplies * (1 if reader.once else T)
        return self.counted, multiplies


def _follow(
    record: Trace, sent: dict[nn.Module, Tensor], start: dict[int, Tensor] | None = None
) -> dict[int, Tensor]:
    """Follow numbers through everything that is neither weighted nor a neuron.

    Args:
        record: Calls of one step.
        sent: Outputs by module; weighted layers and neurons that are left out send nothing.
        start: Known before the first call.

    Returns:
        Values by slot; a slot that nothing reaches is left out.
    """
    tensors = dict(start or {})
    for call in record.calls:
        if call.module in sent:
            store(call.result, sent[call.module], tensors)
        elif isinstance(call.module, WEIGHTED + ACTIVATIONS):
            continue
        elif reached := [tensors[n] for n in call.inputs if n in tensors]:
            device = reached[0].device
            nothing = {n: torch.zeros(record.shapes[n], device=device) for n in call.inputs}
            store(call.result, _sum_of(call, {**nothing, **tensors}), tensors)
    return tensors


def _sum_of(call: Call, tensors: dict[int, Tensor]) -> Tensor:
    """What a call gives, sums in place of averages; maxima of these numbers alone."""
    args, kwargs = fill(call.args, tensors), fill(call.kwargs, tensors)
    module, x = call.module, args[0]
    if isinstance(module, SpikingMaxPool):
        return nn.MaxPool2d.forward(module, x)
    if isinstance(module, nn.AvgPool2d):
        keys = ("kernel_size", "stride", "padding", "ceil_mode")
        return F.avg_pool2d(x, *(getattr(module, key) for key in keys), divisor_override=1)
    if call.function is F.avg_pool2d:
        return F.avg_pool2d(*args, **{**kwargs, "divisor_override": 1})
    result = call.function(*args, **kwargs)
    if isinstance(module, nn.AdaptiveAvgPool2d) or call.function is F.adaptive_avg_pool2d:
        return result * _adaptive_windows(x.shape[-2:], result.shape[-2:]).to(result.device)
    if call.function in (torch.mean, Tensor.mean):
        return result * (x.numel() / result.numel())
    return result


def _adaptive_windows(size: torch.Size, wanted: torch.Size) -> Tensor:
    """Places that each output of adaptive pooling averages, [h, w]."""
    rows, columns = (
        torch.tensor([-(-(i + 1) * n // m) - i * n // m for i in range(m)], dtype=torch.float32)
        for n, m in zip(size, wanted, strict=True)
    )
    return rows[:, None] * columns
