"""Stage II: layer-wise calibration of a spiking network, coarse and fine (eq 16-21).

Layers are visited in execution order. The inputs of a layer are the spikes of the layers already
calibrated, its targets the activations of the stage-I network on the same pictures. Spikes and
targets are advanced one layer at a time and kept packed (one bit a spike, two with signs; one byte
a target), so the cost is O(layers) and the memory bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.conversion.trace import (
    ACTIVATIONS,
    WEIGHTED,
    Call,
    Trace,
    fill,
    slots,
    store,
    trace,
)
from spikedet.errors import UsageError
from spikedet.neurons.functional import integrate_and_fire, integrate_and_fire_surrogate
from spikedet.neurons.layers import SpikingMaxPool, per_channel

LOSSES = ("mse", "kl")


@dataclass
class Options:
    """How much stage II does.

    Attributes:
        coarse: Shift initial potentials to the mean residual (eq 18).
        fine: Train weights, biases and initial potentials of each layer (eq 19-21).
        steps: Most steps of fine calibration a layer.
        rate: Adam's learning rate as a part of each tensor's root mean square.
        patience: Checks on held-out pictures without a gain before a layer is left.
        check: Steps between two checks.
        alpha: Width of the surrogate gradient in units of the threshold.
        half: Convolutions of the fitting steps in bfloat16 (checks are always float32).
        per_neuron: An initial potential for every neuron, [C, H, W], instead of every channel;
            the network then runs on pictures of this size alone.
        loss: `mse`, or `kl`: Kullback-Leibler divergence of the rates from the targets, soft-max
            over the flattened C*H*W of each picture (as published for classification; blind to a
            constant that is added). The readout, whose level matters, is always fitted by `mse`.
        layers: Names of the layers to calibrate, or shell patterns (`model.1.*`), as they stand in
            the reports; the others keep their parameters. All when None.
    """

    coarse: bool = True
    fine: bool = True
    steps: int = 120
    rate: float = 3e-2
    patience: int = 4
    check: int = 15
    alpha: float = 1.0
    half: bool = True
    per_neuron: bool = False
    loss: str = "mse"
    layers: Sequence[str] | None = None


@dataclass
class LayerReport:
    """Error of one layer on held-out pictures, by the loss that was chosen.

    Mean squared errors are in units of the layer's threshold squared. The readout has no threshold;
    its unit is the standard deviation of each output channel.
    """

    name: str
    before: float
    coarse: float
    after: float
    history: list[float] = field(default_factory=list, repr=False)


@dataclass
class _Site:
    """A layer to calibrate: the calls from stored spikes to its input current, and the neuron."""

    call: Call
    segment: list[Call]
    sources: list[int]
    layers: list[nn.Module]


def calibrate(
    quantized: nn.Module,
    spiking: nn.Module,
    fit: Sequence[Tensor],
    held: Sequence[Tensor],
    T: int,
    options: Options | None = None,
    report: Callable[[LayerReport, int, int], None] | None = None,
) -> list[LayerReport]:
    """Calibrate `spiking` in place.

    Args:
        quantized: Stage-I network in evaluation mode.
        spiking: The same network after `make_spiking`.
        fit: Batches of pictures [B, C, H, W] to fit, all of one size.
        held: Batches to judge by, of the same size, other pictures.
        T: Time steps.
        options: How much is done.
        report: Called after each layer with its report, its number and how many there are.

    Returns:
        One report a calibrated layer; none ends worse than it began.

    Raises:
        UsageError: An unknown loss, or a name in `options.layers` that no layer has.
    """
    options = options or Options()
    if options.loss not in LOSSES:
        raise UsageError(f"loss {options.loss!r}; expected one of {', '.join(LOSSES)}")
    pictures = [*fit, *held]
    numbers = range(len(fit)), range(len(fit), len(pictures))
    student = _Stored(spiking, pictures, T)
    teacher = _Stored(quantized, pictures, None)
    pairs = list(zip(student.sites, teacher.sites, strict=True))
    chosen = _choose([site.call.where for site in student.sites], options.layers)
    reports = []
    for index, (site, truth) in enumerate(pairs):
        if site.call.where in chosen:
            if options.per_neuron:
                student.free_every_neuron(site)
            targets = [teacher.target(truth, m) for m in range(len(pictures))]
            layer = _Layer(student, site, targets, options)
            reports.append(layer.calibrate(*numbers))
            if report is not None:
                report(reports[-1], len(reports) - 1, len(chosen))
        student.advance(index)
        teacher.advance(index)
    return reports


def _choose(names: list[str], patterns: Sequence[str] | None) -> set[str]:
    """The layers whose names match one of the patterns."""
    if patterns is None:
        return set(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"no layer is named {pattern!r}; there are {', '.join(names)}")
    return {name for name in names if any(fnmatchcase(name, p) for p in patterns)}


class _Stored:
    """A network with the outputs of its neurons for all pictures, one layer advanced at a time.

    With T the outputs are spikes, packed eight to a byte; without, levels of the quantiser.
    """

    def __init__(self, network: nn.Module, pictures: list[Tensor], T: int | None):
        self.pictures, self.T = pictures, T
        self.batch = len(pictures[0])
        for module in network.modules():
            if hasattr(module, "start"):
                module.start(self.batch)
            if hasattr(module, "steps") and T is not None:
                module.steps = T
        self.trace: Trace = trace(network, pictures[0])
        for module in network.modules():
            if hasattr(module, "start"):
                module.start(0)
        self.neurons = self.trace.of(ACTIVATIONS)
        self.sites = [self._site(call) for call in [*self.neurons, *self.trace.readouts()]]
        self.kept: dict[int, list[np.ndarray]] = {}

    def _site(self, call: Call) -> _Site:
        """What lies between the neurons before `call` and its input (its output, for a readout)."""
        is_neuron = isinstance(call.module, ACTIVATIONS)
        wanted = set(call.inputs) if is_neuron else set(slots(call.result))
        made_by_neurons = {n for c in self.neurons for n in slots(c.result)}
        segment, sources = [], set()
        for earlier in reversed(self.trace.calls):
            made = set(slots(earlier.result))
            if made & wanted and not (made & made_by_neurons):
                segment.append(earlier)
                wanted |= set(earlier.inputs)
        sources = wanted & (made_by_neurons | {0})
        layers = [c.module for c in segment if isinstance(c.module, WEIGHTED)]
        return _Site(call, segment[::-1], sorted(sources), layers)

    def sources(self, site: _Site, m: int) -> dict[int, Tensor]:
        """Inputs of a site for minibatch `m`: spikes, activations or the pictures themselves."""
        return {n: self.unpack(n, m) if n else self.pictures[m] for n in site.sources}

    def run(self, site: _Site, tensors: dict[int, Tensor]) -> Tensor:
        """Input current of a site (output of a readout)."""
        tensors = dict(tensors)
        for call in site.segment:
            if isinstance(call.module, SpikingMaxPool):
                call.module.start(self.batch)
            value = call.function(*fill(call.args, tensors), **fill(call.kwargs, tensors))
            store(call.result, value, tensors)
        for call in site.segment:
            if isinstance(call.module, SpikingMaxPool):
                call.module.start(0)
        is_neuron = isinstance(site.call.module, ACTIVATIONS)
        return tensors[site.call.inputs[0] if is_neuron else next(slots(site.call.result))]

    def free_every_neuron(self, site: _Site) -> None:
        """Give each neuron of a site an initial potential of its own, [C, H, W]."""
        if isinstance(site.call.module, ACTIVATIONS):
            initial = site.call.module.initial
            shape = self.trace.shapes[site.call.inputs[0]][1:]
            initial.data = per_channel(initial.data, 1 + len(shape)).expand(1, *shape)[0].clone()

    @torch.no_grad()
    def target(self, site: _Site, m: int) -> Tensor:
        """Stage-I activation in units of the threshold, as levels -T..T; a readout's output."""
        value = self.run(site, self.sources(site, m))
        if not isinstance(site.call.module, ACTIVATIONS):
            return value
        quantiser = site.call.module
        unit = per_channel(quantiser.threshold.abs(), value.ndim) / quantiser.steps
        level = torch.int8 if quantiser.steps <= 127 else torch.int16
        return (quantiser(value) / unit).round().to(level)

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Store the outputs of site `index` and forget what no later site reads."""
        site = self.sites[index]
        if isinstance(site.call.module, ACTIVATIONS):
            number = next(slots(site.call.result))
            self.kept[number] = [self.pack(site, m) for m in range(len(self.pictures))]
        needed = {n for later in self.sites[index + 1 :] for n in later.sources}
        self.kept = {n: v for n, v in self.kept.items() if n in needed}

    def pack(self, site: _Site, m: int) -> np.ndarray:
        if self.T is None:
            return self.target(site, m).numpy()
        spikes, _ = fire(site, self.run(site, self.sources(site, m)), self.batch, self.T)
        signs = [spikes > 0, spikes < 0] if site.call.module.slope else [spikes.bool()]
        return np.packbits(torch.stack(signs).numpy())

    def unpack(self, number: int, m: int) -> Tensor:
        stored, shape = self.kept[number][m], self.trace.shapes[number]
        maker = next(c.module for c in self.neurons if number in slots(c.result))
        if self.T is None:
            unit = per_channel(maker.threshold.abs(), len(shape)) / maker.steps
            return torch.from_numpy(stored).float() * unit
        signs = 2 if maker.slope else 1
        bits = torch.from_numpy(np.unpackbits(stored, count=signs * shape.numel()))
        spikes = bits.view(signs, *shape).float()
        spikes = spikes[0] - spikes[1] if maker.slope else spikes[0]
        if spikes.ndim == 4:
            spikes = spikes.contiguous(memory_format=torch.channels_last)
        return maker.on_wire(spikes)


def fire(
    site: _Site, current: Tensor, batch: int, T: int, alpha: float | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes and final potential of a site's neurons from their input current."""
    neuron = site.call.module
    u0, theta = neuron.first_potential(current, batch), per_channel(neuron.threshold, current.ndim)
    if alpha is None:
        return integrate_and_fire(current, u0, theta, T, slope=neuron.slope)
    return integrate_and_fire_surrogate(current, u0, theta, T, alpha, neuron.slope)


