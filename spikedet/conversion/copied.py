"""The spiking copy of a stage-I network, looked at before anybody uses it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from spikedet.conversion.bias import shift_currents
from spikedet.conversion.stored import Site, Stored
from spikedet.errors import ConversionError
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool, mean_over_time
from spikedet.precision import device_of

APART = 1e-3  # of the largest current of a layer: what rounding explains, and nothing else


def spiking_copy(
    quantised: Graph,
    T: int,
    initial: float = 0.5,
    shift: bool = False,
    pooling: str = "count",
    neuron: str = "neuron",
    pictures: Tensor | None = None,
) -> Graph:
    """Spiking graph with the weights and thresholds of stage I, nothing calibrated (eq 16).

    Args:
        quantised: Stage I, batch norm folded; left as it is.
        T: Time steps.
        initial: Potential before the first step in units of the threshold.
        shift: Add theta / (2 T) to every current (see `shift_currents`).
        pooling: How spikes are max-pooled: `count` or `step`.
        neuron: Which one of `neurons.registry`.
        pictures: What the copy is checked on, [B, ...] (see `expect_faithful`); noise when None.

    Raises:
        ConversionError: What cannot be converted, or what did not come out right.
    """
    graph = copy.deepcopy(quantised)
    make_spiking(graph, initial, pooling, neuron)
    if pictures is None:
        shape = (2, *graph.shapes[INPUT][1:])
        pictures = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expect_faithful(quantised, graph, pictures.to(device_of(graph)))
    if shift:
        shift_currents(graph, T)
    return graph


@torch.no_grad()
def expect_faithful(quantised: Graph, spiking: Graph, pictures: Tensor, steps: int = 3) -> None:
    """Refuse a spiking graph whose layers do not receive what those of stage I would.

    Between two layers of neurons everything is linear, but for pooling of counts, which keeps sums
    as well. So whatever the neurons send, the mean over time of a layer's current must be what the
    quantised network makes of the rates: it does not depend on residual potentials. A threshold
    that was lost on the way, or frames of a batch that were mixed up, show at once.

    Args:
        quantised: Stage I.
        spiking: Its copy (see `make_spiking`), nothing calibrated.
        pictures: [B, ...]; B of 2 or more shows a mixture of pictures.
        steps: Time steps.

    Raises:
        ConversionError: Names the layer that receives something else.
    """
    batch = len(pictures)
    student, teacher = Stored(spiking, [pictures], steps), Stored(quantised, [pictures], None)
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
    """What the spikes of a layer stand for on average: theta times their rate, [B, ...]."""
    neuron = graph.module(name)
    assert isinstance(neuron, IFNeuron)
    mean = mean_over_time(wire.float(), batch, weights)
    if not neuron.folded:
        return mean
    theta = neuron.threshold
    return mean * (theta.view(1, -1, *[1] * (mean.ndim - 2)) if theta.ndim else theta)


def _by_step(graph: Graph, site: Site) -> bool:
    """Whether a maximum is taken in every step, which sums do not survive."""
    modules = [graph.module(name) for name in site.segment]
    return any(isinstance(m, SpikingMaxPool) and m.mode == "step" for m in modules)
