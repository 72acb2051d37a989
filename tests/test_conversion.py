"""Tracing, folding, quantising and replacing on a small network."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.conversion.fold import fold_batch_norm, fold_thresholds
from spikedet.conversion.network import SpikeRates, SpikingNetwork
from spikedet.conversion.quantize import QuantClip
from spikedet.conversion.replace import (
    best_threshold,
    estimate_thresholds,
    make_spiking,
    quantize,
    replace_activations,
    separate_activations,
)
from spikedet.conversion.trace import ACTIVATIONS, trace
from spikedet.errors import ConversionError
from spikedet.neurons.layers import IFNeuron


def stage_one(network, pictures, steps):
    """Quantised network with estimated thresholds."""
    fold_batch_norm(network, pictures)
    separate_activations(network, pictures)
    record = trace(network, pictures)
    thresholds = estimate_thresholds(network, record, [pictures], steps)
    quantize(network, record, thresholds, steps)
    return network.eval()


def test_batch_norm_folding(small_net, pictures):
    before = small_net(pictures)
    fold_batch_norm(small_net, pictures)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small_net.modules())
    assert torch.allclose(small_net(pictures), before, atol=1e-5)


def test_batch_norm_without_a_layer_of_its_own_is_refused(pictures):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    with pytest.raises(ConversionError, match="2: batch norm"):
        fold_batch_norm(network, pictures)


def test_a_module_used_at_three_places_becomes_three_neurons(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    neurons = [m for m in small_net.modules() if isinstance(m, IFNeuron)]
    assert len(neurons) == 3
    assert len({float(n.threshold) for n in neurons}) == 3


def test_readouts_and_constant_layers_are_found(small_net, pictures):
    record = trace(small_net, pictures, strict=False)
    assert [call.where for call in record.readouts()] == ["last"]
    assert [call.where for call in record.constant()] == ["first"]


def refuse(network, pictures, words):
    with pytest.raises(ConversionError, match=words):
        separate_activations(network.eval(), pictures)


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
        (F.relu, "relu"),
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * x, "mul"),
        (lambda x: F.softmax(x, 1), "softmax"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "interpolate"),
        (lambda x: F.max_pool2d(x, 2), "max_pool2d"),
    ],
)
def test_functions_that_cannot_be_converted_are_refused_by_name(function, name, pictures):
    refuse(Functional(function), pictures, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.SiLU(), "1: SiLU .* put torch.nn.ReLU"),
        (nn.Sigmoid(), "1: Sigmoid"),
        (nn.AdaptiveMaxPool2d(2), "1: AdaptiveMaxPool2d"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "1: up-sampling by bilinear"),
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

    refuse(Attentive(), pictures, "attention: MultiheadAttention")


def test_a_network_without_activations_is_refused(pictures):
    refuse(nn.Sequential(nn.Conv2d(3, 3, 1)), pictures, "no activation")


@pytest.mark.parametrize("training", [True, False])
def test_quantisers_take_over_the_mode_of_the_network(small_net, pictures, training):
    """Else a network that is restored for evaluation would go on with quantisation noise."""
    fold_batch_norm(small_net, pictures)
    separate_activations(small_net, pictures)
    record = trace(small_net.train(training), pictures)
    quantize(small_net, record, {c.where: torch.ones(()) for c in record.of(ACTIVATIONS)}, 4)
    modes = {m.training for m in small_net.modules() if isinstance(m, QuantClip)}
    assert modes == {training}


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
    found = best_threshold(values, 8)
    each = torch.stack([best_threshold(channel, 8) for channel in values.T[:2]])
    assert torch.equal(found[:2], each) and 0.9 < found[0] < 1.1 and 9 < found[1] < 11
    assert found[2].item() == pytest.approx(values.max().item() / 20)  # silent: not next to zero


def test_thresholds_of_each_channel_quantise_better(small_net, pictures):
    fold_batch_norm(small_net, pictures)
    separate_activations(small_net, pictures)
    record = trace(small_net, pictures)
    wanted, errors = small_net(pictures), []
    for per_channel in (False, True):
        network = copy.deepcopy(small_net)
        thresholds = estimate_thresholds(small_net, record, [pictures], 8, 0, per_channel)
        assert [t.shape for t in thresholds.values()] == (
            [(8,), (12,), (10,)] if per_channel else [()] * 3
        )
        quantize(network, record, thresholds, 8)
        errors.append((network(pictures) - wanted).square().mean().item())
        make_spiking(network, pictures)
        assert (SpikingNetwork(network, 256)(pictures) - wanted).abs().mean() < 0.1
    assert errors[1] < 0.8 * errors[0]


def test_spikes_between_layers_are_zero_or_one(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    seen = []
    for neuron in small_net.modules():
        if isinstance(neuron, IFNeuron):
            neuron.register_forward_hook(lambda m, i, spikes: seen.append(spikes.unique()))
    SpikingNetwork(small_net, 8)(pictures)
    assert len(seen) == 3
    assert all(set(values.tolist()) <= {0.0, 1.0} for values in seen)


def test_spiking_network_approaches_the_clipped_one(small_net, pictures):
    stage_one(small_net, pictures, 8)
    clipped = copy.deepcopy(small_net)
    for quantiser in clipped.modules():
        if isinstance(quantiser, QuantClip):
            quantiser.steps = 1 << 20  # as good as none
    make_spiking(small_net, pictures)
    spiking = SpikingNetwork(small_net, 8)
    truth = clipped(pictures)
    errors = [(spiking(pictures, T) - truth).abs().mean().item() for T in (4, 32, 256)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 * truth.abs().mean().item()


def test_folded_thresholds_leave_the_output_unchanged(small_net, pictures):
    stage_one(small_net, pictures, 8)
    weights = {n: p.clone() for n, p in small_net.named_parameters() if "weight" in n}
    record = trace(small_net, pictures)
    replace_activations(small_net, record, lambda _, q: IFNeuron(q.threshold))
    thresholds = [c.module.threshold for c in trace(small_net, pictures).of(ACTIVATIONS)]
    fold_thresholds(trace(small_net, pictures))
    mixed = torch.cat([thresholds[0].expand(8), thresholds[1].expand(12)])
    folded = weights["mix.weight"] * mixed.view(1, -1, 1, 1)
    assert torch.allclose(small_net.mix.weight, folded)
    assert torch.equal(small_net.first.weight, weights["first.weight"])


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_result_does_not_depend_on_the_chunk(small_net, pictures, chunk):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    whole = SpikingNetwork(small_net, 8, chunk=1000)(pictures)
    assert torch.allclose(SpikingNetwork(small_net, 8, chunk)(pictures), whole, atol=1e-5)


def test_no_state_leaks_from_one_picture_to_the_next(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    spiking = SpikingNetwork(small_net, 8)
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
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    if weigh:
        small_net.last.weigh_steps(5)
        small_net.last.log_weights.data.copy_(torch.linspace(-1, 2, 5))
    spiking = SpikingNetwork(small_net, 8, chunk)
    steps = dict(spiking.anytime(pictures))
    assert list(steps) == list(range(1, 9))
    for t, output in steps.items():
        assert torch.allclose(output, spiking(pictures, t), atol=1e-5), t
    assert not torch.allclose(steps[3], steps[8], atol=1e-2)


@pytest.mark.parametrize("chunk", [1, 2, 12, 1000])
def test_one_run_is_read_out_after_several_steps(small_net, pictures, chunk):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    frames = []
    small_net.mix.register_forward_hook(lambda module, inputs, output: frames.append(len(output)))
    spiking = SpikingNetwork(small_net, 8, chunk)
    found = spiking.after(pictures, [1, 3, 7])
    assert sum(frames) == 7 * len(pictures) and max(frames) <= chunk
    for t, output in zip([1, 3, 7], found, strict=True):
        assert torch.allclose(output, spiking(pictures, t), atol=1e-5)


def test_a_long_run_keeps_only_what_is_read_out(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    outputs, alive = [], []

    def watch(module, inputs, output):
        alive.append(sum(kept() is not None for kept in outputs))
        outputs.append(weakref.ref(output))

    small_net.register_forward_hook(watch)
    found = SpikingNetwork(small_net, 8, len(pictures)).after(pictures, [3, 40])
    assert len(outputs) == 40 and len(found) == 2
    assert max(alive) <= 2  # that of step 3, and the last one


def test_run_computes_nothing_ahead(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    frames = []
    small_net.mix.register_forward_hook(lambda module, inputs, output: frames.append(len(output)))
    spiking = SpikingNetwork(small_net, 8)
    found = {t: (output, sum(frames)) for t, output in spiking.run(pictures, 8, 3)}
    assert list(found) == [3, 6, 8]
    for t, (output, computed) in found.items():
        assert computed == t * 4
        assert torch.allclose(output, spiking(pictures, t), atol=1e-5)


def test_any_time_readout_is_one_run_in_chunks(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    frames = []
    small_net.mix.register_forward_hook(lambda module, inputs, output: frames.append(len(output)))
    spiking = SpikingNetwork(small_net, 8)
    for _ in spiking.anytime(pictures, 7):
        pass
    assert frames == [7 * 4]
    frames.clear()
    run = spiking.anytime(pictures, 7, chunk=12)
    assert [next(run)[0] for _ in range(4)] == [1, 2, 3, 4]
    assert frames == [12, 12]  # the last step was not computed yet


def test_any_time_readout_of_nested_outputs(small_net, pictures):
    stage_one(small_net, pictures, 4)
    make_spiking(small_net, pictures)
    plain = dict(SpikingNetwork(small_net, 4).anytime(pictures))

    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_net

        def forward(self, x):
            output = self.inner(x)
            return {"both": (output, [output * 2]), "name": "small"}

    for t, output in SpikingNetwork(Nested(), 4).anytime(pictures):
        assert output["name"] == "small" and torch.equal(output["both"][0], plain[t])
        assert torch.equal(output["both"][1][0], plain[t] * 2)


def test_a_pass_that_another_one_interrupted_is_refused(small_net, pictures):
    stage_one(small_net, pictures, 8)
    make_spiking(small_net, pictures)
    spiking = SpikingNetwork(small_net, 8)
    wanted = [output for _, output in spiking.anytime(pictures)]
    first = spiking.anytime(pictures * 3, chunk=8)
    next(first)
    second = spiking.anytime(pictures, chunk=8)
    found = [next(second)[1]]
    assert next(first)[0] == 2  # computed before
    with pytest.raises(RuntimeError, match="another pass"):
        next(first)
    found += [output for _, output in second]  # its end left this one alone
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    next(spiking.anytime(pictures))
    assert torch.allclose(spiking(pictures), wanted[-1], atol=1e-5)


class NegativeWire(IFNeuron):
    """What travels for a spike is -2.5."""

    def forward(self, current):
        return super().forward(current) * -2.5


@pytest.mark.parametrize("chunk", [4, 12, 100])
@pytest.mark.parametrize("kind", [IFNeuron, NegativeWire])
def test_spike_rate_of_each_step(small_net, pictures, chunk, kind):
    stage_one(small_net, pictures, 6)
    make_spiking(small_net, pictures)
    for module in small_net.modules():
        if isinstance(module, IFNeuron):
            module.__class__ = kind
    spiking = SpikingNetwork(small_net, 6, chunk)
    with SpikeRates(spiking) as rates:
        found = [rates.mean(t) for t, _ in spiking.anytime(pictures)]
    for t, rate in enumerate(found, 1):
        with SpikeRates(spiking) as rates:
            for one in pictures.split(3):  # of several passes together
                spiking(one, t)
        assert rate == pytest.approx(rates.mean(t))
    assert found[0] != found[-1] and min(found) > 0
    assert not any(neuron._forward_hooks for neuron in small_net.modules())


def test_spike_rate_counts_every_neuron(small_net, pictures):
    stage_one(small_net, pictures, 4)
    make_spiking(small_net, pictures)
    total = [0, 0]

    def count(module, inputs, spikes):
        total[0] += spikes.sum().item()
        total[1] += spikes.numel()

    for neuron in small_net.modules():
        if isinstance(neuron, IFNeuron):
            neuron.register_forward_hook(count)
    spiking = SpikingNetwork(small_net, 4, chunk=5)
    with SpikeRates(spiking) as rates:
        spiking(pictures)
    assert rates.mean(4) == pytest.approx(total[0] / total[1])
    assert 0 < rates.mean(4) < 1


def test_bfloat16_spiking_layers_stay_near_float32(small_net, pictures):
    network = stage_one(small_net, pictures, 16)
    make_spiking(network, pictures)
    exact = SpikingNetwork(copy.deepcopy(network), 16)
    rounded = SpikingNetwork(network, 16, chunk=6)
    rounded.use_bfloat16(pictures)
    with torch.no_grad():
        wanted, found = exact(pictures), rounded(pictures)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 0.15 * wanted.std()
    types = {name: p.dtype for name, p in network.named_parameters() if name.endswith("weight")}
    assert torch.bfloat16 in types.values()
    assert types["last.layer.weight"] == torch.float32


def test_a_forward_of_the_instance_survives_tracing(small_net, pictures):
    wanted = small_net(pictures)[:1]
    plain = small_net.forward
    small_net.forward = lambda x: plain(x)[:1]
    trace(small_net, pictures)
    assert torch.equal(small_net(pictures), wanted)
