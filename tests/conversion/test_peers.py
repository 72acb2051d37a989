"""Peers: each against the formula of its paper, and as a method of the commands for both tasks."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spikedet.checkpoint import Checkpoint, load, save
from spikedet.classification import models
from spikedet.classification.task import CLASSIFICATION
from spikedet.commands import convert
from spikedet.commands.main import parsed
from spikedet.conversion.bias import own_bias, shift_currents
from spikedet.conversion.calibrate import calibrate
from spikedet.conversion.prepare import prepare
from spikedet.conversion.stored import StoredOutputs
from spikedet.conversion.thresholds import (
    channel_maxima,
    estimate_thresholds,
    largest_activations,
)
from spikedet.errors import ConversionError, WeightsError
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.methods import METHODS, Method
from spikedet.neurons.layers import IFNeuron
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import LayerWise
from spikedet.stages import stage_one
from support.places import ROOT
from support.squares import converted, different
from support.stages import quantised, seen_in, spiking_copy

T = 8
UNTRAINED = ("rmp", "opt", "opi", "cap")
PARTS = ("stage1", "stage2", "stage1-coarse", "stage1-fine")


def train(network, teacher, batches, plain):
    """Stage I of a quantised network: a moment of training towards the outputs of the float one."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, QuantClip):
            module.noise, module.clips_rounded = 0.0 if plain else 0.1, plain
    optimiser = torch.optim.Adam(network.train().parameters(), 3e-3)
    for batch in batches[:20] * 4:
        loss = (network(batch) - teacher(batch).detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def spiking(network, method, batches, steps=T):
    """The spiking network that a method makes of a float one, as `Task` does."""
    method = METHODS[method]
    target = prepare(network, batches[0])
    graph = copy.deepcopy(target)
    if method.thresholds == "largest":
        thresholds = largest_activations(graph, batches[:4])
    else:
        thresholds = estimate_thresholds(graph, batches[:4], steps)
    quantise(graph, thresholds, steps)
    if method.finetuned:
        train(graph, network, batches, method.plain)
    quantised = copy.deepcopy(graph.eval())
    make_spiking(graph, method.initial)
    if method.shift:
        shift_currents(graph, steps)
    options = LayerWise(
        method.coarse, method.fine, steps=40, check=10, half=False, bias=method.bias
    )
    if method.coarse or method.fine or method.bias:
        targets = target if method.bias else quantised
        calibrate(targets, graph, batches[:20], batches[20:24], steps, options)
    return SpikingNetwork(graph, steps)


def one_neuron():
    """A ReLU between two layers that change nothing."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)).eval()
    for layer in (network[0], network[2]):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


CURRENTS = torch.linspace(-0.5, 3.0, 1024).view(1, 1, 32, 32)  # the largest is the threshold
TOP = 3.0


@pytest.mark.parametrize(("method", "add"), [("rmp", 0.0), ("opt", 0.5), ("opi", 0.5)])
def test_rates_of_constant_currents_are_those_of_the_papers(method, add):
    """Soft reset from 0: floor(x T / theta) spikes; with the shift or the start: rounded."""
    network = spiking(one_neuron(), method, [CURRENTS] * 4, steps=5)
    wanted = TOP * ((CURRENTS * 5 / TOP + add).floor() / 5).clamp(0, 1)
    rates = network(CURRENTS)
    edge = ((CURRENTS * 5 / TOP + add) % 1 - 0.5).abs() > 0.4999
    assert edge.sum() < 20 and (wanted > 0).sum() > 500
    assert torch.allclose(rates[~edge], wanted[~edge], atol=1e-5)


def test_the_shift_is_all_there_at_t_alone():
    """After t of T steps opt has been given t / T of theta / 2, which opi has from the start."""
    opt, opi = (spiking(one_neuron(), m, [CURRENTS] * 4, steps=5) for m in ("opt", "opi"))
    counts = [
        [(mean * t / TOP).sum().item() for t, mean in net.anytime(CURRENTS)] for net in (opt, opi)
    ]
    assert all(a < b for a, b in zip(counts[0][:4], counts[1][:4], strict=True))
    assert counts[0][4] == pytest.approx(counts[1][4], abs=2)


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.LeakyReLU(0.1), nn.LeakyReLU(1.0)], ids=str)
def test_thresholds_are_the_largest_activations(relu):
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), relu, nn.Conv2d(2, 1, 1)).eval()
    network[0].weight.data = torch.tensor([1.0, -4.0]).view(2, 1, 1, 1)
    batches = [torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), 0.5)]
    graph = prepare(network, batches[0])
    (layer,) = largest_activations(graph, batches).values()
    (channels,) = largest_activations(graph, batches, per_channel=True).values()
    below = 2.0 * getattr(relu, "negative_slope", 0.0)
    assert layer == pytest.approx(max(0.5, below))
    assert channels.tolist() == pytest.approx([0.5, max(below, 0.5 / 20)])


@pytest.mark.parametrize("clips_rounded", [True, False])
@pytest.mark.parametrize("levels", [1, 4])
def test_the_quantiser_is_quantisation_clip_floor_shift(levels, clips_rounded):
    """Bu et al., ICLR 2022: h(z) = lambda clip(floor(z L / lambda + 1/2) / L, 0, 1).

    Derivatives with respect to z: 1 within, 0 without; to lambda: (h - z) / lambda within, 0 below,
    1 above, with the borders -lambda / 2L and lambda - lambda / 2L. Ours are 0 and lambda unless
    `clips_rounded`.
    """
    bound = 1.7
    z = torch.linspace(-2, 3, 1501)
    quantiser = QuantClip(torch.tensor(bound), levels, noise=0.0).train()
    quantiser.clips_rounded = clips_rounded
    half = bound / (2 * levels)
    wanted = bound * ((z * levels / bound + 0.5).floor() / levels).clamp(0, 1)
    sure = ((z * levels / bound + 0.5) % 1 - 0.5).abs() < 0.4999
    low, high = (-half, bound - half) if clips_rounded else (0, bound)
    within, below, above = (z > low) & (z < high) & sure, (z < low) & sure, (z > high) & sure
    assert min(within.sum(), below.sum(), above.sum()) > 100
    outputs, slopes, by_bound = [], [], []
    for value in z:
        x = value.clone().requires_grad_()
        quantiser.threshold.grad = None
        y = quantiser(x[None, None])
        y.backward()
        outputs.append(y.item())
        slopes.append(x.grad.item())
        by_bound.append(quantiser.threshold.grad.item())
    outputs, slopes, by_bound = (torch.tensor(values) for values in (outputs, slopes, by_bound))
    assert torch.allclose(outputs[sure], wanted[sure], atol=1e-5)
    assert bool((slopes[within] == 1).all()) and not slopes[below | above].any()
    assert torch.allclose(by_bound[within], ((wanted - z) / bound)[within], atol=1e-5)
    assert not by_bound[below].any() and bool((by_bound[above] == 1).all())


def test_bias_correction_by_hand(trained, batches):
    """b += mean(a - theta r) over pictures and places, each layer on spikes of corrected ones."""
    trained = prepare(trained, batches[0])
    network = copy.deepcopy(trained)
    quantise(network, estimate_thresholds(network, batches[:4], T), T)
    make_spiking(network.eval(), 0.0)
    shift_currents(network, T)
    hand = copy.deepcopy(network)
    reports = calibrate(trained, network, batches[:6], batches[20:22], T,
                        LayerWise(coarse=False, fine=False, bias=True))  # fmt: skip
    fit = torch.cat(batches[:6])
    with torch.no_grad():
        truth = trained.run(trained.edges, {"input": fit}, [*trained.edges])
    for relu, layer in (("relu", "first"), ("relu_1", "deep"), ("relu_2", "mix")):
        with torch.no_grad(), seen_in(hand) as seen:
            SpikingNetwork(hand, T, chunk=10**6)(fit)
        (spikes,) = seen[relu]
        lacks = truth[relu].mean([0, 2, 3])
        change = lacks - (hand.module(relu).threshold * spikes).mean([0, 2, 3])
        mine, theirs = (graph.module(layer) for graph in (hand, network))
        assert change.abs().max() > 1e-3
        assert torch.allclose(theirs.bias, mine.bias + change, atol=1e-5)
        mine.bias.data += change
    assert torch.equal(network.module("last").bias, hand.module("last").bias)
    assert all(r.before != r.after for r in reports[1:3])


def test_bias_correction_is_not_judged():
    """As published. By hand at theta = T = 3: of 2.9 two spikes are 2, so the bias gets 0.9; a held
    0.2, which was 0 spikes, becomes one of 1.
    """
    fit, judge = torch.full((1, 1, 2, 2), 2.9), torch.full((1, 1, 2, 2), 0.2)
    network = prepare(one_neuron(), fit)
    spiking = copy.deepcopy(network)
    quantise(spiking, {"1": torch.tensor(3.0)}, 3)
    make_spiking(spiking, 0.0)
    options = LayerWise(coarse=False, fine=False, bias=True)
    report, readout = calibrate(network, spiking, [fit], [judge], 3, options)
    assert spiking.module("0").bias.item() == pytest.approx(0.9)
    assert report.before == pytest.approx((0.2 / 3) ** 2)
    assert report.after == report.coarse == pytest.approx((0.8 / 3) ** 2)
    assert readout.before == readout.after


def classifier(arch, width=0.25):
    torch.manual_seed(0)
    description = {"arch": arch, "form": "cifar", "width": width}
    return models.build(description, 4).eval()


@pytest.mark.parametrize("arch", ["resnet20", "resnet18", "mobilenetv2"])
def test_the_shift_reaches_every_neuron_once(arch):
    """Residual sums have two layers of which one is changed; signed neurons of bottlenecks too."""
    picture = torch.rand(2, 3, 16, 16)
    network = spiking_copy(quantised(classifier(arch), [picture], T), initial=0.0)
    before = StoredOutputs(copy.deepcopy(network), [picture], T)
    shift_currents(network, T)
    after = StoredOutputs(network, [picture], T)
    for index, (old, new) in enumerate(zip(before.sites, after.sites, strict=True)):
        tensors = before.sources(old, 0)
        change = after.run(new, tensors) - before.run(old, tensors)
        neuron = new.node.module
        wanted = neuron.threshold / (2 * T) if isinstance(neuron, IFNeuron) else 0.0
        assert torch.allclose(change, torch.as_tensor(wanted).expand_as(change), atol=1e-4)
        before.advance(index)


class ReadTwice(nn.Module):
    """A layer whose output is read by two activations."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ReLU()
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        current = self.conv(x)
        return self.last(torch.cat([self.one(current), self.two(current)], 1))


def test_a_layer_that_two_neurons_read_has_no_place_for_a_current():
    picture = torch.rand(1, 3, 8, 8)
    network = spiking_copy(quantised(ReadTwice().eval(), [picture], T), initial=0.0)
    with pytest.raises(ConversionError, match="one: this method adds a constant current to a bias"):
        shift_currents(network, T)


def test_own_bias_is_that_of_the_last_layer():
    picture = torch.rand(1, 3, 16, 16)
    student = StoredOutputs(prepare(classifier("resnet20"), picture), [picture], None)
    joins = [site for site in student.sites if len(site.layers) == 2]
    assert joins and all(isinstance(site.node.module, ACTIVATIONS) for site in joins)
    assert all(own_bias(student, site) is site.layers[0].bias for site in joins)


@pytest.fixture
def errors(trained, batches):
    """Mean squared error of each method's outputs against the float network, on new pictures."""
    pictures = torch.cat(batches[24:])
    with torch.no_grad():
        wanted = trained(pictures)
    means = {}
    for method in ("copy", *PARTS, *UNTRAINED, "qcfs", "two-stage"):
        network = spiking(trained, method, batches)
        with torch.no_grad():
            means[method] = (network(pictures) - wanted).square().mean().item()
    return means


def test_the_order_of_errors(errors):
    """Fine-tuned networks are nearest (which of them is a matter of T and of luck here)."""
    assert errors["opt"] < 0.2 * errors["rmp"] and errors["opi"] < 0.2 * errors["rmp"]
    assert errors["cap"] < errors["opt"]
    untrained = min(errors[method] for method in ("copy", "stage2", *UNTRAINED))
    assert errors["two-stage"] < 0.9 * untrained and errors["qcfs"] < 0.9 * untrained
    assert errors["stage2"] < errors["copy"] and errors["stage1"] < errors["copy"]
    assert errors["two-stage"] < errors["stage1"] and errors["stage1-fine"] < errors["stage1"]
    assert errors["stage1-coarse"] < 1.1 * errors["stage1"]  # judged by layers, not by outputs


def test_spiking_yolo_is_behind_stage_two(trained, batches):
    """Both convert a leaky network, which Spiking-YOLO needs, at the few steps of this test."""
    trained.relu = nn.LeakyReLU(0.1)
    pictures = torch.cat(batches[24:])

    def error(network):
        with torch.no_grad():
            return (network(pictures) - trained(pictures)).square().mean().item()

    normalised = prepare(trained, batches[0])
    quantise(normalised, channel_maxima(normalised, batches[:4]), T)
    make_spiking(normalised, 0.0)
    behind = error(SpikingNetwork(normalised, T))
    assert error(spiking(trained, "stage2", batches)) < 0.8 * behind
    assert error(spiking(trained, "copy", batches)) < behind


def test_detectors_convert(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    copied = converted(stages_done, devkit, "copy")
    checkpoints = {m: converted(stages_done, devkit, m) for m in UNTRAINED}
    assert different(checkpoints["opi"], copied) == {"threshold", "initial", "weight"}
    assert different(checkpoints["rmp"], checkpoints["opi"]) == {"initial"}
    assert different(checkpoints["opt"], checkpoints["rmp"]) == {"bias"}
    assert different(checkpoints["cap"], copied) == {"initial", "bias"}
    for method, network in checkpoints.items():
        starts = [v for k, v in network.tensors.items() if k.endswith("initial")]
        assert all(bool((v == 0).all()) for v in starts) == (method != "opi")
        assert network.origin["method"] == method and not network.origin["end_to_end"]


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Float weights of a classifier, and a data set of dark and bright pictures."""
    folder = tmp_path_factory.mktemp("shades")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for level, name in ((60, "dark"), (190, "bright")):
            (folder / split / name).mkdir(parents=True)
            for number in range(50 if split == "train" else 4):  # every 50th is kept aside
                picture = rng.integers(level - 50, level + 50, (16, 16, 3), np.uint8)
                Image.fromarray(picture).save(folder / split / name / f"{number}.jpg")
    path = ROOT / "configs/models/cifar-resnet20.yaml"
    description = CLASSIFICATION.describe(path, "0.25")
    network = CLASSIFICATION.network(description, 2)
    checkpoint = Checkpoint(
        "float", "classification", description, ("bright", "dark"), 16, network.state_dict()
    )
    save(checkpoint, folder / "float.safetensors")
    return folder


def classified(folder, method, *words, steps=4):
    """The network that spikedet convert makes of the classifier."""
    out = folder / f"{method}-{steps}.safetensors"
    out.unlink(missing_ok=True)
    given = [
        "--model",
        folder / "float.safetensors",
        "--method",
        method,
        "--T",
        steps,
    ]
    small = ["--out", out, "--data", folder]
    small += ["--pictures", 64, "--held", 32] if METHODS[method].calibrated else []
    convert.run(parsed("convert", [*given, *small, *words]))
    return load(out)


@pytest.mark.parametrize("method", UNTRAINED)
def test_potentials_of_classifiers_start_at_zero_but_those_of_opi(shades, method):
    checkpoint = classified(shades, method)
    starts = [v for k, v in checkpoint.tensors.items() if k.endswith("initial")]
    assert starts and all(bool((v == 0).all()) for v in starts) == (method != "opi")


def test_quantised_training_has_no_noise_whatever_a_configuration_says(shades, monkeypatch):
    (shades / "x.yaml").write_text("convert: {noise: 0.3, distill: 2.0}")
    wanted = []
    monkeypatch.setattr(stage_one.FineTuning, "run", lambda self, *_: wanted.append(self.options))
    words = ["--config", shades / "x.yaml", "--model", shades / "float.safetensors", "--T", 2]
    words += ["--data", shades, "--method", "qcfs", "--out", shades / "w.safetensors"]
    args = parsed("convert", words)
    with pytest.raises(WeightsError, match="no such weights"):  # nothing was trained
        convert.run(args)
    assert [(o.noise, o.distill) for o in wanted] == [(0.0, 0.0)]


def test_stage_one_begins_with_the_thresholds_of_the_method(shades, monkeypatch):
    rules = []
    quantise = stage_one.thresholds_by
    monkeypatch.setattr(
        stage_one,
        "thresholds_by",
        lambda rule, *others: rules.append(rule) or quantise(rule, *others),
    )
    monkeypatch.setitem(METHODS, "stage1", Method("own", finetuned=True, thresholds="largest"))
    classified(shades, "stage1", "--epochs", 1, "--batch", 8, steps=2)
    assert "largest" in rules


def test_quantised_training_without_noise_runs_at_any_t(shades, monkeypatch):
    """The levels of stage I are noted; only T differs between two runs of its weights."""
    fit, trained_as = CLASSIFICATION.fit, []

    def look(network, run):
        quantisers = [m for m in network.modules() if isinstance(m, QuantClip)]
        trained_as.append((run.teacher, {(m.noise, m.clips_rounded, m.steps) for m in quantisers}))
        fit(network, run)

    monkeypatch.setattr(CLASSIFICATION, "fit", look)
    checkpoint = classified(shades, "qcfs", "--epochs", 1, "--batch", 8, steps=2)
    stage1 = shades / "qcfs-2.safetensors.stage1" / "best.safetensors"
    assert trained_as == [(None, {(0.0, True, 2)})] and load(stage1).T == 2
    later = classified(shades, "qcfs", "--stage1", stage1, steps=7)
    assert (later.T, later.origin["levels"], different(checkpoint, later)) == (7, 2, set())
    assert "layer_wise_gain" not in later.origin


def test_biases_are_corrected_towards_activations_without_levels(shades, monkeypatch):
    targets = []

    def look(target, *args):
        targets.append(target)
        return calibrate(target, *args)

    monkeypatch.setattr("spikedet.stages.stage_two.calibrate", look)
    classified(shades, "cap")
    kinds = {type(module) for module in targets[0].modules()}
    assert nn.ReLU in kinds and not kinds & {QuantClip, nn.BatchNorm2d}
