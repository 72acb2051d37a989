"""Synaptic operations against counts made by hand and by brute force; spikedet energy."""

import json
from itertools import product

import pytest
import torch
from torch import nn

from spikedet.analysis.estimate import EnergyEstimate
from spikedet.analysis.operations import (
    measure_cost,
    multiply_accumulates,
    picojoules,
)
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron
from spikedet.released import released
from spikedet.runtime.network import SpikingNetwork
from spikedet.synapses import _adaptive_windows, fan_out
from support.commands import BAD, command


def convert(network, example, T, threshold=1.0):
    """Spiking network with one threshold everywhere."""
    graph = record(network.eval(), example)
    fold_batch_norm(graph)
    quantise(graph, {node.name: torch.tensor(threshold) for node in graph.of(ACTIVATIONS)}, T)
    make_spiking(graph.eval())
    return SpikingNetwork(graph, T)


def outer(rows):
    return torch.tensor(rows)[:, None] * torch.tensor(rows)


@pytest.mark.parametrize(
    ("layer", "size", "reads"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), 3, outer([2, 3, 2])),
        (nn.Conv2d(1, 5, 3, padding=1), 3, 5 * outer([2, 3, 2])),
        (nn.Conv2d(1, 1, 3), 4, outer([1, 2, 2, 1])),
        (nn.Conv2d(1, 1, 3, 2, 1), 4, outer([1, 2, 1, 1])),  # outputs centred on 0 and 2
        (nn.Conv2d(1, 1, 2, 2), 5, outer([1, 1, 1, 1, 0])),  # the last is left over
        (nn.Conv2d(1, 1, 3, padding=2, dilation=2), 5, outer([2, 2, 3, 2, 2])),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), 3, 3 * outer([2, 3, 2])),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 3, outer([2, 3, 2])),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), 3, outer([3, 3, 3])),
        (nn.Conv2d(1, 1, 3, padding="same"), 3, outer([2, 3, 2])),
    ],
    ids=str,
)
def test_fan_out_by_hand(layer, size, reads):
    fan = fan_out(layer, torch.Size([7, layer.in_channels, size, size]))
    assert fan.tolist() == reads.tolist()


def test_fan_out_of_other_layers():
    with torch.inference_mode():
        assert fan_out(nn.Conv2d(1, 1, 3), torch.Size([1, 1, 3, 3])).tolist() == [[1] * 3] * 3
    assert fan_out(nn.Conv1d(2, 3, 3, 2, 1), torch.Size([1, 2, 4])).tolist() == [3, 6, 3, 3]
    assert fan_out(nn.Linear(4, 9), torch.Size([1, 4])).item() == 9


@pytest.fixture
def spot():
    """[1, 1, 3, 3]: a corner that fires in every step, a centre that fires in every second."""
    picture = torch.zeros(1, 1, 3, 3)
    picture[..., 0, 0], picture[..., 1, 1] = 1.0, 0.5
    return picture


