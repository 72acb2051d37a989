"""Recording, folding, quantising and replacing on a small network."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import best_threshold, estimate_thresholds
from spikedet.errors import ConversionError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.fold_thresholds import fold_thresholds
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.graph.time import CONSTANT, phases, readouts
from spikedet.neurons.functional import pictures_per_pass
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.watch import watchers_of, watching
from support.stages import neurons, seen_in


def stage_one(network, pictures, steps):
    """Graph of the quantised network with estimated thresholds."""
    graph = prepare(network, pictures)
    quantise(graph, estimate_thresholds(graph, [pictures], steps), steps)
    return graph.eval()


def test_batch_norm_folding(small_net, pictures):
    before = small_net(pictures)
    graph = record(small_net, pictures)
    assert len(graph.of((nn.BatchNorm2d,))) == 1
    fold_batch_norm(graph)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    assert torch.allclose(graph(pictures), before, atol=1e-5)
    assert torch.equal(small_net(pictures), before)  # the network itself is left as it was


def test_batch_norm_without_a_layer_of_its_own_becomes_a_weight_for_each_channel(pictures):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())
    network.append(nn.Conv2d(3, 2, 1))
    torch.manual_seed(0)
    nn.init.uniform_(network[2].running_mean, -0.3, 0.3)
    nn.init.uniform_(network[2].running_var, 0.3, 2)
    nn.init.uniform_(network[2].weight, -1, 1)
    nn.init.uniform_(network[2].bias)
    wanted = network.eval()(pictures)
    graph = prepare(network, pictures)
    assert [(n.name, n.kind) for n in graph] == [
        ("0", "conv2d"), ("1", "relu"), ("2", "conv2d"), ("3", "relu"), ("4", "conv2d")
    ]  # fmt: skip
    assert graph.module("2").weight.shape == (3, 1, 1, 1) and graph.module("2").groups == 3
    assert torch.allclose(graph(pictures), wanted, atol=1e-5)
    quantise(graph, estimate_thresholds(graph, [pictures], 256), 256)
    make_spiking(graph)
    error = (SpikingNetwork(graph, 256)(pictures) - wanted).abs().mean()
    assert error < 0.03 * wanted.std()


def test_a_module_used_at_three_places_becomes_three_neurons(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    nodes = neurons(graph)
    assert len(nodes) == 3
    assert len({float(n.threshold) for n in nodes}) == 3


def test_readouts_and_constant_layers_are_found(small_net, pictures):
    graph = record(small_net, pictures)
    assert readouts(graph) == ["last"]
    constant = [name for name, when in phases(graph).items() if when == CONSTANT]
    assert constant == ["input", "first", "norm"]


def refuse(network, pictures, words):
    with pytest.raises(ConversionError, match=words):
        prepare(network.eval(), pictures)


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.a, self.act, self.function = nn.Conv2d(3, 3, 1), nn.ReLU(), function
        self.b = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.b(self.function(self.act(self.a(x))))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * x, "mul"),
        (lambda x: F.softmax(x, 1), "softmax"),
        (
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            r"upsample_bilinear2d .* use mode='nearest'",
        ),
        (lambda x: F.adaptive_max_pool2d(x, 2), "adaptive_max_pool2d"),
    ],
)
def test_functions_that_cannot_be_converted_are_refused_by_name(function, name, pictures):
    refuse(Functional(function), pictures, name)


@pytest.mark.parametrize("function", [F.relu, lambda x: F.max_pool2d(x, 2)])
def test_functions_that_convert_as_modules_do(function, pictures):
    torch.manual_seed(0)
    network = Functional(function).eval()
    wanted = network(pictures)
    graph = prepare(network, pictures)
    assert torch.allclose(graph(pictures), wanted, atol=1e-5)
    quantise(graph, estimate_thresholds(graph, [pictures], 256), 256)
    make_spiking(graph)
    error = (SpikingNetwork(graph, 256)(pictures) - wanted).abs().mean()
    assert error < 0.03 * wanted.std()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.SiLU(), r"^1 \(SiLU\): silu .* replace it with torch.nn.ReLU"),
        (nn.Sigmoid(), r"^1 \(Sigmoid\): sigmoid"),
        (nn.AdaptiveMaxPool2d(2), r"^1 \(AdaptiveMaxPool2d\): adaptive_max_pool2d .*nn.MaxPool2d"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), r"^1 \(Upsample\): .*bilinear.*nearest"),
    ],
)
def test_modules_that_cannot_be_converted_are_refused_by_name(module, name, pictures):
    refuse(nn.Sequential(nn.Conv2d(3, 3, 1), module, nn.ReLU()), pictures, name)


def test_attention_is_refused(pictures):
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.attention = nn.ReLU(), nn.MultiheadAttention(16, 2)

        def forward(self, x):
            x = self.act(x[:, 0])
            return self.attention(x, x, x)[0]

    refuse(Attentive(), pictures, r"^attention \(MultiheadAttention\): .*attention multiplies")


def test_a_network_without_activations_is_refused(pictures):
    refuse(nn.Sequential(nn.Conv2d(3, 3, 1)), pictures, "no activation")


@pytest.mark.parametrize("training", [True, False])
def test_quantisers_take_over_the_mode_of_the_network(small_net, pictures, training):
    """Else a network that is restored for evaluation would go on with quantisation noise."""
    graph = prepare(small_net, pictures).train(training)
    quantise(graph, {node.name: torch.ones(()) for node in graph.of(ACTIVATIONS)}, 4)
    modes = {m.training for m in graph.modules() if isinstance(m, QuantClip)}
    assert modes == {training}


@pytest.mark.parametrize("training", [True, False])
def test_recording_leaves_the_modes_of_the_network(small_net, pictures, training):
    small_net.train(training)
    small_net.norm.eval()
    modes = {name: module.training for name, module in small_net.named_modules()}
    assert not prepare(small_net, pictures).training
    assert {name: module.training for name, module in small_net.named_modules()} == modes


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_quantiser_against_its_equation(steps):
    theta = torch.tensor(1.5)
    x = torch.linspace(-1, 3, 401)
    quantiser = QuantClip(theta, steps).eval()
    level = torch.floor(x * steps / theta + 0.5) / steps
    assert torch.allclose(quantiser(x), theta * level.clamp(0, 1))


def test_quantiser_gradients():
    x = torch.tensor([-0.5, 0.3, 0.8, 5.0], requires_grad=True)
    quantiser = QuantClip(torch.tensor(2.0), 4).eval()
    quantiser(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    # below 0: 0; inside: level - x / theta; above: 1
    expected = 0 + (0.25 - 0.15) + (0.5 - 0.4) + 1
    assert quantiser.threshold.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_threshold_gradients_over_several_chunks_of_the_cache(slope, per_channel):
    """What does not fit a core's cache goes through a few pictures at a time: all of them count."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 128, 72) * 2
    grads = torch.randn_like(x)
    theta = torch.tensor([1.0, 2.0, 0.5, 1.5]) if per_channel else torch.tensor(1.25)
    assert pictures_per_pass(x) == 1

    def gradients(x, grads):
        x = x.clone().requires_grad_()
        quantiser = QuantClip(theta, 4, slope=slope).eval()
        quantiser(x).backward(grads)
        return quantiser.threshold.grad.double(), x.grad

    whole, of_x = gradients(x, grads)
    parts = [gradients(x[b : b + 1], grads[b : b + 1]) for b in range(5)]
    assert torch.allclose(whole, sum(part for part, _ in parts), rtol=1e-4)
    assert torch.equal(of_x, torch.cat([part for _, part in parts]))
    # eq 15: what rounding added within, 1 where it is clipped from above, -1 from below
    z = x.double() / (theta.view(1, -1, 1, 1) if per_channel else theta)
    line = torch.where(z < 0, slope * z, z)
    levels = torch.where(
        z < 0,
        -((-line * 4 - slope / 2).floor() / 4).clamp(0, 1),
        ((z * 4 + 0.5).floor() / 4).clamp(0, 1),
    )
    within = (z > 0) & (z < 1) | (z < 0) & (line > -1) & (slope > 0)
    added = torch.where(within, levels - line, levels) * grads
    truth = added.sum((0, 2, 3)) if per_channel else added.sum()
    assert torch.allclose(whole, truth, rtol=2e-3, atol=1.0)


