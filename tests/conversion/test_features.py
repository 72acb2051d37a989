"""Feature distillation: firing rates towards the activations of the float network."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import spikedet
from spikedet.conversion.features import Features
from spikedet.errors import UsageError
from spikedet.graph.record import record
from spikedet.neurons.layers import per_channel
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.watch import EachSpike, watching
from support.stages import quantised


def network(width=12, last=nn.ReLU):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(width, 12, 3, 1, 1), last(), nn.Conv2d(12, 2, 1),
    )  # fmt: skip


def copied(batches, net=None, **options):
    return spikedet.convert(
        net or network(), batches[:4], 4, method="copy", progress=False, **options
    )


def activations(net, x):
    for name, layer in net.named_children():
        x = layer(x)
        if not isinstance(layer, nn.Conv2d):
            yield name, x


def distance(snn, net, pictures, T=None):
    features = Features(snn.graph, record(net, pictures))
    _, wanted = features.teach(pictures)
    with features.watched() as rates:
        snn(pictures, T)
    return features.distance(rates, wanted).item()


@pytest.mark.parametrize("chunk", [32, 2])
@pytest.mark.parametrize("neuron", ["neuron", "correcting"])
def test_the_distance_is_what_its_docstring_says(batches, neuron, chunk):
    net, pictures, spikes = network(), batches[5][:2], {}
    snn = copied(batches, net, neuron=neuron)
    snn.chunk = chunk  # two pictures: all steps at once, or each step alone
    features = Features(snn.graph, record(net, pictures))
    outputs, wanted = features.teach(pictures)
    assert torch.equal(outputs, net(pictures))
    take = EachSpike(lambda name, first, x: spikes.setdefault(name, []).append(x.float()))
    with features.watched() as rates, watching(snn.graph, take):
        snn(pictures)
    errors = []
    for name, activation in activations(net, pictures):
        neurons = snn.graph.neuron(name)
        theta = per_channel(neurons.threshold, 4)
        rate = torch.cat([x.unflatten(0, (-1, 2)) for x in spikes[name]]).mean(0)
        rate = rate * theta if neurons.folded else rate
        target = activation.minimum(theta)
        errors.append((rate - target).square().mean() / target.square().mean())
    assert len(errors) == 3
    assert features.distance(rates, wanted).item() == pytest.approx(
        sum(errors).item() / 3, rel=1e-5
    )


def test_an_exact_network_has_no_distance(batches):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.5), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        net[0].bias.zero_()
    pictures = torch.randint(-2, 3, (2, 3, 4, 4)) / 2.0  # multiples of what a spike is worth
    snn = spikedet.convert(net, [pictures.sign()], 4, method="copy", progress=False)
    assert distance(snn, net, pictures, T=4000) < 1e-4


def test_a_pass_with_features_ends_nearer_to_the_float_network(batches):
    net, apart = network(), {}
    for weight in (0.0, 3.0):
        snn = spikedet.convert(
            net, batches[:20], 4, layer_steps=0, end_to_end=60, end_features=weight, progress=False
        )
        apart[weight] = distance(snn, net, batches[30])
    assert apart[3.0] < 0.9 * apart[0.0]


def test_layers_that_differ_are_left_out(batches):
    snn = copied(batches)
    assert Features(snn.graph, record(network(), batches[0])).names == {"1", "3", "5"}
    assert Features(snn.graph, record(network(width=10), batches[0])).names == {"1", "5"}
    assert Features(snn.graph, record(network(last=nn.Identity), batches[0])).names == {"1", "3"}
    other = nn.Sequential(nn.Flatten(), nn.Linear(batches[0][0].numel(), 2))
    with pytest.raises(UsageError, match="the teacher has no layer of the network"):
        Features(snn.graph, record(other, batches[0]))
    with pytest.raises(UsageError, match="the teacher is a Sequential; expected a graph"):
        Features(snn.graph, network())


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "2", None])
def test_a_weight_that_cannot_be(batches, wrong):
    with pytest.raises(UsageError, match="end_features is .*; expected a number of 0 or more"):
        spikedet.convert(
            network(), batches[:2], 4, end_to_end=1, end_features=wrong, progress=False
        )


def test_features_without_a_pass(batches):
    with pytest.raises(UsageError, match="end_features has no effect without the end-to-end pass"):
        spikedet.convert(network(), batches[:2], 4, end_features=1.0, progress=False)


def test_quantised_activations_each_in_their_own_thread():
    net, pictures = network(), torch.rand(3, 3, 16, 16)
    graph = quantised(net, [pictures], 4).train()
    for quantiser in graph.only(QuantClip):
        quantiser.noise = 0.0
    features = Features(graph, record(net, pictures), weight=3.0)
    _, wanted = features.teach(pictures)
    with features.watched() as seen, ThreadPoolExecutor(1) as other:
        graph(pictures)
        copy.deepcopy(graph)
        other.submit(graph, 2 * pictures).result()
    x, errors = pictures, []
    for name in graph.edges:
        x = graph.module(name)(x)
        if isinstance(graph.module(name), QuantClip):
            assert torch.equal(seen[name], x)
            errors.append((x - wanted[name]).square().mean() / wanted[name].square().mean())
    assert len(errors) == len(seen) == 3
    loss = features.loss(seen, wanted)
    assert loss.item() == pytest.approx(sum(errors).item(), rel=1e-5)
    loss.backward()
    # the last layer is behind all that is compared
    still = {name for name, parameter in graph.named_parameters() if parameter.grad is None}
    assert still == {f"layers.6.{name}" for name, _ in graph.module("6").named_parameters()}
