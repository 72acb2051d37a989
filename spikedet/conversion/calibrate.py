"""Stage II: layer-wise calibration of a spiking network, coarse and fine (eq 16-21).

The layers are calibrated in the order of execution. The inputs of a layer are the spikes of the
layers that are calibrated already. Its targets are the activations of the stage-I network on the
same pictures. If a convolution feeds several layers of neurons, it is calibrated with the first of
them, and not changed later. Spikes and targets are computed one layer at a time, and stored packed:
one bit for a spike (two bits with signs), one byte for a target. So each layer runs once, and the
memory is limited.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.conversion.bias import own_bias
from spikedet.conversion.stored import Site, StoredOutputs, fire
from spikedet.errors import UsageError, list_choices
from spikedet.graph.graph import Graph
from spikedet.graph.operations import WeightedLayer
from spikedet.neurons.layers import mean_over_time, per_channel
from spikedet.options import expect_limits
from spikedet.precision import mixed
from spikedet.settings import LayerWise

MOST_NAMED = 3  # layers in a warning
NOTHING = 1e-8  # a smaller error counts as none (a first layer, whose current is constant)


@dataclass
class LayerReport:
    """Error of one layer on held-out pictures, measured with the chosen loss.

    Mean squared errors are in units of the squared threshold of the layer. A readout has no
    threshold. Its unit is the standard deviation of each output channel.

    Attributes:
        name: Name of the layer.
        before: Error before calibration.
        coarse: Error after coarse calibration.
        after: Error after fine calibration.
    """

    name: str
    before: float
    coarse: float
    after: float


def calibrate(
    quantized: Graph,
    spiking: Graph,
    fit: Sequence[Tensor],
    held_out: Sequence[Tensor],
    T: int,
    options: LayerWise | None = None,
    report: Callable[[LayerReport, int, int], None] | None = None,
) -> list[LayerReport]:
    """Calibrate `spiking` layer by layer, in place.

    A warning names the layers of which no neuron fired on any of the pictures.

    Args:
        quantized: Stage-I network in evaluation mode. It may also be a prepared float network; then
            the targets are activations without quantisation and clipping.
        spiking: The same network after `make_spiking`.
        fit: Batches of pictures [B, C, H, W] to fit, all of the same size, on the device of the
            networks.
        held_out: Batches of other pictures, of the same size. They decide what is kept.
        T: Time steps.
        options: Settings of the calibration.
        report: Function that is called after each layer with its report, its number and the number
            of layers.

    Returns:
        One report for each calibrated layer. Without `options.bias`, no layer has a larger error
        than before.

    Raises:
        UsageError: An option is outside its limits, or `options.layers` has a name that no layer
            has.
        ConversionError: With `options.bias`: a layer has no bias of its own (see `own_bias`).
    """
    options = options or LayerWise()
    expect_limits(options)
    pictures = [*fit, *held_out]
    numbers = range(len(fit)), range(len(fit), len(pictures))
    student = StoredOutputs(spiking, pictures, T)
    teacher = StoredOutputs(quantized, pictures, None)
    pairs = list(zip(student.sites, teacher.sites, strict=True))
    chosen = choose(student.names, options.layers)
    reports = []
    fixed: set[nn.Module] = set()  # what they feed was advanced already
    for index, (site, truth) in enumerate(pairs):
        if site.node.name in chosen:
            if options.per_neuron:
                student.expand_initial_potentials(site)
            targets = [teacher.target(truth, m) for m in range(len(pictures))]
            free = [module for module in site.layers if module not in fixed]
            layer = _Layer(student, site, free, targets, options)
            reports.append(layer.calibrate(*numbers))
            if report is not None:
                report(reports[-1], len(reports) - 1, len(chosen))
        fixed.update(site.layers)
        student.advance(index)
        teacher.advance(index)
    _warn_of_silent(student.silent, sum(map(len, pictures)))
    return reports


def _warn_of_silent(names: list[str], pictures: int) -> None:
    """Warn of layers of which no neuron fired on any of the pictures."""
    if names:
        more = f" and of {len(names) - MOST_NAMED} more layers" if len(names) > MOST_NAMED else ""
        warnings.warn(
            f"no neuron of {', '.join(names[:MOST_NAMED])}{more} fired on any of the {pictures} "
            "calibration pictures; check that the pictures are scaled as in training",
            stacklevel=3,
        )


def choose(names: list[str], patterns: Sequence[str] | None) -> set[str]:
    """Return the layers whose names match a pattern. None returns all layers.

    Raises:
        UsageError: A pattern matches no layer.
    """
    if patterns is None:
        return set(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"no layer is named {pattern!r}; there are {list_choices(pattern, names)}"
            )
    return {name for name in names if any(fnmatchcase(name, p) for p in patterns)}


class _Layer:
    """The calibration of one layer. `free` are the weighted layers that may change."""

    def __init__(
        self,
        student: StoredOutputs,
        site: Site,
        free: list[WeightedLayer],
        targets: list[Tensor],
        options: LayerWise,
    ):
        assert student.T is not None
        self.student, self.site, self.T = student, site, student.T
        self.targets, self.options = targets, options
        self.is_neuron = site.is_neuron
        self.parameters = [p for layer in free for p in layer.parameters()]
        if self.is_neuron:
            self.parameters.append(site.neuron.initial)
            self.unit = torch.ones(())
        else:
            spread = torch.cat([t.transpose(0, 1).flatten(1) for t in targets], 1).std(1)
            self.unit = spread.clamp(min=1e-6).view(1, -1, *[1] * (targets[0].ndim - 2))

    def calibrate(self, fit: range, held_out: range) -> LayerReport:
        name = self.site.node.name
        before = best = self.error(held_out)
        if self.options.bias and self.is_neuron:
            self.correct_bias(fit)
            best = self.error(held_out)
        if self.options.coarse and self.is_neuron:
            saved = self.state()
            self.coarse(fit)
            error = self.error(held_out)
            if error < best:
                best = error
            else:
                self.restore(saved)
        coarse = best
        if self.options.fine and best > NOTHING:
            best = self.fine(fit, held_out, best)
        return LayerReport(name, before, coarse, best)

    def state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def restore(self, state: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.data.copy_(value)

    def loss(self, m: int, alpha: float | None = None) -> Tensor:
        """Error of batch m (see `LayerReport`)."""
        sources = self.student.sources(self.site, m)
        half = alpha is not None and self.options.half
        with mixed(self.student.pictures[m].device.type, half):
            current = self.student.run(self.site, sources)
        current = current.float()
        if not self.is_neuron:
            return ((current - self.targets[m]) / self.unit).square().mean()
        rate, target = self.rate(current, alpha), self.target(m)
        if self.options.loss == "kl":
            predicted, wanted = (x.flatten(1).log_softmax(1) for x in (rate, target))
            return F.kl_div(predicted, wanted, reduction="batchmean", log_target=True)
        return (rate - target).square().mean()

    def rate(self, current: Tensor, alpha: float | None = None) -> Tensor:
        batch, T = self.student.batch, self.T
        spikes, _ = fire(self.site, current, batch, T, 1.0 if alpha is None else alpha)
        return mean_over_time(spikes, batch, torch.ones(T, device=spikes.device))

    def target(self, m: int) -> Tensor:
        target = self.targets[m]
        if target.is_floating_point():  # not quantised
            return target / per_channel(self.site.neuron.threshold, target.ndim)
        return target.float() / self.T

    @torch.no_grad()
    def error(self, numbers: range) -> float:
        return float(np.mean([self.loss(m).item() for m in numbers]))

    def gap(self, fit: range, every_neuron: bool = False) -> Tensor:
        """Mean of a - r over pictures and positions, [C], or over pictures only, [C, H, W].

        a is the target activation and r is the spike rate.
        """
        gaps = []
        for m in fit:
            current = self.student.run(self.site, self.student.sources(self.site, m))
            gap = self.target(m) - self.rate(current)
            over = [0] if every_neuron else [d for d in range(gap.ndim) if d != 1]
            gaps.append(gap.mean(over) / len(fit))
        return sum(gaps[1:], gaps[0])

    @torch.no_grad()
    def correct_bias(self, fit: range) -> None:
        """Add the mean error to the bias: b += theta mean(a - r)."""
        bias = own_bias(self.student, self.site)
        bias.data += self.site.neuron.threshold * self.gap(fit)

    @torch.no_grad()
    def coarse(self, fit: range) -> None:
        """Coarse calibration: u0 += T theta mean(a - r) (eq 18), clipped to [-theta, 2 theta]."""
        neuron = self.site.neuron
        total = self.gap(fit, every_neuron=neuron.initial.ndim > 1)
        theta = per_channel(neuron.threshold, 1 + neuron.initial.ndim).squeeze(0)
        shifted = neuron.initial + self.T * theta * total
        neuron.initial.data.copy_(torch.minimum(torch.maximum(shifted, -theta), 2 * theta))

    def fine(self, fit: range, held_out: range, best: float) -> float:
        """Fine calibration: train weights, biases and initial potentials with Adam (eq 19-21).

        The state with the smallest error on `held_out` is kept. Returns that error.
        """
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
                error = self.error(held_out)
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