def passing(*layers):
    """The picture's own values into neurons, then `layers`."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), *layers)
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    return network


def test_a_small_network_by_hand(spot):
    network = passing(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 5, 1))
    cost = measure_cost(convert(network, spot, 2), [spot], 2)
    # two steps: the corner fires twice (1.5, 1.5), the centre once (1.0, 0.5)
    assert cost.neurons == {"1": 9, "3": 18}
    assert cost.rates["1"].tolist() == [3 / 18]
    assert cost.accumulates["2"].tolist() == [(2 * 4 + 9) * 2]
    assert cost.multiplies["2"].tolist() == [0]
    # analog: nine pixels once, and 2 x 5 weights at nine places once; zeros count as well
    assert cost.multiplies["0"].tolist() == [9]
    assert cost.multiplies["4"].tolist() == [90]
    assert cost.accumulates["0"].tolist() == cost.accumulates["4"].tolist() == [0]
    # 3 x 3 places with 2, 3, 2 rows and columns read: 49 weights instead of 81, twice
    assert cost.float_multiplies == {"0": 9, "2": 98, "4": 90}


def test_a_spike_counts_at_every_copy_and_in_every_pooling_window(spot):
    for between, expected in [
        (nn.Upsample(scale_factor=2, mode="nearest"), 3 * 4),
        (nn.AvgPool2d(3, 2, 1), 2 * 1 + 1 * 4),  # windows centred on corners: overlap at the centre
        (nn.AdaptiveAvgPool2d(1), 3),
        (nn.AdaptiveAvgPool2d(2), 2 * 1 + 1 * 4),  # rows 0-1 and 1-2
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), 2 * 4 + 9),
        (nn.AvgPool2d(3, 1, 1, divisor_override=5), 2 * 4 + 9),
    ]:
        network = passing(between, nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
        cost = measure_cost(convert(network, spot, 2), [spot], 2)
        assert cost.accumulates["3"].tolist() == [expected], between
        assert cost.multiplies["3"].tolist() == [0]


def test_a_spike_counts_in_every_window_along_a_line():
    line = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    for between, expected in [
        (nn.AvgPool1d(3, 1, 1), 2 * 2 + 3),  # the first in two windows, the second in three
        (nn.AvgPool1d(3, 1, 1, count_include_pad=False), 2 * 2 + 3),
        (nn.AvgPool1d(2), 2 + 1),
        (nn.AvgPool1d(3, 2, ceil_mode=True), 2 + 1),
        (nn.AdaptiveAvgPool1d(3), 2 + 2 * 1),  # places 0-1, 1-2, 2-3
    ]:
        network = nn.Sequential(
            nn.Conv1d(1, 1, 1),
            nn.ReLU(),
            between,
            nn.Conv1d(1, 1, 1),
            nn.ReLU(),
            nn.Conv1d(1, 1, 1),
        )
        for layer in (network[0], network[3]):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        cost = measure_cost(convert(network, line, 2), [line], 2)
        assert cost.accumulates["3"].tolist() == [expected], between
        assert cost.multiplies["3"].tolist() == [0]


def test_windows_of_adaptive_pooling_are_those_of_torch():
    for size, wanted in product(range(1, 9), range(1, 9)):
        pool = nn.AdaptiveAvgPool2d(wanted)
        place = torch.rand(1, 1, size, size, requires_grad=True)
        first = pool(place)[0, 0, wanted // 2, 0]
        (part,) = torch.autograd.grad(first, place)
        windows = _adaptive_windows((size, size), (wanted, wanted))
        assert windows[wanted // 2, 0].item() == (part > 0).sum().item()


class Shortcut(nn.Module):
    """A residual block; `mean` ends it by a functional mean over places."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = passing()
        self.block = nn.Conv2d(1, 1, 3, padding=1)
        self.after = nn.ReLU()
        self.fc = nn.Linear(1, 4)
        self.relu2, self.last = nn.ReLU(), nn.Linear(4, 3)
        nn.init.zeros_(self.block.weight)
        nn.init.zeros_(self.block.bias)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.after(self.block(x) + x)
        return self.last(self.relu2(self.fc(x.mean((2, 3)))))


def test_a_shortcut_is_one_accumulate_and_a_mean_is_a_sum(spot):
    cost = measure_cost(convert(Shortcut(), spot, 2), [spot], 2)
    assert cost.accumulates["block"].tolist() == [2 * 4 + 9]
    assert cost.accumulates["after"].tolist() == [3]
    # the block adds nothing, so the three spikes pass on to four outputs each
    assert cost.rates["after"].tolist() == [3 / 18]
    assert cost.accumulates["fc"].tolist() == [3 * 4]
    assert cost.multiplies["last"].tolist() == [12]


def test_layers_without_a_neuron_between_multiply_in_every_step(spot):
    network = passing(
        nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1)
    )
    cost = measure_cost(convert(network, spot, 2), [spot], 2)
    assert cost.accumulates["2"].tolist() == [3 * 2] and cost.multiplies["2"].tolist() == [0]
    assert cost.accumulates["3"].tolist() == [0]
    assert cost.multiplies["3"].tolist() == [2 * 49 * 2 * 3]


def test_a_current_that_is_pooled_is_none_that_spikes_carry(spot):
    network = passing(
        nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Conv2d(2, 5, 1)
    )
    cost = measure_cost(convert(network, spot, 2), [spot], 2)
    assert {name: n.tolist() for name, n in cost.accumulates.items() if n.any()} == {"2": [34]}


