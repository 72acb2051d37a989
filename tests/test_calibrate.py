"""Stage II on a small network that was trained for a moment."""

import copy

import pytest
import torch

from spikedet.conversion.calibrate import Options, calibrate
from spikedet.conversion.distill import distill
from spikedet.conversion.fold import fold_batch_norm
from spikedet.conversion.network import SpikingNetwork
from spikedet.conversion.replace import (
    estimate_thresholds,
    make_spiking,
    quantize,
    separate_activations,
)
from spikedet.conversion.trace import trace
from spikedet.neurons.layers import IFNeuron

T = 8


@pytest.fixture
def batches():
    """Smooth pictures: 20 batches to fit, 4 to judge layers by, 16 that nothing sees before."""
    coarse = torch.rand(40, 4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return [torch.nn.functional.interpolate(b, size=(16, 16), mode="bilinear") for b in coarse]


@pytest.fixture
def stages(small_net, batches):
    """(quantised, spiking) after a moment of training towards squared and brightest colours."""
    network = small_net.train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    pool = torch.nn.AvgPool2d(2)
    for batch in batches[:20] * 10:
        target = torch.cat([pool(batch) ** 2, pool(batch).amax(1, keepdim=True)], 1)
        loss = (network(batch) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    fold_batch_norm(network, batches[0])
    separate_activations(network, batches[0])
    record = trace(network, batches[0])
    quantize(network, record, estimate_thresholds(network, record, batches[:2], T), T)
    network.eval()
    spiking = copy.deepcopy(network)
    make_spiking(spiking, batches[0])
    return network, spiking


def output_error(quantised, spiking, pictures):
    pictures = torch.cat(pictures)
    with torch.no_grad():
        found, wanted = SpikingNetwork(spiking, T)(pictures), quantised(pictures)
    return (found - wanted).square().mean().item()


def start_empty(spiking):
    """Neurons that start at 0 instead of half a threshold: all of them fire too little."""
    for module in spiking.modules():
        if isinstance(module, IFNeuron):
            module.initial.data.zero_()


def test_stage_two_lowers_the_error_of_a_trained_network(stages, batches):
    quantised, spiking = stages
    before = output_error(quantised, spiking, batches[24:])
    options = Options(steps=60, check=10, half=False)
    reports = calibrate(quantised, spiking, batches[:20], batches[20:24], T, options)
    assert [r.name for r in reports][-1] == "last.layer" and len(reports) == 4
    assert all(r.after <= r.coarse <= r.before for r in reports)
    assert reports[1].after < 0.85 * reports[1].before
    assert output_error(quantised, spiking, batches[24:]) < 0.8 * before


@pytest.mark.parametrize("options", [{"fine": False}, {"coarse": False}, {}], ids=str)
def test_both_calibrations_make_up_for_a_wrong_start(stages, batches, options):
    quantised, spiking = stages
    start_empty(spiking)
    before = output_error(quantised, spiking, batches[24:])
    options = Options(steps=60, check=10, half=False, **options)
    reports = calibrate(quantised, spiking, batches[:20], batches[20:24], T, options)
    ratios = [r.after / r.before for r in reports[:-1]]
    assert max(ratios) <= 1 and sum(ratios) / len(ratios) < 0.7
    if options.coarse and options.fine:
        assert all(r.after < r.before for r in reports)
    assert output_error(quantised, spiking, batches[24:]) < 0.3 * before


def test_a_layer_that_cannot_gain_is_left_as_it_was(stages, batches):
    quantised, spiking = stages
    before = {k: v.clone() for k, v in spiking.state_dict().items()}
    options = Options(coarse=False, rate=50.0, steps=5, check=1, half=False)
    reports = calibrate(quantised, spiking, batches[:2], batches[8:9], T, options)
    assert all(r.after == r.before for r in reports)
    assert all(torch.equal(v, before[k]) for k, v in spiking.state_dict().items())


def test_errors_reported_are_those_of_the_network_as_it_runs(stages, batches):
    """The cached spikes of layer-wise calibration are those of an ordinary pass."""
    quantised, spiking = stages
    options = Options(steps=20, check=5, half=False)
    reports = calibrate(quantised, spiking, batches[:4], batches[8:9], T, options)
    rates, levels = [], []
    for network, seen in ((spiking, rates), (quantised, levels)):
        for name in ("relu.neurons.0", "relu.neurons.1", "relu.neurons.2"):
            network.get_submodule(name).register_forward_hook(
                lambda module, inputs, out, seen=seen: seen.append(out)
            )
    with torch.no_grad():
        SpikingNetwork(spiking, T)(batches[8])
        quantised(batches[8])
    for report, spikes, level, name in zip(reports, rates, levels, ["0", "1", "2"], strict=False):
        theta = quantised.get_submodule(f"relu.neurons.{name}").threshold.abs()
        rate = spikes.unflatten(0, (T, -1)).mean(0)
        error = (rate - level / theta).square().mean().item()
        assert report.after == pytest.approx(error, rel=1e-4)


def test_coarse_stays_in_its_bounds(stages, batches):
    quantised, spiking = stages
    calibrate(quantised, spiking, batches[:4], batches[8:9], T, Options(fine=False))
    for neuron in spiking.modules():
        if isinstance(neuron, IFNeuron):
            assert (neuron.initial >= -neuron.threshold).all()
            assert (neuron.initial <= 2 * neuron.threshold).all()


def test_thresholds_stay(stages, batches):
    quantised, spiking = stages
    before = [n.threshold.clone() for n in spiking.modules() if isinstance(n, IFNeuron)]
    calibrate(quantised, spiking, batches[:4], batches[8:9], T, Options(steps=10, check=5))
    after = [n.threshold for n in spiking.modules() if isinstance(n, IFNeuron)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_distillation_lowers_the_output_error(stages, batches):
    quantised, spiking = stages
    start_empty(spiking)
    before = output_error(quantised, spiking, batches[24:])
    network = SpikingNetwork(spiking, T)

    def endless():
        while True:
            yield from batches[:20]

    def loss(batch):
        with torch.no_grad():
            wanted = quantised(batch)
        return (network(batch) - wanted).square().mean()

    distill(network, endless(), loss, steps=80, rate=5e-3, warmup=5)
    assert output_error(quantised, spiking, batches[24:]) < 0.3 * before
    assert not any(p.requires_grad for p in network.parameters())