def test_quantisation_noise_only_while_training():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 100, 100) * 0.999
    quantiser = QuantClip(torch.tensor(1.0), 4, noise=0.3)
    unquantised = (quantiser(x) == x).float().mean().item()
    assert unquantised == pytest.approx(0.3, abs=0.03)
    assert not (quantiser.eval()(x) == x).any()


def test_quantiser_computes_in_float32_under_autocast():
    x = torch.rand(1, 4, 8, 8).bfloat16()
    quantiser = QuantClip(torch.tensor(0.9), 16).eval()
    expected = quantiser(x.float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantiser(x), expected)


def test_best_threshold_cuts_off_an_outlier():
    values = torch.cat([torch.rand(100_000), torch.tensor([5.0])])
    assert 0.8 < best_threshold(values, 4).item() < 1.3


def test_best_threshold_of_each_channel():
    values = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 10.0, 0.0]
    )
    thresholds = best_threshold(values, 8)
    each = torch.stack([best_threshold(channel, 8) for channel in values.T[:2]])
    assert (
        torch.equal(thresholds[:2], each) and 0.9 < thresholds[0] < 1.1 and 9 < thresholds[1] < 11
    )
    assert thresholds[2].item() == pytest.approx(
        values.max().item() / 20
    )  # silent: not next to zero


