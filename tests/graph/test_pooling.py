"""Max-pooling of cumulative spike counts."""

import copy

import pytest
import torch
from torch import nn

from spikedet.conversion.calibrate import calibrate
from spikedet.detection.description import build, read_description
from spikedet.detection.model import raw_outputs
from spikedet.errors import ConversionError
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import SpikingMaxPool
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import LayerWise
from support.places import ROOT
from support.stages import neurons, quantised, seen_in

CLASSIC = ROOT / "configs/models/tiny-yolo-maxpool.yaml"


def pooled(spikes, batch, mode="count", chunks=1, **window):
    pool, memory, outputs = SpikingMaxPool(**{"kernel_size": 2, **window}, mode=mode), None, []
    for part in spikes.chunk(chunks):
        out, memory = pool.advance(part, batch, len(part) // batch, memory)
        outputs.append(out)
    return torch.cat(outputs)


def test_traced_by_hand():
    # one window of 1 x 2, steps 10, 01, 01, 11: counts 1 0, 1 1, 1 2, 2 3, so maxima 1, 1, 2, 3
    spikes = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 1]]).view(4, 1, 1, 2)
    assert pooled(spikes, 1, kernel_size=(1, 2)).flatten().tolist() == [1, 0, 1, 1]
    assert pooled(spikes, 1, "step", kernel_size=(1, 2)).flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("window", [{}, {"kernel_size": 3, "stride": 1, "padding": 1}], ids=str)
@pytest.mark.parametrize("low", [0, -1])
def test_pooled_rate_is_the_maximum_of_rates(window, low):
    spikes = torch.randint(low, 2, (12 * 3, 4, 8, 8)).float()
    out = pooled(spikes, 3, **window)
    rates = spikes.unflatten(0, (12, 3)).mean(0)
    maxima = nn.MaxPool2d(**{"kernel_size": 2, **window})(rates)
    assert torch.allclose(out.unflatten(0, (12, 3)).mean(0), maxima, atol=1e-6)
    assert set(out.unique().tolist()) == set(range(low, 2))
    steps = pooled(spikes, 3, "step", **window).unflatten(0, (12, 3)).mean(0)
    assert (steps >= maxima - 1e-6).all() and (steps > maxima + 0.01).any()


def test_state_lives_over_chunks_and_no_longer():
    spikes = torch.randint(0, 2, (12 * 3, 4, 8, 8)).float()
    whole = pooled(spikes, 3)
    assert torch.equal(pooled(spikes, 3, chunks=4), whole)
    assert torch.equal(pooled(spikes[: 5 * 3], 3), whole[: 5 * 3])  # causal
    pool = SpikingMaxPool(2)
    for _ in range(2):
        assert torch.equal(pool.advance(spikes, 3, 12, None)[0], whole)


def test_unknown_mode():
    with pytest.raises(ValueError, match="'mean'; expected 'count' or 'step'"):
        SpikingMaxPool(2, mode="mean")


class Pyramid(nn.Module):
    """A pool of the picture, one of spikes, and one called three times, as in SPPF."""

    def __init__(self, act=True):
        super().__init__()
        self.shrink, self.pool = nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1)
        self.first, self.relu = nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU()
        self.act = nn.ReLU() if act else nn.Identity()
        self.squeeze, self.mix = nn.Conv2d(6, 4, 1), nn.Conv2d(16, 8, 1)
        self.out, self.last = nn.ReLU(), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        y = [self.act(self.squeeze(self.relu(self.first(self.shrink(x)))))]
        y.extend(self.pool(y[-1]) for _ in range(3))
        return self.last(self.out(self.mix(torch.cat(y, 1))))


@pytest.mark.parametrize("act", [True, False])
def test_one_pool_called_three_times(act, pictures):
    """With an activation before it, and of a real current, as ultralytics' newest SPPF has it."""
    torch.manual_seed(0)
    network = quantised(Pyramid(act).eval(), [pictures], 256)
    pools = [name for name in network.edges if name.startswith("pool")]
    assert pools == ["pool", "pool_1", "pool_2"]
    source = copy.deepcopy(network)
    make_spiking(network)
    assert all(isinstance(network.module(name), SpikingMaxPool) for name in pools)
    # the picture is the same in every step
    assert type(network.module("shrink")) is nn.MaxPool2d
    with torch.no_grad():
        wanted, spiking = source(pictures), SpikingNetwork(network, 256, chunk=64)
        outputs = [spiking(pictures), spiking(pictures)]
    assert torch.equal(*outputs)
    assert (outputs[0] - wanted).abs().max() < 0.02 * wanted.std()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equal_to_the_quantised_network_on_constant_currents(chunk, pictures):
    """The neurons before the pool receive a constant current: their rates are exact levels."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 1)
    )
    network = quantised(network.eval(), [pictures], 8)
    with torch.no_grad():
        wanted = network(pictures)
        make_spiking(network)
        assert torch.allclose(SpikingNetwork(network, 8, chunk)(pictures), wanted, atol=1e-5)
        network.module("2").mode = "step"
        assert (SpikingNetwork(network, 8, chunk)(pictures) - wanted).abs().max() > 0.05


def test_pooling_after_the_last_activation_is_refused(pictures):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2))
    network = quantised(network.eval(), [pictures], 4)
    with pytest.raises(ConversionError, match="3: max-pooling after the last activation"):
        make_spiking(network)


def test_calibration_of_a_network_with_pools(pictures):
    """Errors that calibration reports are those of the network as it runs: no state is left."""
    torch.manual_seed(0)
    network = quantised(Pyramid().eval(), [pictures], 8)
    spiking = copy.deepcopy(network)
    make_spiking(spiking)
    for neuron in neurons(spiking):
        neuron.initial.data.zero_()
    batches = list(torch.rand(6, 4, 3, 16, 16, generator=torch.Generator().manual_seed(5)))
    options = LayerWise(steps=20, check=5, half=False)
    reports = calibrate(network, spiking, batches[:4], batches[4:5], 8, options)
    assert [r.name for r in reports] == ["relu", "act", "out", "last"]
    assert all(r.after < r.before for r in reports[:-1])
    with torch.no_grad():
        wanted = network(batches[4])
        error = SpikingNetwork(spiking, 8)(batches[4]) - wanted
    spread = torch.cat([network(b) for b in batches[:5]]).transpose(0, 1).flatten(1).std(1)
    error = (error / spread.view(1, -1, 1, 1)).square().mean().item()
    assert reports[-1].after == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("pooling", ["count", "step"])
def test_the_classic_tiny_yolo_converts(pooling):
    torch.manual_seed(0)
    network = build(read_description(CLASSIC, "n"), 20).eval()
    raw_outputs(network)
    separate = sum(type(m) is nn.MaxPool2d for m in network.modules())
    graph = quantised(network, [torch.rand(2, 3, 64, 64)], 4)
    make_spiking(graph, pooling=pooling)
    pools = graph.of((SpikingMaxPool,))
    assert len(pools) == separate == 6 and {p.module.mode for p in pools} == {pooling}
    assert all(n.folded for n in neurons(graph))
    with torch.no_grad(), seen_in(graph, SpikingMaxPool) as seen:
        SpikingNetwork(graph, 4)(torch.rand(2, 3, 64, 64))
    assert len(seen) == 6
    sent = [spikes.unique() for outputs in seen.values() for spikes in outputs]
    assert set(torch.cat(sent).tolist()) == {0, 1}