def test_pooled_spikes_are_spikes(spot):
    network = passing(nn.MaxPool2d(3, 1, 1), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    cost = measure_cost(convert(network, spot, 2), [spot], 2)
    # every window holds the centre, which fires first; four hold the corner, which fires again
    assert cost.accumulates["3"].tolist() == [9 + 4] and cost.multiplies["3"].tolist() == [0]


class HalfReal(nn.Module):
    """Spikes and a real current side by side in the input of one layer, pooled or not."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool
        self.first, self.relu = passing()
        self.linear = nn.Conv2d(1, 1, 1)
        self.mix, self.relu2, self.last = nn.Conv2d(2, 1, 3, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        x = self.relu(self.first(x))
        pair = self.pool(torch.cat([x, x + self.linear(x)], 1))
        return self.last(self.relu2(self.mix(pair)))


@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(1)])
def test_spikes_accumulate_and_real_channels_of_the_same_layer_multiply(pool, spot):
    cost = measure_cost(convert(HalfReal(pool), spot, 2), [spot], 2)
    assert cost.accumulates["linear"].tolist() == [3]
    assert cost.accumulates["mix"].tolist() == [2 * 4 + 9]
    assert cost.multiplies["mix"].tolist() == [2 * 49]


class Carrying(IFNeuron):
    """Neurons whose spikes are negative and carry a threshold."""

    def scale_spikes(self, spikes):
        return spikes * -2.5


def test_whatever_a_spike_carries_is_one_spike(spot):
    network = passing(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 5, 1))
    spiking = convert(network, spot, 2)
    spiking.graph.module("1").__class__ = Carrying
    cost = measure_cost(spiking, [spot], 2)
    assert cost.rates["1"].tolist() == [3 / 18] and cost.accumulates["2"].tolist() == [34]


class Mixed(nn.Module):
    """Groups, dilation, stride, two branches, a slice, up-sampling and concatenation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(8, 12, (4, 2), 2, (1, 0), groups=4)
        self.dilated = nn.Conv2d(8, 6, 3, padding=(2, 1), dilation=(2, 1))
        self.up = nn.Upsample(scale_factor=(2, 2), mode="nearest")
        self.mix = nn.Conv2d(14, 6, 3, 1, 1, groups=2)
        self.last = nn.Conv2d(6, 2, 1)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(4))

    def forward(self, x):
        x = self.relus[0](self.first(x))
        deep = self.up(self.relus[1](self.grouped(x)))
        pair = torch.cat([deep[:, :8], self.relus[2](self.dilated(x))], 1)
        return self.last(self.relus[3](self.mix(pair)))


