"""Stage II on a small network that was trained for a moment."""

import copy
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import nn

from spikedet import synapses
from spikedet.analysis.operations import measure_cost
from spikedet.conversion import distill as distillation
from spikedet.conversion.batch_norm import beside_batch_norm
from spikedet.conversion.calibrate import _Layer, calibrate
from spikedet.conversion.distill import distill
from spikedet.conversion.prepare import prepare
from spikedet.conversion.stored import StoredOutputs
from spikedet.conversion.thresholds import estimate_thresholds
from spikedet.errors import TrainingError, UsageError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import WEIGHTED
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.graph.time import readouts
from spikedet.neurons.layers import MeanOverTime
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd, LayerWise
from support.stages import neurons, quantised, seen_in, spiking_copy

T = 8


@pytest.fixture
def stages(trained, batches):
    """(quantised, spiking) after a moment of training."""
    return converted(trained, batches)


def converted(network, batches):
    """(quantised, spiking) graphs."""
    graph = prepare(network, batches[0])
    quantise(graph, estimate_thresholds(graph, batches[:2], T), T)
    graph.eval()
    return graph, spiking_copy(graph)


def output_error(quantised, spiking, pictures):
    pictures = torch.cat(pictures)
    with torch.no_grad():
        outputs, wanted = SpikingNetwork(spiking, T)(pictures), quantised(pictures)
    return (outputs - wanted).square().mean().item()


def start_empty(spiking):
    """Neurons that start at 0 instead of half a threshold: all of them fire too little."""
    for neuron in neurons(spiking):
        neuron.initial.data.zero_()


def test_stage_two_lowers_the_error_of_a_trained_network(stages, batches):
    quantised, spiking = stages
    before = output_error(quantised, spiking, batches[24:])
    options = LayerWise(steps=60, check=10, half=False)
    reports = calibrate(quantised, spiking, batches[:20], batches[20:24], T, options)
    assert [r.name for r in reports][-1] == "last" and len(reports) == 4
    assert all(r.after <= r.coarse <= r.before for r in reports)
    assert reports[1].after < 0.85 * reports[1].before
    assert output_error(quantised, spiking, batches[24:]) < 0.8 * before


@pytest.mark.parametrize("options", [{"fine": False}, {"coarse": False}, {}], ids=str)
def test_both_calibrations_make_up_for_a_wrong_start(stages, batches, options):
    quantised, spiking = stages
    start_empty(spiking)
    before = output_error(quantised, spiking, batches[24:])
    options = LayerWise(steps=60, check=10, half=False, **options)
    reports = calibrate(quantised, spiking, batches[:20], batches[20:24], T, options)
    ratios = [r.after / r.before for r in reports[:-1]]
    assert max(ratios) <= 1 and sum(ratios) / len(ratios) < 0.7
    if options.coarse and options.fine:
        assert all(r.after < r.before for r in reports)
    assert output_error(quantised, spiking, batches[24:]) < 0.3 * before


def test_a_layer_that_cannot_gain_is_left_as_it_was(stages, batches):
    quantised, spiking = stages
    before = {k: v.clone() for k, v in spiking.state_dict().items()}
    options = LayerWise(coarse=False, rate=50.0, steps=5, check=1, half=False)
    reports = calibrate(quantised, spiking, batches[:2], batches[8:9], T, options)
    assert all(r.after == r.before for r in reports)
    assert all(torch.equal(v, before[k]) for k, v in spiking.state_dict().items())


@torch.no_grad()
def outputs_of(graph: Graph, pictures):
    """What every node of a graph that has no time gives."""
    return graph.run(graph.edges, {"input": pictures}, [*graph.edges])


def test_errors_reported_are_those_of_the_network_as_it_runs(stages, batches):
    """The cached spikes of layer-wise calibration are those of an ordinary pass."""
    quantised, spiking = stages
    options = LayerWise(steps=20, check=5, half=False)
    reports = calibrate(quantised, spiking, batches[:4], batches[8:9], T, options)
    levels = outputs_of(quantised, batches[8])
    with torch.no_grad(), seen_in(spiking) as seen:
        SpikingNetwork(spiking, T)(batches[8])
    for report, name in zip(reports, ["relu", "relu_1", "relu_2"], strict=False):
        theta = quantised.module(name).threshold.abs()
        (spikes,) = seen[name]
        rate = spikes.unflatten(0, (T, -1)).mean(0)
        error = (rate - levels[name] / theta).square().mean().item()
        assert report.name == name and report.after == pytest.approx(error, rel=1e-4)