def test_thresholds_of_each_channel_quantise_better(small_net, pictures):
    wanted, errors = small_net(pictures), []
    for per_channel in (False, True):
        graph = prepare(small_net, pictures)
        thresholds = estimate_thresholds(graph, [pictures], 8, 0, per_channel)
        assert [t.shape for t in thresholds.values()] == (
            [(8,), (12,), (10,)] if per_channel else [()] * 3
        )
        quantise(graph, thresholds, 8)
        errors.append((graph(pictures) - wanted).square().mean().item())
        make_spiking(graph)
        assert (SpikingNetwork(graph, 256)(pictures) - wanted).abs().mean() < 0.1
    assert errors[1] < 0.8 * errors[0]


def test_spikes_between_layers_are_zero_or_one(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    with seen_in(graph) as seen:
        SpikingNetwork(graph, 8)(pictures)
    assert [len(outputs) for outputs in seen.values()] == [1, 1, 1]
    assert all(set(spikes.unique().tolist()) <= {0.0, 1.0} for (spikes,) in seen.values())


def test_spiking_network_approaches_the_clipped_one(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    clipped = copy.deepcopy(graph)
    for quantiser in clipped.modules():
        if isinstance(quantiser, QuantClip):
            quantiser.steps = 1 << 20  # as good as none
    make_spiking(graph)
    spiking = SpikingNetwork(graph, 8)
    truth = clipped(pictures)
    errors = [(spiking(pictures, T) - truth).abs().mean().item() for T in (4, 32, 256)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 * truth.abs().mean().item()


def test_folded_thresholds_leave_the_output_unchanged(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    weights = {n: p.clone() for n, p in graph.layers.named_parameters() if "weight" in n}
    for node in graph.of((QuantClip,)):
        graph.replace(node.name, IFNeuron(node.module.threshold))
    thresholds = [neuron.threshold for neuron in neurons(graph)]
    fold_thresholds(graph)
    mixed = torch.cat([thresholds[0].expand(8), thresholds[1].expand(12)])
    folded = weights["mix.weight"] * mixed.view(1, -1, 1, 1)
    assert torch.allclose(graph.module("mix").weight, folded)
    assert torch.equal(graph.module("first").weight, weights["first.weight"])


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_result_does_not_depend_on_the_chunk(small_net, pictures, chunk):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    whole = SpikingNetwork(graph, 8, chunk=1000)(pictures)
    assert torch.allclose(SpikingNetwork(graph, 8, chunk)(pictures), whole, atol=1e-5)


def test_no_state_leaks_from_one_picture_to_the_next(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    spiking = SpikingNetwork(graph, 8)
    first = spiking(pictures[:1])
    spiking(pictures[1:2] * 3)
    assert torch.equal(spiking(pictures[:1]), first)
    run = spiking.anytime(pictures, 8)
    next(run)
    run.close()  # an abandoned pass leaves nothing either
    assert torch.equal(spiking(pictures[:1]), first)


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 11, 1000])
def test_any_time_readout_equals_separate_runs(small_net, pictures, chunk, weigh):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    if weigh:
        weighed = MeanOverTime(5)
        weighed.log_weights.data.copy_(torch.linspace(-1, 2, 5))
        graph.replace("last_mean", weighed)
    spiking = SpikingNetwork(graph, 8, chunk)
    steps = dict(spiking.anytime(pictures))
    assert list(steps) == list(range(1, 9))
    for t, output in steps.items():
        assert torch.allclose(output, spiking(pictures, t), atol=1e-5), t
    assert not torch.allclose(steps[3], steps[8], atol=1e-2)


@pytest.mark.parametrize("chunk", [1, 2, 12, 1000])
def test_one_run_is_read_out_after_several_steps(small_net, pictures, chunk):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    frames = []
    graph.module("mix").register_forward_hook(
        lambda module, inputs, output: frames.append(len(output))
    )
    spiking = SpikingNetwork(graph, 8, chunk)
    outputs = spiking.after(pictures, [1, 3, 7])
    assert sum(frames) == 7 * len(pictures) and max(frames) <= chunk
    for t, output in zip([1, 3, 7], outputs, strict=True):
        assert torch.allclose(output, spiking(pictures, t), atol=1e-5)


def test_a_long_run_keeps_only_what_is_read_out(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    outputs, alive, read = [], [], []

    def watch(now, node, inputs, output):
        if node.name == "last_mean":
            alive.append(sum(kept() is not None for kept in outputs))
            outputs.append(weakref.ref(output))

    graph.module("last").register_forward_hook(lambda *_: read.append(len(outputs)))
    with watching(graph, watch):
        late = SpikingNetwork(graph, 8, len(pictures)).after(pictures, [3, 40])
    assert len(outputs) == 40 and len(late) == 2 and read == [3, 40]
    assert max(alive) <= 2  # that of step 3, and the last one


def test_run_computes_nothing_ahead(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    frames = []
    graph.module("mix").register_forward_hook(
        lambda module, inputs, output: frames.append(len(output))
    )
    spiking = SpikingNetwork(graph, 8)
    outputs = {t: (output, sum(frames)) for t, output in spiking.run(pictures, 8, 3)}
    assert list(outputs) == [3, 6, 8]
    for t, (output, computed) in outputs.items():
        assert computed == t * 4
        assert torch.allclose(output, spiking(pictures, t), atol=1e-5)


def test_any_time_readout_is_one_run_in_chunks(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    frames = []
    graph.module("mix").register_forward_hook(
        lambda module, inputs, output: frames.append(len(output))
    )
    spiking = SpikingNetwork(graph, 8)
    for _ in spiking.anytime(pictures, 7):
        pass
    assert frames == [7 * 4]
    frames.clear()
    run = spiking.anytime(pictures, 7, chunk=12)
    assert [next(run)[0] for _ in range(4)] == [1, 2, 3, 4]
    assert frames == [12, 12]  # the last step was not computed yet


def test_any_time_readout_of_nested_outputs(small_net, pictures):
    graph = stage_one(small_net, pictures, 4)
    make_spiking(graph)
    plain = dict(SpikingNetwork(graph, 4).anytime(pictures))

    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_net

        def forward(self, x):
            output = self.inner(x)
            return {"both": (output, [output * 2]), "name": "small"}

    nested = stage_one(Nested(), pictures, 4)
    make_spiking(nested)
    for t, output in SpikingNetwork(nested, 4).anytime(pictures):
        assert output["name"] == "small" and torch.equal(output["both"][0], plain[t])
        assert torch.equal(output["both"][1][0], plain[t] * 2)


def test_a_pass_that_another_one_interrupted_goes_on_as_if_alone(small_net, pictures):
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    spiking = SpikingNetwork(graph, 8)
    wanted = [output for _, output in spiking.anytime(pictures)]
    others = [output for _, output in spiking.anytime(pictures * 3)]
    first = spiking.anytime(pictures * 3, chunk=8)
    begun = [next(first)[1]]
    second = spiking.anytime(pictures, chunk=8)
    outputs = [next(second)[1]]
    begun.append(next(first)[1])  # computed before
    begun.append(next(first)[1])  # not yet
    outputs += [output for _, output in second]
    begun += [output for _, output in first]
    for one, other in zip([*outputs, *begun], [*wanted, *others], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    next(spiking.anytime(pictures))
    assert torch.allclose(spiking(pictures), wanted[-1], atol=1e-5)


def tensors_of(network):
    """Everything that a network keeps: its state, and what else stands in its modules."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain = {
        name: {k: v for k, v in vars(module).items() if not k.startswith("_")}
        for name, module in network.named_modules()
    }
    hooks = [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]
    return state, (copy.deepcopy(plain), hooks)


def test_nothing_is_left_in_a_network_after_a_pass(small_net, pictures):
    """Neither in its modules nor beside them: tensors of a pass die with it."""
    graph = stage_one(small_net, pictures, 8)
    make_spiking(graph)
    graph.fixed = ()  # as in older files, so that a wrong input is noticed late
    spiking = SpikingNetwork(graph, 8, chunk=8)
    before, attributes = tensors_of(spiking)
    references = []

    def watch(now, node, inputs, output):
        references.extend(weakref.ref(tensor) for tensor in (output, *inputs))

    with torch.no_grad(), watching(graph, watch):
        outputs = [spiking(pictures), *spiking.after(pictures, [2, 5])]
        run = spiking.anytime(pictures, 8)
        next(run)
        run.close()
        with pytest.raises(RuntimeError):
            spiking(pictures[:, :1])  # one that fails
    assert references and len(outputs) == 3
    gc.collect()
    assert not [tensor for tensor in references if tensor() is not None]
    after, still = tensors_of(spiking)
    assert still == attributes and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert watchers_of(graph) == []


class NegativeWire(IFNeuron):
    """What travels for a spike is -2.5."""

    def scale_spikes(self, spikes):
        return super().scale_spikes(spikes) * -2.5


@pytest.mark.parametrize("chunk", [4, 12, 100])
@pytest.mark.parametrize("kind", [IFNeuron, NegativeWire])
def test_spike_rate_of_each_step(small_net, pictures, chunk, kind):
    graph = stage_one(small_net, pictures, 6)
    make_spiking(graph)
    for neuron in neurons(graph):
        neuron.__class__ = kind
    spiking = SpikingNetwork(graph, 6, chunk)
    with spiking.spike_rates() as rates:
        means = [rates.mean(t) for t, _ in spiking.anytime(pictures)]
    for t, rate in enumerate(means, 1):
        with spiking.spike_rates() as rates:
            for one in pictures.split(3):  # of several passes together
                spiking(one, t)
        assert rate == pytest.approx(rates.mean(t))
    assert means[0] != means[-1] and min(means) > 0
    assert watchers_of(graph) == []


def test_spike_rate_counts_every_neuron(small_net, pictures):
    graph = stage_one(small_net, pictures, 4)
    make_spiking(graph)
    spiking = SpikingNetwork(graph, 4, chunk=5)
    with spiking.spike_rates() as rates, seen_in(graph) as seen:
        spiking(pictures)
    sent = [spikes for outputs in seen.values() for spikes in outputs]
    total = sum(s.sum().item() for s in sent), sum(s.numel() for s in sent)
    assert rates.mean(4) == pytest.approx(total[0] / total[1])
    assert 0 < rates.mean(4) < 1
    layers = rates.by_layer()
    assert list(layers) == ["relu", "relu_1", "relu_2"]
    for name, outputs in seen.items():
        fired = sum(spikes.sum().item() for spikes in outputs)
        assert layers[name] == pytest.approx(fired / sum(s.numel() for s in outputs))


def test_bfloat16_spiking_layers_stay_near_float32(small_net, pictures):
    graph = stage_one(small_net, pictures, 16)
    make_spiking(graph)
    exact = SpikingNetwork(copy.deepcopy(graph), 16)
    rounded = SpikingNetwork(graph, 16, chunk=6)
    rounded.use_bfloat16()
    with torch.no_grad():
        wanted, output = exact(pictures), rounded(pictures)
    assert output.dtype == torch.float32
    assert (output - wanted).abs().max() < 0.15 * wanted.std()
    named = graph.layers.named_parameters()
    types = {name: p.dtype for name, p in named if name.endswith("weight")}
    assert torch.bfloat16 in types.values()
    assert types["last.weight"] == torch.float32


def test_a_forward_of_the_instance_is_what_is_recorded(small_net, pictures):
    plain = small_net.forward
    small_net.forward = lambda x: plain(x)[:, :1]
    wanted = small_net(pictures)
    graph = record(small_net, pictures)
    assert isinstance(graph, Graph) and graph(pictures).shape == (4, 1, 8, 8)
    assert torch.allclose(graph(pictures), wanted, atol=1e-5)
    assert torch.equal(small_net(pictures), wanted)


def test_a_forward_of_the_instance_survives_recording(small_net, pictures):
    """Also where it is refused, as this one takes a batch apart."""
    wanted = small_net(pictures)[:1]
    plain = small_net.forward
    small_net.forward = lambda x: plain(x)[:1]
    with pytest.raises(ConversionError, match="the batch is split into its pictures"):
        record(small_net, pictures)
    assert torch.equal(small_net(pictures), wanted)