class _Layer:
    """One layer's calibration."""

    def __init__(self, student: _Stored, site: _Site, targets: list[Tensor], options: Options):
        self.student, self.site, self.targets, self.options = student, site, targets, options
        self.is_neuron = isinstance(site.call.module, ACTIVATIONS)
        self.parameters = [p for layer in site.layers for p in layer.parameters()]
        if self.is_neuron:
            self.parameters.append(site.call.module.initial)
            self.unit = None
        else:
            spread = torch.cat([t.transpose(0, 1).flatten(1) for t in targets], 1).std(1)
            self.unit = spread.clamp(min=1e-6).view(1, -1, *[1] * (targets[0].ndim - 2))

    def calibrate(self, fit: range, held: range) -> LayerReport:
        name = self.site.call.where
        before = best = self.error(held)
        history = [before]
        if self.options.coarse and self.is_neuron:
            saved = self.state()
            self.coarse(fit)
            error = self.error(held)
            if error < best:
                best = error
            else:
                self.restore(saved)
        coarse = best
        if self.options.fine:
            best = self.fine(fit, held, best, history)
        return LayerReport(name, before, coarse, best, history)

    def state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def restore(self, state: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.data.copy_(value)

    def loss(self, m: int, alpha: float | None = None) -> Tensor:
        """Error of minibatch m, see `LayerReport`."""
        sources = self.student.sources(self.site, m)
        half = alpha is not None and self.options.half
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            current = self.student.run(self.site, sources)
        current = current.float()
        if not self.is_neuron:
            return ((current - self.targets[m]) / self.unit).square().mean()
        rate, target = self.rate(current, alpha), self.target(m)
        if self.options.loss == "kl":
            found, wanted = (x.flatten(1).log_softmax(1) for x in (rate, target))
            return F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return (rate - target).square().mean()

    def rate(self, current: Tensor, alpha: float | None = None) -> Tensor:
        batch, T = self.student.batch, self.student.T
        spikes, _ = fire(self.site, current, batch, T, alpha)
        return spikes.unflatten(0, (T, batch)).mean(0)

    def target(self, m: int) -> Tensor:
        return self.targets[m].float() / self.student.T

    @torch.no_grad()
    def error(self, numbers: range) -> float:
        return float(np.mean([self.loss(m).item() for m in numbers]))

    @torch.no_grad()
    def coarse(self, fit: range) -> None:
        """u0 += T theta mean(a - r) (eq 18), kept within [-theta, 2 theta]."""
        neuron, total = self.site.call.module, 0
        for m in fit:
            current = self.student.run(self.site, self.student.sources(self.site, m))
            gap = self.target(m) - self.rate(current)
            keep = [d for d in range(gap.ndim) if d != 1] if neuron.initial.ndim == 1 else [0]
            total = total + gap.mean(keep) / len(fit)
        theta = per_channel(neuron.threshold, 1 + neuron.initial.ndim).squeeze(0)
        shifted = neuron.initial + self.student.T * theta * total
        neuron.initial.data.copy_(torch.minimum(torch.maximum(shifted, -theta), 2 * theta))

    def fine(self, fit: range, held: range, best: float, history: list[float]) -> float:
        """Adam on weights, biases and initial potentials; the best state on `held` stays."""
        options = self.options
        groups = []
        for parameter in self.parameters:
            parameter.requires_grad_(True)
            size = parameter.detach().square().mean().sqrt().item()
            groups.append({"params": [parameter], "lr": options.rate * max(size, 1e-3)})
        optimiser = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
        order = torch.Generator().manual_seed(0)
        saved, worse = self.state(), 0
        queue: list[int] = []
        for step in range(options.steps):
            if not queue:
                queue = [fit[i] for i in torch.randperm(len(fit), generator=order).tolist()]
            loss = self.loss(queue.pop(), options.alpha)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if (step + 1) % options.check == 0 or step + 1 == options.steps:
                error = self.error(held)
                history.append(error)
                if error < best:
                    best, worse, saved = error, 0, self.state()
                else:
                    worse += 1
                if worse >= options.patience:
                    break
        self.restore(saved)
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        return best