def test_coarse_stays_in_its_bounds(stages, batches):
    quantised, spiking = stages
    calibrate(quantised, spiking, batches[:4], batches[8:9], T, LayerWise(fine=False))
    for neuron in neurons(spiking):
        assert (neuron.initial >= -neuron.threshold).all()
        assert (neuron.initial <= 2 * neuron.threshold).all()


@pytest.mark.parametrize(("current", "target", "bound"), [(0.0, 3.0, 6.0), (3.0, 0.0, -3.0)])
def test_coarse_reaches_its_bounds_and_no_more(current, target, bound):
    """theta 3: of T theta mean(a - r) = +-24 only what lies within -theta .. 2 theta is taken."""
    picture = torch.ones(2, 1, 2, 2)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)).eval()
    nn.init.zeros_(network[0].weight)
    graph = prepare(network, picture)
    quantise(graph, {"1": torch.tensor(3.0)}, T)
    graph.module("0").bias.data.fill_(current)
    spiking = spiking_copy(graph.eval())
    graph.module("0").bias.data.fill_(target)
    options = LayerWise(fine=False, layers=["1"])
    (report,) = calibrate(graph, spiking, [picture], [picture], T, options)
    assert spiking.module("1").initial.item() == bound
    assert report.coarse < report.before == 1.0


