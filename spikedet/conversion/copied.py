"""Make the spiking copy of a stage-I network, and check it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from spikedet.conversion.bias import shift_currents
from spikedet.conversion.stored import Site, StoredOutputs
from spikedet.errors import ConversionError
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool, mean_over_time
from spikedet.precision import device_of

APART = 1e-3  # largest error by rounding, relative to the largest current of a layer


def spiking_copy(
    quantised: Graph,
    T: int,
    initial: float = 0.5,
    shift: bool = False,
    pooling: str = "count",
    neuron: str = "neuron",
    pictures: Tensor | None = None,
    margin: float = 0.0,
) -> Graph:
    """Copy the weights and thresholds of stage I into a spiking graph, without calibration (eq 16).

    Args:
        quantised: Stage-I graph with folded batch norm. It is not changed.
        T: Time steps.
        initial: Initial potential in units of the threshold.
        shift: Add theta / (2 T) to every current (see `shift_currents`).
        pooling: Max-pooling of spikes: `count` or `step`.
        neuron: Name of a neuron in `neurons.registry`.
        pictures: Pictures for the check of the copy, [B, ...] (see `expect_faithful`). None: noise.
        margin: Margin of neurons that take back spikes.

    Raises:
        ConversionError: The graph cannot be converted, or the check of the copy fails.
    """
    graph = copy.deepcopy(quantised)
    make_spiking(graph, initial, pooling, neuron, margin)
    if pictures is None:
        shape = (2, *graph.shapes[INPUT][1:])
        pictures = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expect_faithful(quantised, graph, pictures.to(device_of(graph)))
    if shift:
        shift_currents(graph, T)
    return graph


@torch.no_grad()
def expect_faithful(quantised: Graph, spiking: Graph, pictures: Tensor, steps: int = 3) -> None:
    """Check that the layers of a spiking graph receive the same currents as those of stage I.

    Between two layers of neurons all operations are linear, except pooling of counts, which keeps
    sums too. So the mean current of a layer over time must equal the current that the quantised
    network computes from the spike rates. This does not depend on residual potentials. The check
    finds, for example, a lost threshold or mixed-up frames of a batch.

    Args:
        quantised: Stage-I graph.
        spiking: Its spiking copy (see `make_spiking`) before calibration.
        pictures: [B, ...]. With B of 2 or more the check also finds mixed-up pictures.
        steps: Time steps of the check.

    Raises:
        ConversionError: A layer receives another current. The message names it.
    """
    batch = len(pictures)
    student, teacher = (
        StoredOutputs(spiking, [pictures], steps),
        StoredOutputs(quantised, [pictures], None),
    )
    weights = torch.ones(steps, device=pictures.device)
    for index, (site, truth) in enumerate(zip(student.sites, teacher.sites, strict=True)):
        sent = student.sources(site, 0)
        rates = {
            n: x if n == INPUT else _rate(spiking, n, x, batch, weights) for n, x in sent.items()
        }
        current = student.run(site, sent)
        if site.is_neuron and len(current) == steps * batch and site.sources != [INPUT]:
            current = mean_over_time(current, batch, weights)
        wanted = quantised.run(truth.segment, rates, [truth.value])[truth.value]
        apart = (current.float() - wanted).abs().max().item()
        if not _by_step(spiking, site) and not apart <= APART * wanted.abs().max().item() + 1e-6:
            raise ConversionError(
                f"{site.node.name}: after conversion this layer receives other currents than in "
                f"stage I (difference {apart:.3g}); this network cannot be converted, please "
                "report it"
            )
        student.advance(index)


def _rate(graph: Graph, name: str, wire: Tensor, batch: int, weights: Tensor) -> Tensor:
    """The mean value of the spikes of a layer: theta times their rate, [B, ...]."""
    neuron = graph.module(name)
    assert isinstance(neuron, IFNeuron)
    mean = mean_over_time(wire.float(), batch, weights)
    if not neuron.folded:
        return mean
    theta = neuron.threshold
    return mean * (theta.view(1, -1, *[1] * (mean.ndim - 2)) if theta.ndim else theta)


def _by_step(graph: Graph, site: Site) -> bool:
    """Whether max-pooling runs in every step. Then mean currents cannot be compared."""
    modules = [graph.module(name) for name in site.segment]
    return any(isinstance(m, SpikingMaxPool) and m.mode == "step" for m in modules)