def brute_force(layer, taken):
    """Weights that meet a non-zero input [B, C, H, W], each place of the kernel by itself."""
    batch, _, height, width = taken.shape
    (kh, kw), (sh, sw) = layer.kernel_size, layer.stride
    (ph, pw), (dh, dw) = layer.padding, layer.dilation
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    counts = torch.zeros(batch)
    places = product(range(rows), range(columns), range(kh), range(kw))
    for row, column, i, j in places:
        y, x = row * sh - ph + i * dh, column * sw - pw + j * dw
        if 0 <= y < height and 0 <= x < width:
            counts += (taken[:, :, y, x] != 0).sum(1) * (layer.out_channels // layer.groups)
    return counts


@pytest.mark.parametrize("mixed", [True, False])
def test_brute_force_on_a_random_network(mixed, small_net, pictures):
    torch.manual_seed(0)
    T = 3
    spiking = convert(Mixed() if mixed else small_net, pictures, T, threshold=0.4)
    chosen = {node.module: node.name for node in spiking.graph.of((nn.Conv2d,))}
    inputs = {module: [] for module in chosen}
    handles = [m.register_forward_hook(lambda m, x, _: inputs[m].append(x[0])) for m in chosen]
    list(spiking.run(pictures, T))
    for handle in handles:
        handle.remove()
    cost = measure_cost(spiking, [pictures], T)
    assert len(chosen) == (5 if mixed else 4)
    for module, taken in inputs.items():
        name = chosen[module]
        every = brute_force(module, torch.ones_like(taken[0])).tolist()
        assert [cost.float_multiplies[name]] * len(pictures) == every
        if name in ("first", "last"):
            assert cost.multiplies[name].tolist() == every
            assert not cost.accumulates[name].any()
        else:
            counted = sum(brute_force(module, x) for x in taken)
            assert (counted > 0).all()
            assert cost.accumulates[name].tolist() == counted.tolist()
            assert not cost.multiplies[name].any()


def test_every_picture_for_itself_and_rates_as_the_network_counts_them(small_net, pictures):
    spiking = convert(small_net, pictures, 5, threshold=0.5)
    with spiking.spike_rates() as rates:
        spiking(pictures)
    expected = rates.mean(5)
    together = measure_cost(spiking, [pictures], 5)
    apart = measure_cost(spiking, [pictures[:3], pictures[3:]], 5)
    assert together.rate().mean().item() == pytest.approx(expected)
    for name in ("rates", "accumulates", "multiplies"):
        first, second = getattr(together, name), getattr(apart, name)
        assert {k: v.tolist() for k, v in first.items()} == {
            k: v.tolist() for k, v in second.items()
        }
    assert together.accumulates["mix"].unique().numel() > 1


def test_the_float_network_has_the_operations_of_its_layers(small_net, pictures):
    operations = multiply_accumulates(record(small_net, pictures), pictures[:1])
    cost = measure_cost(convert(small_net, pictures, 1), [pictures], 1)
    assert list(operations.items()) == list(cost.float_multiplies.items())
    # 3x3, stride 2, padding 1 on 16: 8 outputs a row of which one reads two columns
    assert operations["first"] == 8 * 3 * 23**2


def test_energy():
    assert picojoules(10, 2) == pytest.approx(10 * 0.9 + 2 * 4.6)
    assert picojoules(10, 2, 1.0, 3.0) == 16


# The command


@pytest.mark.skipif(not released("snn", 8), reason="no released weights")
def test_command(devkit, tmp_path, monkeypatch, capsys):
    path = tmp_path / "energy.json"
    reference = released("float")
    words = ["--data", devkit, "--T", 8, "--json", path, "--float", reference]
    assert command(monkeypatch, "energy", *words) == 0
    result = json.loads(path.read_text())
    assert (result["T"], result["images"], result["weights_T"]) == (8, 2, 8)
    totals = result["totals"]
    layers = result["operations"].values()
    assert totals["float"]["multiply_accumulates"] == sum(
        layer["float_multiply_accumulates"] for layer in layers
    )
    accumulates = sum(layer["accumulates"]["mean"] for layer in layers)
    multiplies = sum(layer["multiply_accumulates"]["mean"] for layer in layers)
    assert totals["ours"]["pJ"]["mean"] == pytest.approx(0.9 * accumulates + 4.6 * multiplies)
    assert totals["paper"]["pJ"]["mean"] == pytest.approx(0.9 * (accumulates + multiplies))
    assert 0.02 < totals["paper"]["ratio"]["mean"] < totals["ours"]["ratio"]["mean"] < 0.5
    assert result["totals"]["ours"]["pJ"]["std"] > 0 and 0 < result["spike_rate"]["mean"] < 0.5
    printed = capsys.readouterr().out
    assert "ours     T=8" in printed and "paper's  T=8" in printed and "mJ" in printed
    words += ["--limit", 1, "--pj-ac", 1.8, "--pj-mac", 9.2]
    assert command(monkeypatch, "energy", *words) == 0
    dearer = json.loads(path.read_text())
    assert dearer["totals"]["ours"]["pJ"]["std"] is None
    assert dearer["totals"]["float"]["pJ"] == pytest.approx(2 * totals["float"]["pJ"])


@pytest.mark.skipif(not released("snn", 8), reason="no released weights")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        *BAD,
        (["--float", "SNN"], 4, "these are snn weights; expected float weights"),
        (["--pj-ac", "0"], 2, "'0' is not a number above 0"),
        (["--pj-mac", "much"], 2, "'much' is not a number above 0"),
    ],
)
def test_bad_arguments(devkit, monkeypatch, capsys, words, code, message):
    files = {"FLOAT": released("float"), "SNN": released("snn", 8)}
    words = [files.get(word, word) for word in words]
    assert command(monkeypatch, "energy", "--data", devkit, *words) == code
    assert message in capsys.readouterr().err


def test_energy_from_firing_rates_is_near_the_exact_count(small_net, pictures):
    """Exact for the picture that it was made with, near for others, whatever T."""
    spiking = convert(small_net, pictures[:1], 4, threshold=0.5)
    estimate = EnergyEstimate(spiking, pictures[:1], 4)
    for number, T, within in ((0, 4, 1e-6), (1, 4, 0.05), (2, 8, 0.05), (3, 2, 0.05)):
        picture = pictures[number : number + 1] * (1 - number / 10)
        with spiking.spike_rates() as rates:
            spiking(picture, T)
        cost = measure_cost(spiking, [picture], T)
        exact = sum(picojoules(cost.accumulates[n], cost.multiplies[n]) for n in cost.accumulates)
        assert estimate.picojoules(rates.by_layer(), T) == pytest.approx(exact.item(), rel=within)
        assert estimate.float_pj == pytest.approx(4.6 * sum(cost.float_multiplies.values()))
