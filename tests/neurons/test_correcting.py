"""Neurons that take back spikes: by hand, against their definition, in graphs and in files."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedet
from spikedet.engines.integers import compile_integers
from spikedet.engines.rounding import Rounder
from spikedet.errors import ConversionError, UsageError
from spikedet.graph.rewrites.spike import make_spiking, set_margin
from spikedet.graph.serialise import build, describe
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork
from support.engines import CORRECTING, NETWORKS, Plain, spiking
from support.exported import fresh
from support.stages import quantised, spiking_copy
from support.surrogate import step_function

THETA = torch.tensor([1.0, 0.7])


def sent(neuron, current, steps):
    """Spikes [T, ...] and the state after them, for currents [T, C, N] of one picture."""
    return neuron.fire(current, neuron.start(current, 1), steps)


def test_traced_by_hand():
    # theta 1, u0 1/2: u 1.5 fires, 0.5 | -0.3 takes it back, 0.7 | -1.1: nothing left to take back
    # | -0.2 | 0.9 | 2.9 fires, 1.9 | 1.9 fires, 0.9
    neuron = CorrectingNeuron(torch.tensor([1.0]))
    currents = torch.tensor([1.0, -0.8, -1.8, 0.9, 1.1, 2.0, 0.0]).view(7, 1, 1)
    spikes, (u, counts) = sent(neuron, currents, 7)
    assert spikes.flatten().tolist() == [1, -1, 0, 0, 0, 1, 1]
    assert u.item() == pytest.approx(0.9) and counts.item() == 2


def test_sum_of_spikes_is_the_rounded_total_at_every_step():
    """What an ordinary neuron reaches only for a constant current (eq 12, up to T)."""
    torch.manual_seed(0)
    currents = (2 * torch.rand(40, 2, 500, dtype=torch.float64) - 1).float()
    currents *= THETA.view(1, 2, 1)  # at most theta a step, so one spike a step is enough
    total = currents.double().cumsum(0) + THETA.view(1, 2, 1) / 2
    wanted = (total / THETA.view(1, 2, 1)).floor().clamp(min=0)
    near = ((total / THETA.view(1, 2, 1)).frac().abs() - 0.5).abs() > 0.4999  # of float32
    spikes, _ = sent(CorrectingNeuron(THETA), currents, 40)
    counts = spikes.double().cumsum(0)
    assert torch.equal(counts[~near], wanted[~near]) and near.double().mean() < 1e-3
    assert bool((counts >= 0).all()) and bool((spikes < 0).any())
    ordinary, _ = IFNeuron(THETA).fire(currents, IFNeuron(THETA).start(currents, 1), 40)
    assert (ordinary.cumsum(0) != wanted).double().mean() > 0.2


def test_a_margin_traced_by_hand():
    # theta 1, u0 1/2, margin 1/4: u 1.5 fires, 0.5 | -0.2 is not low enough | -0.3 takes it back,
    # 0.7 | -1.1: nothing left to take back
    neuron = CorrectingNeuron(torch.tensor([1.0]), margin=0.25)
    currents = torch.tensor([1.0, -0.7, -0.1, -1.8]).view(4, 1, 1)
    spikes, (u, counts) = sent(neuron, currents, 4)
    assert spikes.flatten().tolist() == [1, 0, -1, 0]
    assert u.item() == pytest.approx(-1.1) and counts.item() == 0


def test_a_margin_gives_fewer_spikes_and_bounds_the_error():
    torch.manual_seed(7)
    currents = 0.6 * torch.randn(40, 2, 500).clamp(-1, 1) * THETA.view(1, 2, 1)
    total = currents.double().cumsum(0) / THETA.view(1, 2, 1)
    numbers = []
    for margin in (0.0, 0.25, 1.0):
        spikes, _ = sent(CorrectingNeuron(THETA, margin=margin), currents, 40)
        counts = spikes.double().cumsum(0)
        apart = counts - total  # of the sum itself, not of the rounded one
        assert bool((counts >= 0).all())
        assert apart[counts > 0].max() <= 0.5 + margin + 1e-5
        assert apart.min() >= -0.5 - 1e-5
        numbers.append(spikes.abs().mean().item())
    assert numbers[0] > 1.2 * numbers[1] > 1.2 * 1.2 * numbers[2] > 0


@pytest.mark.parametrize("margin", [-0.1, 8.5, float("nan"), float("inf"), True, "1", None])
def test_an_impossible_margin_is_refused(margin):
    with pytest.raises(ValueError, match="the margin is .*; expected a number from 0 to 8"):
        CorrectingNeuron(THETA, margin=margin)


@pytest.mark.parametrize(("alpha", "margin"), [(1.0, 0.0), (0.6, 0.0), (1.0, 0.3), (0.6, 1.2)])
def test_gradients_are_those_of_the_definition(alpha, margin):
    torch.manual_seed(1)
    step = step_function(alpha)
    theta = THETA.view(1, 2, 1)
    currents = torch.randn(6 * 3, 2, 50).mul_(0.9)
    weights = torch.randn(6 * 3, 2, 50)

    def by_definition(x, u):
        counts, spikes = torch.zeros(3, 2, 50), []
        for now in x.split(3):
            u = u + now
            above = step(u / theta)
            under = ((u < -margin * theta) & (counts > 0)).float()
            depth = step(((1 - margin) * theta - u) / theta) * (
                counts > 0
            )  # its gradient; the value is `under`
            below = under + depth - depth.detach()
            spikes.append(above - below)
            counts = counts + spikes[-1].detach()
            u = u - theta * spikes[-1]
        return torch.cat(spikes), u

    gradients = []
    for run in (by_definition, None):
        x = currents.clone().requires_grad_(True)
        start = (theta / 2).expand(3, 2, 50).clone().requires_grad_(True)
        if run is None:
            neuron = CorrectingNeuron(THETA, margin=margin)
            spikes, (u, _) = neuron.fire(x, (start, torch.zeros(3, 2, 50)), 6, alpha)
        else:
            spikes, u = run(x, start)
        ((spikes * weights).sum() + u.sin().sum()).backward()
        gradients.append((spikes.detach(), x.grad, start.grad))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert bool((gradients[1][0] < 0).any()) and bool(gradients[1][1].any())


def test_parts_of_a_run_are_the_whole_and_a_state_is_not_changed():
    torch.manual_seed(2)
    currents = torch.randn(8 * 3, 2, 20)
    neuron = CorrectingNeuron(THETA)
    whole, _ = neuron.advance(currents, 3, 8, None)
    first, state = neuron.advance(currents[:9], 3, 3, None)
    kept = [part.clone() for part in state]
    second, _ = neuron.advance(currents[9:], 3, 5, state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(map(torch.equal, kept, state))


def test_a_slope_is_refused():
    with pytest.raises(ValueError, match="has slope 0, not 0.5"):
        CorrectingNeuron(THETA, slope=0.5)


def test_only_neurons_that_may_have_to_correct_themselves_do():
    """Not those of a constant current, and not those of a leaky ReLU."""
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 8, 8)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.LeakyReLU(0.1)]
    network = Plain(*layers, nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    graph = spiking_copy(quantised(network, [pictures], 4), neuron=CORRECTING)
    kinds = [type(node.module) for node in graph.of((IFNeuron,))]
    assert kinds == [IFNeuron, IFNeuron, CorrectingNeuron]
    leaky = Plain(*layers[:2], nn.Conv2d(4, 4, 1), nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(ConversionError, match="leaky ReLU cannot take back spikes"):
        spiking_copy(quantised(leaky, [pictures], 4), neuron=CORRECTING)
    with pytest.raises(UsageError, match="neuron 'corect'.*correcting"):
        make_spiking(copy.deepcopy(graph), neuron="corect")


def test_a_copy_loses_far_less():
    """Without any calibration, what comes through is nearly what the quantised network computes."""
    torch.manual_seed(4)
    pictures = torch.rand(32, 3, 12, 12)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    network = Plain(*layers, nn.Conv2d(16, 4, 1)).eval()
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    graph = quantised(network, [pictures], 8)
    with torch.no_grad():
        wanted = graph(pictures)
        error = {
            name: F.mse_loss(SpikingNetwork(spiking_copy(graph, neuron=name), 8)(pictures), wanted)
            for name in ("neuron", CORRECTING)
        }
    assert error[CORRECTING] < error["neuron"] / 2


@pytest.mark.parametrize("half", [False, True])
def test_files_keep_them(tmp_path, half):
    torch.manual_seed(5)
    pictures = torch.rand(2, 3, 16, 16)
    network = SpikingNetwork(spiking(fresh(NETWORKS["max_pool"]), pictures, slope=CORRECTING), 4)
    spikedet.save(network, tmp_path / "a.safetensors", half=half)
    again = spikedet.load(tmp_path / "a.safetensors", engine="torch")
    kinds = [type(node.module) for node in again.graph.of((IFNeuron,))]
    assert kinds == [IFNeuron, CorrectingNeuron]
    assert again.graph.only(CorrectingNeuron)[0].margin == 0.3
    if not half:
        assert torch.equal(again(pictures), network(pictures))


@pytest.mark.parametrize("int8", [False, True])
def test_convert_makes_them(tmp_path, int8):
    torch.manual_seed(6)
    pictures = [torch.rand(8, 3, 16, 16) for _ in range(3)]
    options = {"neuron": CORRECTING, "progress": False, "layer_steps": 5, "end_to_end": 5}
    snn = spikedet.convert(fresh(NETWORKS["max_pool"]), pictures, 4, int8=int8, **options)
    assert [type(node.module) for node in snn.graph.of((IFNeuron,))][1] is CorrectingNeuron
    spikedet.save(snn, tmp_path / "a.safetensors")
    outputs = {}
    for engine in ("torch", "integers"):
        again = spikedet.load(tmp_path / "a.safetensors", engine=engine)
        outputs[engine] = again(pictures[0])
    with torch.no_grad():
        assert torch.equal(outputs["torch"], snn(pictures[0]))
    if int8:  # nothing is rounded further, but for the currents of the first layer
        assert torch.allclose(outputs["torch"], outputs["integers"], atol=1e-3)


def test_convert_sets_the_margin():
    torch.manual_seed(8)
    pictures = [torch.rand(8, 3, 16, 16) for _ in range(3)]
    options = {"progress": False, "layer_steps": 0, "margin": 0.5}
    snn = spikedet.convert(fresh(NETWORKS["max_pool"]), pictures, 4, neuron=CORRECTING, **options)
    assert [neuron.margin for neuron in snn.graph.only(CorrectingNeuron)] == [0.5]
    with pytest.raises(UsageError, match="only neurons that take back spikes have a margin"):
        spikedet.convert(fresh(NETWORKS["max_pool"]), pictures, 4, **options)
    with pytest.raises(UsageError, match="the margin is 9; expected a number from 0 to 8"):
        options["margin"] = 9
        spikedet.convert(fresh(NETWORKS["max_pool"]), pictures, 4, neuron=CORRECTING, **options)


def test_a_file_without_a_margin_means_0_and_a_bad_one_is_refused():
    """So files of older versions are read, and older versions read files without a margin."""
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(fresh(NETWORKS["max_pool"]), pictures, slope=CORRECTING)
    (neuron,) = graph.only(CorrectingNeuron)
    described = describe(graph)
    (options,) = (node[3] for node in described["nodes"] if node[1] == CORRECTING)
    assert options["margin"] == 0.3
    options["margin"] = "much"
    with pytest.raises(ValueError, match="the margin is much"):
        build(described)
    neuron.margin = 0.0
    described = describe(graph)
    assert not any("margin" in node[3] for node in described["nodes"])
    assert build(described).only(CorrectingNeuron)[0].margin == 0.0


@pytest.mark.parametrize("margin", [0.0, 0.25, 0.77])
def test_a_network_of_integers_needs_no_rounding_of_its_margin(margin):
    """An integer potential is below the margin in the integers where it is below it in torch."""
    torch.manual_seed(9)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(fresh(NETWORKS["max_pool"]), pictures, slope=CORRECTING)
    set_margin(graph, margin)
    Rounder(graph).write()
    (node,) = graph.of((CorrectingNeuron,))
    (op,) = [op for op in compile_integers(graph).neurons if op.name == node.name]
    (module,) = graph.only(CorrectingNeuron)
    scale = op.scale.double()
    for channel, low in enumerate(op.low.tolist()):
        for u, takes_back in ((low, True), (low + 1, False)):
            x = torch.full((1, len(op.low)), float(u * scale[channel]), dtype=torch.float64).float()
            state = (torch.zeros_like(x), torch.ones_like(x))
            spikes, _ = module.fire(x, state, 1)
            assert (spikes[0, channel] < 0) == takes_back, (channel, u)
    assert margin == 0 or int(op.low.max()) < -1


def test_a_network_in_which_nothing_has_to_correct_itself_may_have_a_margin():
    pictures = torch.rand(2, 3, 8, 8)
    network = Plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    snn = spikedet.convert(
        network, [pictures], 4, method="copy", neuron=CORRECTING, margin=0.25, progress=False
    )
    assert [type(node.module) for node in snn.graph.of((IFNeuron,))] == [IFNeuron]
