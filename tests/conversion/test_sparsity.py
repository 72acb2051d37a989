"""The penalty on spikes: what it counts, and that it makes networks sparser."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import spikedet
from spikedet.analysis.operations import costs_of_spikes, multiply_accumulates
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


class Changed(nn.Module):
    """Spikes that something happens to before a convolution reads them."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.other, self.last, self.change = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1), change

    def forward(self, x):
        changed = self.change(self.first(x).relu(), self.other(x).relu())
        return self.last(self.second(changed).relu())


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda x, y: -x, 1), (lambda x, y: x * 0.1, 1), (lambda x, y: 3 - x, 1),
        (lambda x, y: x + y, 2), (lambda x, y: x - y, 2),
        (lambda x, y: nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), None),
        (lambda x, y: nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), size=6), 4),
    ],
    ids=["negative", "scaled", "shifted", "sum", "difference", "average", "coarse"],
)  # fmt: skip
def test_every_spike_counts_whatever_is_done_to_it(change, most):
    """As in analysis. All together cause `most` times the float network's multiplications."""
    picture = torch.rand(2, 1, 6, 6)
    graph = quantised(Changed(change).eval(), [picture], 4)
    fans = fan_out(graph)
    copied = spiking_copy(graph)
    assert fan_out(copied) == pytest.approx(fans)
    costs = costs_of_spikes(SpikingNetwork(copied, 4), picture[:1])
    assert costs == pytest.approx(fans) and min(costs.values()) >= 0 < sum(costs.values())
    total = sum(torch.Size(graph.shapes[name]).numel() * fans[name] for name in fans)
    by_hand = 4 * 4 * (6 * 3 - 2) ** 2  # of the only layer that reads spikes in each step
    if most:
        assert total == pytest.approx(most * by_hand)
    rates, penalty = [], StageOnePenalty(graph, 1.0)
    for node in graph.of((QuantClip,)):
        node.module.register_forward_hook(lambda module, _, x: rates.append(x / module.threshold))
    with torch.no_grad(), penalty.counted() as seen:
        graph(picture)
    share = sum(
        x.mean().item() * fans[name] * torch.Size(graph.shapes[name]).numel()
        for x, name in zip(rates, fans, strict=True)
    )
    assert penalty.of(seen).item() == pytest.approx(share / by_hand, rel=1e-5)


def test_operations_are_those_counted_by_hand():
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 16, 24)
    graph = spiking(Joined(), pictures)
    operations, spikes = Operations(graph), {}
    each = multiply_accumulates(graph, pictures[:1])
    total = sum(each[name] for name in ("second", "third", "short", "mix"))  # in every step
    for chunk in (5 * 3, 2 * 3, 3):  # all steps at once, unequal parts, and one after the other
        network = SpikingNetwork(graph, 5, chunk=chunk)
        with operations.counted(), network.spike_rates() as rates:
            network(pictures)
        share = 0.0
        for name, rate in rates.by_layer().items():
            neurons = torch.Size(graph.shapes[name]).numel()
            share += rate * neurons * operations.fan_out[name]
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