def test_thresholds_stay(stages, batches):
    quantised, spiking = stages
    before = [n.threshold.clone() for n in neurons(spiking)]
    calibrate(quantised, spiking, batches[:4], batches[8:9], T, LayerWise(steps=10, check=5))
    after = [n.threshold for n in neurons(spiking)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_distillation_lowers_the_output_error(stages, batches, batch_norm):
    quantised, spiking = stages
    start_empty(spiking)
    before = output_error(quantised, spiking, batches[24:])
    network = SpikingNetwork(spiking, T)

    def loss(batch):
        with torch.no_grad():
            wanted = quantised(batch)
        return (network(batch) - wanted).square().mean()

    options = EndToEnd(steps=80, rate=5e-3, batch_norm=batch_norm)
    distill(network, lambda first: cycle(batches[:20]), loss, options, warmup=5)
    assert output_error(quantised, spiking, batches[24:]) < 0.3 * before
    assert not any(p.requires_grad for p in network.parameters())
    weights = spiking.of((MeanOverTime,))[0].module.log_weights
    assert weights.shape == (T,) and weights.std() > 0.01  # steps no longer count alike


def normed(spiking):
    return [m for m in spiking.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_batch_norm_of_a_pass_begins_as_nothing(stages, batches):
    _, spiking = stages
    timed, names = SpikingNetwork(spiking, T), list(spiking.state_dict())
    weighted = {node.name for node in spiking.of(WEIGHTED)} - set(readouts(spiking))
    with torch.no_grad():
        before = timed(batches[8])
        with beside_batch_norm(spiking, lambda: timed(batches[0])):
            norms = normed(spiking)
            assert len(norms) == len(weighted) > 2 and all(norm.training for norm in norms)
            for norm in norms:
                norm.eval()
            inside = timed(batches[8])
        after = timed(batches[8])
    assert not normed(spiking) and list(spiking.state_dict()) == names
    for outputs in (inside, after):
        assert (outputs - before).abs().mean() < 0.01 * before.abs().mean()


def test_batch_norm_of_a_pass_is_folded_as_it_was_trained(stages, batches):
    _, spiking = stages
    timed = SpikingNetwork(spiking, T)
    with torch.no_grad():
        before = timed(batches[8])
        with beside_batch_norm(spiking, lambda: timed(batches[0])):
            for norm in normed(spiking):
                norm.weight *= torch.linspace(0.5, 1.5, len(norm.weight))
                norm.bias += 0.2
            for pictures in batches[1:5]:
                timed(pictures)
            for norm in normed(spiking):
                norm.eval()
            inside = timed(batches[8])
        after = timed(batches[8])
    assert (inside - before).abs().mean() > 0.1 * before.abs().mean()
    assert (after - inside).abs().mean() < 0.01 * before.abs().mean()


def test_a_layer_with_one_value_a_channel_is_trained_without_batch_norm():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    _, spiking = converted(network, [torch.rand(1, 3, 2, 2)] * 2)
    timed, seen = SpikingNetwork(spiking, T), []
    picture = torch.rand(1, 3, 2, 2)

    def loss(batch):
        seen.append(len(normed(spiking)))
        return (timed(batch) - 1).square().mean()

    with torch.no_grad():
        before = loss(picture)
    options = EndToEnd(steps=30, rate=0.01, batch_norm=True)
    distill(timed, lambda first: cycle([picture]), loss, options, warmup=2)
    assert max(seen) == 1  # the first layer runs once on one picture, the second in every step
    with torch.no_grad():
        assert loss(picture) < before


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_interrupted_pass_ends_as_an_uninterrupted_one(stages, batches, monkeypatch, batch_norm):
    monkeypatch.setattr(distillation, "ROUND", 3)
    _, spiking = stages
    states, others = [], []

    def run(network, state=None, on_round=None):
        timed = SpikingNetwork(network, T)

        def loss(batch):
            return (timed(batch) - 1).square().mean()

        options = EndToEnd(steps=8, rate=5e-3, batch_norm=batch_norm)
        more = {"warmup": 2, "state": state, "on_round": on_round}
        distill(timed, lambda first: iter(batches[first:]), loss, options, **more)
        return network.state_dict()

    start = copy.deepcopy(spiking)
    whole = run(spiking, on_round=lambda state: states.append(copy.deepcopy(state)))
    assert [state["step"] for state in states] == [3, 6, 8]
    read = copy.deepcopy(start)  # as if it came from a file that lists its layers otherwise
    read.layers._modules = dict(reversed(read.layers._modules.items()))
    assert [*dict(read.named_parameters())] != [*dict(start.named_parameters())]
    again = run(read, states[0], others.append)
    assert [state["step"] for state in others] == [6, 8]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(not torch.equal(states[0]["network"][name], whole[name]) for name in whole)
    for group in states[0]["optimizer"]["param_groups"]:
        del group["param_names"]
    with pytest.raises(TrainingError, match="another network or of an older version"):
        run(copy.deepcopy(start), states[0])


@pytest.mark.parametrize("options", [{"fine": False}, {}], ids=str)
def test_initial_potentials_of_every_neuron(stages, batches, options):
    """They have all of the channel's freedom and more, so they fit the same pictures better."""
    quantised, spiking = stages
    start_empty(spiking)
    errors = []
    for per_neuron in (False, True):
        copied = copy.deepcopy(spiking)
        chosen = LayerWise(steps=10, check=5, half=False, per_neuron=per_neuron, **options)
        fit = batches[:20]
        reports = calibrate(quantised, copied, fit, fit, T, chosen)
        assert all(r.after < r.before for r in reports[:-1])
        errors.append(reports[0].after)
        potentials = copied.module("relu").initial
        assert potentials.shape == ((8, 8, 8) if per_neuron else (8,))
    assert potentials.flatten(1).std(1).max() > 0
    if not options.get("fine", True):
        assert errors[1] < errors[0]


def test_only_the_layers_that_are_named(stages, batches):
    quantised, spiking = stages
    start_empty(spiking)
    before = {k: v.clone() for k, v in spiking.state_dict().items()}
    every = calibrate(
        quantised, copy.deepcopy(spiking), batches[:4], batches[8:9], T, LayerWise(fine=False)
    )
    options = LayerWise(steps=10, check=5, half=False, layers=["*_1", "last"])
    reports = calibrate(quantised, spiking, batches[:4], batches[8:9], T, options)
    assert [r.name for r in reports] == ["relu_1", "last"]
    changed = {k for k, v in spiking.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= {
        f"layers.{name}"
        for name in ("relu_1.initial", "deep.weight", "deep.bias", "last.weight", "last.bias")
    }  # fmt: skip
    assert "layers.relu_1.initial" in changed
    # the layer before it was advanced as it is: more is wrong with this layer's input
    assert reports[0].before != every[1].before
    with pytest.raises(UsageError, match=r"no layer is named 'model.3'; there are relu, relu_1"):
        calibrate(quantised, spiking, batches[:1], batches[8:9], T, LayerWise(layers=["model.3"]))


def divergence(rates, targets):
    """Kullback-Leibler divergence of soft-maxes over C*H*W, mean over pictures, written out."""
    p, q = targets.flatten(1).softmax(1), rates.flatten(1).softmax(1)
    return (p * (p / q).log()).sum(1).mean().item()


def test_kl_is_blind_to_a_constant_that_is_added_and_mse_is_not(stages, batches):
    quantised, spiking = stages
    student, teacher = (
        StoredOutputs(spiking, batches[:1], T),
        StoredOutputs(quantised, batches[:1], None),
    )
    site, theta = student.sites[0], student.sites[0].node.module.threshold
    target = teacher.target(teacher.sites[0], 0).float() / T

    def error(kind, shift):
        shifted = [theta * (target + shift)]
        return _Layer(student, site, site.layers, shifted, LayerWise(loss=kind)).error([0])

    assert error("kl", 0.25) == pytest.approx(error("kl", 0.0), abs=1e-4)
    assert error("mse", 0.25) > error("mse", 0.0) + 0.02


def test_kl_loss_against_its_definition(stages, batches):
    quantised, spiking = stages
    start_empty(spiking)
    with torch.no_grad(), seen_in(spiking) as seen:
        SpikingNetwork(spiking, T)(batches[8])
    rate = seen["relu"][0].unflatten(0, (T, -1)).mean(0)
    target = outputs_of(quantised, batches[8])["relu"] / quantised.module("relu").threshold.abs()
    options = LayerWise(coarse=False, steps=30, check=5, half=False, loss="kl")
    reports = calibrate(quantised, spiking, batches[:8], batches[8:9], T, options)
    assert reports[0].before == pytest.approx(divergence(rate, target), rel=1e-3)
    assert all(r.after < r.before for r in reports[:-1])
    with pytest.raises(UsageError, match="loss is 'l1'; expected mse or kl"):
        calibrate(quantised, spiking, batches[:1], batches[8:9], T, LayerWise(loss="l1"))


def test_more_levels_than_a_byte_holds(stages, batches):
    quantised, _ = stages
    for quantiser in quantised.modules():
        if isinstance(quantiser, QuantClip):
            quantiser.steps = 300
    spiking = copy.deepcopy(quantised)
    make_spiking(spiking)
    reports = calibrate(quantised, spiking, batches[:1], batches[8:9], 300, LayerWise(fine=False))
    assert reports[0].before < 1e-4  # a constant current: rates are levels


def test_leaky_layers_are_calibrated_as_they_run(batches):
    """Negative levels and negative spikes survive being packed."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.LeakyReLU(0.3), torch.nn.Conv2d(6, 6, 3, 1, 1),
        torch.nn.LeakyReLU(0.3), torch.nn.Conv2d(6, 4, 1),
    ).eval()  # fmt: skip
    network = quantised(network, batches[:2], T, per_channel=True)
    spiking = spiking_copy(network)
    start_empty(spiking)
    options = LayerWise(steps=20, check=5, half=False)
    reports = calibrate(network, spiking, batches[:8], batches[8:9], T, options)
    assert all(r.after < r.before for r in reports[:-1])
    with torch.no_grad(), seen_in(spiking) as seen:
        SpikingNetwork(spiking, T)(batches[8])
    levels = outputs_of(network, batches[8])
    second = levels["3"] / network.module("3").threshold.view(1, -1, 1, 1)
    assert seen["1"][0].min() == -1 and levels["1"].min() < 0
    error = (seen["3"][0].unflatten(0, (T, -1)).mean(0) - second).square().mean().item()
    assert reports[1].after == pytest.approx(error, rel=1e-3)


class Fork(torch.nn.Module):
    """`a` feeds neurons by itself, and others together with `b`."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = (torch.nn.Conv2d(n, 4, 3, 1, 1) for n in (3, 4, 4))
        self.relus = torch.nn.ModuleList(torch.nn.ReLU() for _ in range(3))
        self.last = torch.nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.relus[0](self.first(x))
        current = self.a(x)
        alone, both = self.relus[1](current), self.relus[2](current + self.b(x))
        return self.last(torch.cat([alone, both], 1))


@pytest.mark.parametrize("layers", [None, ["relus.2"]])
def test_a_layer_that_feeds_two_is_calibrated_with_the_first(batches, layers):
    torch.manual_seed(0)
    network, spiking = converted(Fork().eval(), batches)
    start_empty(spiking)
    before = {name: tensor.clone() for name, tensor in spiking.state_dict().items()}
    options = LayerWise(coarse=False, steps=20, check=5, half=False, layers=layers)
    reports = calibrate(network, spiking, batches[:8], batches[8:9], T, options)
    changed = {
        n for n, tensor in spiking.state_dict().items() if not torch.equal(tensor, before[n])
    }
    if layers:  # what was not chosen runs as before
        assert changed == {f"layers.{name}" for name in ("relus.2.initial", "b.weight", "b.bias")}
        return
    assert {"layers.a.weight", "layers.b.weight"} <= changed
    with torch.no_grad(), seen_in(spiking) as seen:
        SpikingNetwork(spiking, T)(batches[8])
    rate = seen["relus.1"][0].unflatten(0, (T, -1)).mean(0)
    level = outputs_of(network, batches[8])["relus.1"]
    error = (rate - level / network.module("relus.1").threshold.abs()).square().mean().item()
    assert reports[1].name == "relus.1" and reports[1].after == pytest.approx(error, rel=1e-4)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Tensors without values that may lie on a GPU; those of two devices refuse each other."""
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    kinds = {torch.bool: bool, torch.uint8: "uint8", torch.int8: "int8"}
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
    monkeypatch.setattr(torch.Tensor, "backward", lambda tensor: None)
    monkeypatch.setattr(
        torch.Tensor,
        "numpy",
        lambda tensor: np.zeros(tuple(tensor.shape), kinds.get(tensor.dtype, "float32")),
    )
    monkeypatch.setattr(torch, "randperm", lambda count, generator: Order(range(count)))
    return fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)


class Order(list):
    def tolist(self):
        return list(self)


def pretend(network):
    """Give a network tensors on the pretended GPU."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    is_buffer = tensors is module._buffers
                    tensors[name] = there if is_buffer else nn.Parameter(there)
    return network.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("options", [{}, {"per_neuron": True, "loss": "kl"}, {"bias": True}])
def test_stage_two_stays_on_the_device_of_the_network(stages, batches, pretended_gpu, options):
    quantised, spiking = stages
    with pretended_gpu:
        pictures = [torch.zeros(batch.shape, device="cuda") for batch in batches[:4]]
        wanted = LayerWise(steps=2, check=1, **options)
        reports = calibrate(
            pretend(quantised), pretend(spiking), pictures[:3], pictures[3:], T, wanted
        )
        assert len(reports) == 4
        with pytest.raises(RuntimeError, match="device"):
            calibrate(quantised, spiking, [p.cpu() for p in pictures[:3]], pictures[3:], T, wanted)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_operations_are_counted_on_the_device_of_the_network(
    stages, batches, pretended_gpu, monkeypatch
):
    _, spiking = stages
    # pretended tensors cannot be put into fresh layers
    monkeypatch.setattr(synapses, "fan_out", lambda layer, _: layer.weight.sum() * 0 + 9)
    with pretended_gpu:
        pictures = torch.zeros(batches[0].shape, device="cuda")
        cost = measure_cost(SpikingNetwork(pretend(spiking), 4), [pictures], 4)
        assert cost.accumulates and set(cost.accumulates) == set(cost.multiplies)
        with pytest.raises(RuntimeError, match="device"):
            measure_cost(SpikingNetwork(spiking, 4), [pictures.cpu()], 4)
