"""The penalty on spikes: what it counts, and that it makes networks sparser."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import spikedet
from spikedet.conversion.sparsity import Operations, StageOnePenalty, fan_out
from spikedet.errors import UsageError
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.network import SpikingNetwork
from support.engines import Joined, Plain, spiking
from support.stages import quantised, spiking_copy


def test_fan_out_of_simple_layers():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * 64, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    graph = spiking(network, torch.rand(2, 3, 4, 4))
    counts = list(fan_out(graph).values())
    # of 16 places 4 reach all nine taps, 8 at a border six, and 4 in a corner four of them
    assert counts[0] == pytest.approx(6 * (4 * 9 + 8 * 6 + 4 * 4) / 16)
    assert counts[1:] == [4 * 2, 5, 0]  # up-sampled to four places; the readout is no step


def test_operations_are_those_counted_by_hand():
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 24)
    graph = spiking(Joined(), pictures)
    operations, spikes = Operations(graph), {}
    for chunk in (5 * 3, 2 * 3, 3):  # all steps at once, unequal parts, and one after the other
        network = SpikingNetwork(graph, 5, chunk=chunk)
        with operations.counted(), network.spike_rates() as rates:
            network(pictures)
        share, total = 0.0, 0.0
        for name, rate in rates.by_layer().items():
            neurons = torch.Size(graph.shapes[name]).numel()
            share += rate * neurons * operations.fan_out[name]
            total += neurons * operations.fan_out[name]
        spikes[chunk] = operations.part().item()
        assert spikes[chunk] == pytest.approx(share / total, rel=1e-5)
    assert 0 < spikes[3] < 1


def test_a_penalty_makes_networks_sparser_and_is_reported(batches):
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    rates = []
    for weight in (0.0, 10.0):
        snn = spikedet.convert(
            network, batches[:8], 4, layer_steps=0, end_to_end=40, sparsity=weight, progress=False
        )
        with snn.spike_rates() as counted:
            snn(batches[10])
        rates.append(counted.mean())
    assert rates[1] < 0.8 * rates[0]
    origin = snn.origin
    assert origin["sparsity"] == 10.0
    assert 0 < origin["operations_after"] < origin["operations_before"] < 1


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_penalties(batches, weight):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(UsageError, match="sparsity is .*; expected a number of 0 or more"):
        spikedet.convert(
            network, batches[:2], 2, layer_steps=0, end_to_end=1, sparsity=weight, progress=False
        )
    with pytest.raises(UsageError, match="no effect without the end-to-end pass"):
        spikedet.convert(network, batches[:2], 2, layer_steps=0, sparsity=1.0, progress=False)


def quantised_with(norm, pictures):
    torch.manual_seed(2)
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    ]  # fmt: skip
    if not norm:
        layers = [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
    return quantised(Plain(*layers).eval(), [pictures], 8, fold=not norm).eval()


def test_stage_one_counts_the_operations_that_its_spiking_copy_needs():
    """Where the current is constant, each neuron sends as many spikes as its activation says."""
    torch.manual_seed(2)
    pictures = torch.rand(4, 3, 16, 16)
    graph = quantised_with(False, pictures)
    penalty = StageOnePenalty(graph, 3.0)
    with torch.no_grad(), penalty.counted() as seen:
        graph(pictures)
    spiking_graph = spiking_copy(graph)
    operations = Operations(spiking_graph)
    with operations.counted(), SpikingNetwork(spiking_graph, 8).spike_rates() as rates:
        SpikingNetwork(spiking_graph, 8)(pictures)
    names = [node.name for node in graph.of((QuantClip,))]
    fans, own = fan_out(graph), fan_out(spiking_graph)
    assert [fans[name] for name in names] == pytest.approx([own[name] for name in names])
    share = {n: fans[n] * torch.Size(graph.shapes[n]).numel() for n in names}
    most = sum(share.values())
    first = rates.by_layer()[names[0]] * share[names[0]] / most
    assert seen[0].item() == pytest.approx(first, rel=1e-5) and seen[0] > 0
    assert fans[names[-1]] == 0 and seen[-1] == 0  # the readout is no step
    # the later layers do not get constant currents, so their neurons differ a little
    assert sum(seen).item() == pytest.approx(operations.part().item(), rel=0.2)
    assert penalty.of(seen).item() == pytest.approx(3 * sum(seen).item())


def test_batch_norm_does_not_change_the_fan_out():
    pictures = torch.rand(4, 3, 16, 16)
    plain, with_norm = (quantised_with(norm, pictures) for norm in (False, True))
    fans = [
        [fan_out(graph)[node.name] for node in graph.of((QuantClip,))]
        for graph in (plain, with_norm)
    ]
    assert fans[0] == pytest.approx(fans[1]) and fans[0][0] > 0


def test_the_penalty_of_stage_one_lowers_activations_and_counts_in_its_own_thread_only():
    torch.manual_seed(3)
    pictures = torch.rand(4, 3, 16, 16)
    graph = quantised_with(True, pictures).train()
    penalty = StageOnePenalty(graph, 1.0)
    optimizer = torch.optim.SGD(graph.parameters(), 0.2)
    counted = []
    for _ in range(20):
        with penalty.counted() as seen, ThreadPoolExecutor(1) as other:
            graph(pictures)
            other.submit(graph, pictures).result()
        assert len(seen) == 3
        optimizer.zero_grad()
        penalty.of(seen).backward()
        optimizer.step()
        counted.append(sum(seen).item())
    assert counted[-1] < 0.8 * counted[0]
    before = len(seen)
    graph(pictures)
    assert len(seen) == before
