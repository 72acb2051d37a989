"""What several tests need of converted networks: the graph of each stage, and what neurons send."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spikedet.checkpoint import Checkpoint, restore_graph
from spikedet.conversion.prepare import prepare
from spikedet.conversion.sparsity import StageOnePenalty
from spikedet.conversion.thresholds import estimate_thresholds, largest_activations
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.watch import watching


def quantised(
    network: nn.Module,
    batches: Sequence[Tensor],
    T: int,
    per_channel=False,
    maxima=False,
    fold=True,
) -> Graph:
    """The quantised graph of a float network, thresholds estimated on some batches."""
    graph = prepare(network, batches[0], fold)
    if maxima:
        thresholds = largest_activations(graph, batches, per_channel)
    else:
        thresholds = estimate_thresholds(graph, batches, T, per_channel=per_channel)
    quantise(graph, thresholds, T)
    return graph.eval()


def spiking_copy(graph: Graph, **options) -> Graph:
    """The spiking graph of a quantised one, which stays as it is."""
    spiking = copy.deepcopy(graph)
    make_spiking(spiking, **options)
    return spiking


def operations(checkpoint: Checkpoint) -> float:
    """Operations for noise that the spikes of a stage-I network will cause (`StageOnePenalty`)."""
    graph = restore_graph(checkpoint).eval()
    noise = torch.rand(4, *graph.shapes[INPUT][1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), StageOnePenalty(graph, 1.0).counted() as seen:
        graph(noise)
    return sum(seen).item()


def activations(graph: Graph) -> list[str]:
    """Names of the activations, quantisers or neurons, in the order of execution."""
    return [node.name for node in graph.of(ACTIVATIONS)]


def neurons(graph: Graph) -> list[IFNeuron]:
    """The layers of neurons in the order of execution."""
    return [node.module for node in graph.of((IFNeuron,))]


@contextmanager
def seen_in(graph: Graph, kind: type = IFNeuron) -> Iterator[dict[str, list[Tensor]]]:
    """Outputs of the neurons (or others that know time) of each pass in the block, by name."""
    seen: dict[str, list[Tensor]] = {}

    def watch(now, node, inputs, output):
        if isinstance(node.module, kind):
            seen.setdefault(node.name, []).append(output.detach())

    with watching(graph, watch):
        yield seen


def leaves(value) -> list[Tensor]:
    """Tensors of a nested output."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@torch.no_grad()
def recorded(network: nn.Module, pictures: Tensor) -> Graph:
    """The graph that `quantise` takes, equal to the network in evaluation mode to 1e-5."""
    wanted = leaves(network.eval()(pictures.clone()))
    graph = prepare(network, pictures[:1])
    outputs = leaves(graph(pictures.clone()))
    assert len(outputs) == len(wanted)
    for one, truth in zip(outputs, wanted, strict=True):
        assert one.shape == truth.shape
        assert torch.allclose(one, truth, atol=1e-5 * max(1.0, truth.abs().max().item()), rtol=1e-5)
    return graph


@torch.no_grad()
def distance(graph: Graph, pictures: Tensor, T: int = 256, maxima: bool = True) -> float:
    """Of a float graph, which is converted in place: mean distance of its outputs after T steps.

    In units of the standard deviation of the float outputs, of the output where it is largest.
    Thresholds are the largest activations of these pictures (or those of the least error).
    """
    wanted = leaves(graph(pictures))
    if maxima:
        thresholds = largest_activations(graph, [pictures])
    else:
        thresholds = estimate_thresholds(graph, [pictures], T)
    quantise(graph, thresholds, T)
    make_spiking(graph.eval())
    outputs = leaves(SpikingNetwork(graph, T, chunk=64)(pictures))
    apart = [
        ((one - truth).abs().mean() / truth.std()).item()
        for one, truth in zip(outputs, wanted, strict=True)
    ]
    return max(apart)


@torch.no_grad()
def alive(network: nn.Module, pictures: Tensor) -> nn.Module:
    """Give batch norms the statistics of some pictures, and dropouts nothing to do."""
    modes = {}
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            modes[module], module.p = module.p, 0.0
    network.train()(pictures)
    for module, p in modes.items():
        module.p = p
    return network.eval()
