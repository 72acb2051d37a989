"""Leaky ReLU: the signed neuron and its quantiser by hand, by brute force and in a network."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from spikedet import networks
from spikedet.checkpoint import Checkpoint
from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import best_threshold
from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.description import build, read_description
from spikedet.detection.model import raw_outputs
from spikedet.detection.task import DETECTION
from spikedet.errors import ConversionError
from spikedet.graph.operations import ClippedReLU, Leaky
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.networks import with_graph
from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
)
from spikedet.neurons.layers import IFNeuron, count_spikes
from spikedet.neurons.quantize import QuantClip, levels
from spikedet.runtime.network import SpikingNetwork
from support.places import ROOT
from support.stages import neurons, quantised, seen_in
from support.surrogate import step_function

LEAKY = ROOT / "configs/models/tiny-yolo-leaky.yaml"


def run(current, u0, theta, steps, slope):
    current = torch.tensor(current).view(-1, 1)
    u0 = torch.tensor([[u0]])
    return integrate_and_fire(current, u0, torch.tensor(theta), steps, slope=slope)


def test_traced_by_hand():
    # theta 2, slope 1/2, so the lower threshold is -4; u0 1:
    # u -1 | -4 fires (<=), 0 | 2 fires (>=), 0 | -9 fires once only, -5 | -4 fires, 0
    spikes, u = run([-2.0, -3.0, 2.0, -9.0, 1.0], 1.0, 2.0, 5, 0.5)
    assert spikes.flatten().tolist() == [0, -1, 1, -1, -1]
    assert u.item() == 0.0


def test_without_a_slope_there_are_no_negative_spikes():
    spikes, u = run([-100.0, 1.0], 0.5, 1.0, 2, 0.0)
    assert spikes.flatten().tolist() == [0, 0] and u.item() == -98.5


def test_a_module_carries_the_slope_and_spikes_of_both_signs_count():
    neuron = IFNeuron(torch.tensor(1.0), torch.zeros(1), slope=0.5)
    spikes, _ = neuron.advance(torch.tensor([[[[1.0]]], [[[-2.0]]]]), 1, 2, None)
    assert spikes.flatten().tolist() == [1, -1]
    assert count_spikes(spikes).tolist() == [1, 1]
    with pytest.raises(ValueError, match="slope of the negative side is 1.5"):
        IFNeuron(torch.tensor(1.0), slope=1.5)


def test_quantiser_against_its_equation():
    # theta 2, T 4, slope 1/2. x >= 0: 2 round_half_up(2 x) / 4; x < 0: floor((2 |x| - 1/2) / 2)
    x = torch.tensor([0.24, 0.25, 1.9, 9.0, -0.1, -1.24, -1.25, -2.3, -4.24, -4.25, -9.0])
    wanted = torch.tensor([0, 0.5, 2, 2, 0, 0, -0.5, -1, -1.5, -2, -2])
    quantiser = QuantClip(torch.tensor(2.0), 4, slope=0.5).eval()
    assert torch.equal(quantiser(x), wanted)


def test_quantiser_against_the_neuron_on_1321_constant_currents():
    """It fits but for a sliver: just past saturation the neuron loses its first step."""
    T, slope = 20, 0.1
    x = torch.linspace(-11, 2.2, 1321, dtype=torch.float64).float() * 1.7
    theta = torch.tensor(1.7)
    u0 = torch.full_like(x, 0.85)[None]
    spikes, _ = integrate_and_fire(x[None], u0, theta, T, slope=slope)
    count, level = spikes.sum(0), (levels(x / theta, T, slope) * T).round()
    apart = (count != level).nonzero().flatten()
    assert len(apart) == 47
    assert (x[apart] / theta >= -10.5).all() and (x[apart] / theta <= -10.025).all()
    assert (count[apart] == -19).all() and (level[apart] == -20).all()
    rounded = torch.where(x < 0, slope, 1) * x * T / theta
    half_up = (rounded.abs() + 0.5).floor().clamp(max=T) * rounded.sign()
    assert (count != half_up).sum() > 500  # rounding both sides alike does not fit


def test_quantiser_gradients():
    x = torch.tensor([-9.0, -3.0, -0.5, 0.3, 0.8, 5.0], requires_grad=True)
    quantiser = QuantClip(torch.tensor(2.0), 4, slope=0.5).eval()
    y = quantiser(x)
    y.sum().backward()
    assert x.grad.tolist() == [0, 0.5, 0.5, 1, 1, 0]
    # clipped: -1 and 1; inside: level - slope x / theta
    inside = (y / 2 - torch.where(x < 0, 0.5, 1) * x / 2)[1:5].sum().item()
    assert quantiser.threshold.grad.item() == pytest.approx(inside)


def test_thresholds_of_each_channel_have_gradients_of_their_own():
    x = torch.tensor([[[5.0], [-9.0]]])
    quantiser = QuantClip(torch.tensor([2.0, 3.0]), 4, slope=0.5)
    quantiser(x).sum().backward()
    assert quantiser.threshold.grad.tolist() == [1, -1]


@pytest.mark.parametrize("steps", [4, 16])
def test_a_neuron_of_slope_one_rounds_both_sides(steps):
    theta, z = torch.tensor(2.0), torch.linspace(-1.2, 1.2, 1001)
    u0 = torch.full_like(z, 1.0)[None]
    spikes, u = integrate_and_fire((z * theta)[None], u0, theta, steps, slope=1.0)
    rate = spikes.mean(0)
    wanted = (z * steps).add(0.5).floor().div(steps).clamp(-1, 1)
    edge = ((z * steps + 0.5) % 1 - 0.5).abs() > 0.49  # where rounding of the sum decides
    assert torch.equal(rate[~edge], wanted[~edge])
    assert torch.equal(levels(z, steps, 1.0), wanted)
    within = z.abs() < 1
    assert bool((u[0, within] > -1e-5).all()) and bool((u[0, within] < 2 + 1e-5).all())
    assert (rate - z)[within & ~edge].mean().abs() < 0.01  # no side is short


def reference(current, u, theta, steps, alpha, slope):
    """Back-propagation through time by autograd; each threshold is a step of its own potential."""
    fire = step_function(alpha)
    spikes = []
    for now in current.chunk(steps):
        u = u + now
        above, below = fire(u / theta), fire(float(slope == 1) - u * slope / theta)
        u = u - theta * above + theta / slope * below
        spikes.append(above - below)
    return torch.cat(spikes), u


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("theta", "slope"), [(0.3, 0.25), (4.0, 0.25), (4.0, 1.0)])
def test_surrogate_gradient(theta, slope, alpha):
    torch.manual_seed(0)
    theta = torch.tensor(theta)
    current = (torch.randn(6 * 2, 3, 4, 4) * 3 * theta).requires_grad_()
    u0 = (torch.rand(2, 3, 4, 4) * theta).requires_grad_()
    weight, weight_u = torch.randn(12, 3, 4, 4), torch.randn(2, 3, 4, 4)
    results = []
    for spikes, u in (
        integrate_and_fire_surrogate(current, u0, theta, 6, alpha, slope),
        reference(current, u0, theta, 6, alpha, slope),
    ):
        loss = (spikes * weight).sum() + (u * weight_u).sum()
        results.append((spikes, u, *torch.autograd.grad(loss, [current, u0])))
    for ours, truth in zip(*results, strict=True):
        assert torch.allclose(ours, truth, atol=1e-4)
    assert {-1, 0, 1} == set(results[0][0].unique().tolist())


def test_surrogate_of_one_step_by_hand():
    # theta 2, slope 1/2: windows 1..3 around 2 (height 1/2) and -6..-2 around -4 (height 1/4)
    x = torch.tensor([[0.5, 1.5, 2.5, 3.5, -1.5, -2.5, -5.0, -6.5]], requires_grad=True)
    spikes, u = integrate_and_fire_surrogate(
        x, torch.zeros_like(x), torch.tensor(2.0), 1, slope=0.5
    )
    (grad,) = torch.autograd.grad(spikes.sum(), x, retain_graph=True)
    assert grad[0].tolist() == [0, 0.5, 0.5, 0, 0, 0.25, 0.25, 0]
    (grad,) = torch.autograd.grad(u.sum(), x)
    assert grad[0].tolist() == [1, 0, 0, 1, 1, 0, 0, 1]


@pytest.fixture
def leaky_net(small_net, pictures):
    """The small network with leaky ReLU, quantised at T = 8; its batch norm does nothing."""
    small_net.norm, small_net.relu = nn.Identity(), nn.LeakyReLU(0.2)
    return quantised(small_net, [pictures], 8)


def test_leaky_network_converts(leaky_net, pictures):
    quantised = copy.deepcopy(leaky_net)
    make_spiking(leaky_net)
    nodes = neurons(leaky_net)
    assert len(nodes) == 3 and all(n.slope == 0.2 for n in nodes)
    spiking = SpikingNetwork(leaky_net, 8)
    with torch.no_grad():
        with seen_in(leaky_net) as seen:
            spiking(pictures)
        (sent,) = seen["relu"]
        first = quantised.module("relu")(quantised.module("first")(pictures))
        rate = sent.unflatten(0, (8, 4)).mean(0) * nodes[0].threshold
        near = (rate - first).abs() < 1e-5
        for quantiser in quantised.modules():
            if isinstance(quantiser, QuantClip):
                quantiser.steps = 1 << 20  # as good as none
        errors = [(spiking(pictures, T) - quantised(pictures)).abs().mean() for T in (4, 32, 256)]
    assert near.float().mean() > 0.99  # the first neurons receive a constant current
    assert set(torch.cat([s.unique() for (s,) in seen.values()]).tolist()) == {-1, 0, 1}
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 * quantised(pictures).std()


def test_best_threshold_looks_at_both_signs():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 4 - 40
    leaky = best_threshold(values, 8, Leaky(0.5))  # activations about -20
    assert 15 < leaky.item() < 30
    assert best_threshold(torch.rand(9999) * 50, 64, ClippedReLU()).item() <= 6


@pytest.mark.parametrize("slope", [-0.1, 3.0])
def test_a_slope_that_no_neuron_has_is_refused_by_name(slope, pictures):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(slope), nn.Conv2d(3, 3, 1)).eval()
    with pytest.raises(
        ConversionError, match=rf"1 \(LeakyReLU\): a leaky ReLU of slope {slope:g} "
    ):
        prepare(network, pictures)


def test_a_leaky_detector_is_restored_from_its_description():
    torch.manual_seed(0)
    description = read_description(LEAKY, "n")
    pictures = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    network = build(description, 20).eval()
    raw_outputs(network)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    graph = quantised(network, [pictures], 8).to(memory_format=torch.channels_last)
    args = "detection", description, VOC_CLASSES, 64
    qc = Checkpoint("qc", *args, copy.deepcopy(graph.layers.state_dict()), 8)
    snn = copy.deepcopy(graph)
    make_spiking(snn)
    spiking = Checkpoint("snn", *args, snn.layers.state_dict(), 8)
    floating = networks.restore(DETECTION, Checkpoint("float", *args, state))
    leaky = floating.network.module("model.0.act")
    assert isinstance(leaky, Leaky) and leaky.slope == 0.1
    head = DETECTION.head_of(network)
    for old in (True, False):  # from the description alone, and from the graph
        if not old:
            qc = with_graph(replace(qc, head=head), graph)
            spiking = with_graph(replace(spiking, head=head), snn)
        with torch.no_grad():
            again, restored = networks.restore(DETECTION, qc), networks.restore(DETECTION, spiking)
            assert torch.equal(again.raw(pictures)["scores"], graph(pictures)["scores"])
            wanted = SpikingNetwork(snn, 8)(pictures)["scores"]
            assert torch.allclose(restored.raw(pictures)["scores"], wanted, atol=1e-5)
        assert {m.slope for m in neurons(restored.network.graph)} == {0.1}
