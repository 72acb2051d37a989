"""Residual potential error, likeness to stage I and the gap over time; spikedet analyze."""

import copy
import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from spikedet.analysis.compare import Comparison, ReadoutError, Reference, cosine
from spikedet.analysis.raster import raster
from spikedet.analysis.record import Recorder
from spikedet.analysis.residual import expected_counts, periodic, residual_error
from spikedet.conversion.calibrate import calibrate
from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import estimate_thresholds
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron
from spikedet.released import released
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import LayerWise
from support.commands import BAD, command
from support.stages import quantised, spiking_copy

T = 8


def run(neuron, currents):
    """Spike counts and sums of currents [T, B, C]."""
    steps, batch, _ = currents.shape
    spikes, _ = neuron.advance(currents.flatten(0, 1), batch, steps, None)
    counts = spikes.unflatten(0, (steps, batch)).sum(0)
    return counts, currents.sum(0, dtype=torch.float64)


def by_hand(*currents, theta=1.0, initial=0.5):
    """(above, below) of one neuron."""
    neuron = IFNeuron(torch.tensor([theta]), torch.tensor([initial]))
    counts, received = run(neuron, torch.tensor(currents)[:, None, None])
    return tuple(side.item() for side in residual_error(neuron, received, counts, len(currents)))


@pytest.mark.parametrize(
    ("currents", "expected"),
    [
        ((0.5, 0.5, 0.5, 0.5), (0, 0)),
        ((2.0, 0.0, 0.0, 0.0), (0, 0)),
        ((1.0, 0.0, 0.0, -1.0), (1, 0)),  # fired, then taken back: 1 against 0
        ((0.0, 0.0, 0.0, 3.0), (0, 1)),  # too late: 1 against 3
        ((0.0, 0.0, 0.0, 1.0), (0, 0)),
        ((-1.0, 0.0, 0.0, 1.0), (0, 0)),
        ((9.0, 9.0, 9.0, 9.0), (0, 0)),  # saturated is clipped, not in error
        ((-9.0, 0.0, 0.0, 0.0), (0, 0)),
        ((9.0, 0.0, 0.0, -8.0), (1, 0)),  # 4 against 1
    ],
)
def test_residual_error_by_hand(currents, expected):
    assert by_hand(*currents) == expected


def test_the_initial_potential_belongs_to_the_quantiser():
    # 0.4 in all: from 0.5 it is not enough for a spike, from 0.7 it is
    assert by_hand(0.4, 0.0) == by_hand(0.4, 0.0, initial=0.7) == (0, 0)
    assert by_hand(0.0, 0.4, initial=0.7) == (0, 0)
    # a spike from the initial potential alone that the current takes back
    assert by_hand(0.0, -0.9, initial=1.2) == (1, 0)


@pytest.mark.parametrize("shape", [[3], [3, 4, 4]], ids=str)
def test_expected_counts_are_the_quantiser(shape):
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor([0.5, 1.0, 3.0])
    initial = theta.view(3, *[1] * (len(shape) - 1)) * (
        torch.rand(shape, generator=generator) * 3 - 1
    )
    neuron = IFNeuron(theta, initial)
    received = torch.randn(16, 3, 4, 4, generator=generator).double() * 2 * T
    counts = expected_counts(neuron, received, T)
    theta, start = theta.view(3, 1, 1), initial.view(3, *initial.shape[1:] or (1, 1))
    expected = ((received + start) / theta).floor().clamp(0, T)
    assert (counts != expected).float().mean() < 1e-3  # rounding at the boundaries
    assert counts.unique().numel() == T + 1
    assert set(vars(neuron)["_buffers"]) == {"threshold"}  # nothing of it is left


def test_constant_currents_have_no_error_and_late_ones_have():
    answers = {answer.course: answer for answer in periodic(T, count=200)}
    wrong = {name: (a.quantiser != a.rate).float().mean() for name, a in answers.items()}
    assert wrong["constant"] == wrong["every second step"] == wrong["first half"] == 0
    late = answers["last half"]
    assert (late.rate <= late.quantiser).all() and late.rate.max() == 0.5
    assert wrong["last half"] > 0.2 and wrong["sine 1"] > 0.2
    assert all(torch.equal(a.mean, late.mean) for a in answers.values())
    # one period: the first half fires what the second takes back
    assert (answers["sine 1"].rate >= answers["sine 1"].quantiser).float().mean() > 0.9


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_currents_of_any_T_have_the_same_mean(steps):
    from spikedet.analysis.residual import _courses

    mean = torch.tensor([-0.2, 0.3, 1.1])
    for name, current in _courses(mean, steps).items():
        assert current.shape == (steps, 3), name
        assert torch.allclose(current.mean(0), mean, atol=1e-6), name


@pytest.fixture
def stages(small_net, pictures):
    """(float, stage I, spiking with copied weights), thresholds estimated."""
    source = record(small_net, pictures)
    fold_batch_norm(source)
    stage1 = prepare(copy.deepcopy(source), pictures)
    quantise(stage1, estimate_thresholds(stage1, [pictures], T), T)
    stage1.eval()
    spiking = copy.deepcopy(stage1)
    make_spiking(spiking)
    return source, stage1, spiking


def compared(stages, batches, steps=T):
    source, stage1, spiking = stages
    references = [Reference(graph) for graph in (stage1, source)]
    comparison = Comparison(SpikingNetwork(spiking, T), steps)
    for batch in batches:
        for reference in references:
            reference.run(batch)
        comparison.add(batch, *references)
    return comparison


def test_recorder_sums_what_the_neurons_received_and_sent(stages, pictures):
    spiking = SpikingNetwork(stages[2], T)
    with torch.no_grad():
        expected = spiking(pictures)
        recorder = Recorder(spiking)
        assert list(recorder.run(pictures, T)) == list(range(1, T + 1))
        assert torch.allclose(recorder.read[0], expected.double(), atol=1e-5)
        assert recorder.readouts == ["last"]
        first = recorder.neurons[0]
        current = stages[1].module("first")(pictures)
    names = [layer.name for layer in recorder.neurons]
    assert names == ["relu", "relu_1", "relu_2"]
    assert torch.allclose(first.received / T, current.double(), atol=1e-5)
    assert torch.equal(first.sent, first.fired) and first.sent.sum() > 0


def test_a_raster_holds_who_fires_most_at_a_place(stages, pictures):
    spiking = SpikingNetwork(stages[2], T)
    rows = raster(spiking, pictures, T, place=(0.99, 0.0), neurons=3)
    recorder = Recorder(spiking)
    list(recorder.run(pictures[:1], T))
    for layer in recorder.neurons:
        own = [row for row in rows if row["layer"] == layer.name]
        fired = layer.fired[0][:, -1, 0]
        assert {(row["row"], row["column"]) for row in own} == {(layer.fired.shape[2] - 1, 0)}
        assert len(own) == 3 * T and [r["T"] for r in own[:T]] == list(range(1, T + 1))
        sums = {}
        for row in own:
            sums[row["channel"]] = sums.get(row["channel"], 0) + row["spike"]
        assert sums == {c: fired[c].item() for c in sums}
        assert sorted(sums.values()) == fired.sort().values[-3:].tolist()


def test_a_raster_of_sequences():
    """Layers [C, L] have positions, those [C] have none."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    series = torch.rand(3, 2, 8)
    spiking = SpikingNetwork(spiking_copy(quantised(network.eval(), [series], T)), T)
    rows = raster(spiking, series, T, place=(0.0, 0.99), neurons=9)
    wide, flat = ([r for r in rows if r["layer"] == name] for name in ("1", "4"))
    assert {row["channel"] for row in wide} == set(range(5)) and len(wide) == 5 * T
    assert {(row["row"], row["column"]) for row in wide} == {(None, 5)}
    assert {(row["row"], row["column"]) for row in flat} == {(None, None)} and len(flat) == 4 * T
    recorder = Recorder(spiking)
    list(recorder.run(series[:1], T))
    fired = recorder.neurons[0].fired[0][:, 5]
    for channel in range(5):
        assert sum(r["spike"] for r in wide if r["channel"] == channel) == fired[channel]


def test_the_first_layer_is_the_quantiser(stages, pictures):
    """Its current is constant: no residual error, and rates equal to the stage-I activations."""
    comparison = compared(stages, [pictures])
    first, *others = comparison.layers.values()
    assert first.neurons == 8 * 8 * 8 and len(first.above) == len(pictures)
    assert max(first.above + first.below) < 0.003 and max(first.error) < 1e-4
    assert min(first.cosine) > 0.9999
    for layer in others:
        assert min(layer.above) + min(layer.below) > 0 and max(layer.cosine) < 0.9999
        assert min(layer.cosine) > 0.5


def test_results_do_not_depend_on_batches(stages, pictures):
    whole, parts = (compared(stages, batches) for batches in ([pictures], pictures.split([3, 1])))
    for name, layer in whole.layers.items():
        for key in ("above", "below", "cosine", "error"):
            other = getattr(parts.layers[name], key)
            assert getattr(layer, key) == pytest.approx(other, abs=2e-3), (name, key)
    assert whole.to_float[T].mean() == pytest.approx(parts.to_float[T].mean(), rel=0.02)


def test_one_run_gives_the_gap_of_every_T(stages, pictures):
    long, short = compared(stages, [pictures]), compared(stages, [pictures], steps=3)
    for t in (1, 2, 3):
        assert long.to_stage1[t].mean() == pytest.approx(short.to_stage1[t].mean(), rel=1e-6)
    assert list(long.to_float) == list(range(1, T + 1))
    assert long.to_float[T].mean() < 0.5 * long.to_float[1].mean()


def test_layer_errors_are_those_of_calibration(stages, pictures):
    """Before calibration the report of each layer is the error of the copied network."""
    _, stage1, spiking = stages
    before = compared(stages, [pictures])
    options = LayerWise(coarse=False, fine=False)
    reports = calibrate(stage1, copy.deepcopy(spiking), [pictures], [pictures], T, options)
    errors = [sum(layer.error) / len(layer.error) for layer in before.layers.values()]
    errors += before.to_stage1[T].each()
    assert errors == pytest.approx([report.before for report in reports], rel=1e-2)


def test_readout_error_by_hand():
    error = ReadoutError()
    wanted = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])  # variances 4 and 3
    outputs = wanted + torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 3.0]])
    for part in ([0, 1], [2]):
        error.add([outputs[part]], [wanted[part]])
    assert error.each() == pytest.approx([(6 / 3 / 4 + 9 / 3 / 3) / 2])
    assert error.mean() == error.each()[0]


def test_cosine():
    a = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    b = torch.tensor([[[4.0, 3.0]], [[0.0, 2.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
    assert cosine(a, b).tolist() == pytest.approx([24 / 25, 0, 1, 0])


def test_thresholds_one_a_channel_are_told_apart(stages, pictures):
    """Stage I with unlike thresholds: the first layer still is the quantiser."""
    _, stage1, _ = stages
    quantiser = stage1.module("relu")
    quantiser.threshold.data = quantiser.threshold.data * torch.linspace(0.5, 1.5, 8)
    spiking = copy.deepcopy(stage1)
    make_spiking(spiking)
    first, *_ = compared((stages[0], stage1, spiking), [pictures]).layers.values()
    assert max(first.above + first.below) < 0.003 and max(first.error) < 1e-4
    assert min(first.cosine) > 0.9999


# The command


needs_weights = pytest.mark.skipif(not released("snn", 8), reason="no released weights")


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@needs_weights
def test_command_with_the_released_weights(devkit, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["--data", devkit, "--split", "VOC2007:val", "--T", 8, "--limit", 1]
    words += ["--all", "--out", out]
    assert command(monkeypatch, "analyze", *words) == 0
    names = ("residual", "similarity", "layers", "periodic", "gap", "rates", "raster")
    for name in names:
        rows = table(out / f"{name}.csv")
        assert {int(row["T"]) for row in rows} == (
            set(range(1, 9)) if name in ("gap", "raster") else {8}
        )
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    residual = table(out / "residual.csv")
    alone, both = (f"{name}, correcting" for name in ("stage I alone", "stages I + II"))
    assert {row["network"] for row in residual} == {alone, both}
    for row in residual:
        share, above, below = (float(row[key]) for key in ("share", "above", "below"))
        assert share == pytest.approx(above + below) and 0 <= share <= float(row["share_max"]) < 1
    after = [float(r["cosine"]) for r in table(out / "similarity.csv") if "II" in r["network"]]
    assert min(after) > 0.4 and max(after) <= 1 and len(after) == 20, after
    assert len(table(out / "layers.csv")) == 24  # four readouts
    rates = table(out / "rates.csv")
    assert len(rates) == 40 and all(0 <= float(row["rate"]) <= 1 for row in rates)
    errors = {r["layer"]: r["error"] for r in rates if r["network"] == both}
    assert {r["layer"]: r["after"] for r in table(out / "layers.csv")}.items() > errors.items()
    assert {row["spike"] for row in table(out / "raster.csv")} == {"0", "1"}
    printed = capsys.readouterr().out
    assert "T=8, weights of T=8: 1 picture of VOC2007:val" in printed
    assert f"{both} to stage I" in printed


@needs_weights
def test_what_needs_a_missing_network_is_left_out(devkit, tmp_path, monkeypatch, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text("VOC2007/2\n")
    weights = released("snn", 8)
    words = ["--data", devkit, "--split", "VOC2007:val", "--T", 2, "--weights", weights]
    words += ["--tuning", ids, "--out", tmp_path / "out"]
    assert command(monkeypatch, "analyze", *words) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.csv")) == [
        "periodic.csv", "raster.csv", "rates.csv", "residual.csv",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "T=2, weights of T=8: 1 picture of" in printed
    assert "gap: left out, because it needs --stage1 or --float" in printed


@needs_weights
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        *BAD,
        (["--weights", "SNN", "--stage1", "SNN"], 4, "these are snn weights; expected qc weights"),
        (["--weights", "SNN", "--float", "SNN"], 4, "expected float weights"),
        (["--tuning", "gone.txt"], 3, "gone.txt: list of tuning pictures"),
        (["--tuning", "EMPTY"], 3, "0 of the 2 pictures are tuning pictures"),
    ],
)
def test_bad_arguments(devkit, tmp_path, monkeypatch, capsys, words, code, message):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    files = {"FLOAT": released("float"), "SNN": released("snn", 8)}
    words = [{**files, "EMPTY": tmp_path / "empty.txt"}.get(word, word) for word in words]
    always = ["--data", devkit, "--split", "VOC2007:val", "--out", tmp_path / "out"]
    assert command(monkeypatch, "analyze", *always, *words) == code
    assert message in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()


@needs_weights
def test_networks_of_two_descriptions_are_refused(devkit, tmp_path, monkeypatch, capsys):
    from spikedet.checkpoint import load, save

    other = load(released("qc", 8))
    other.model = {**other.model, "scale": "n"}
    save(other, tmp_path / "other.safetensors")
    words = ["--data", devkit, "--split", "VOC2007:val", "--out", tmp_path / "out"]
    words += ["--stage1", tmp_path / "other.safetensors", "--T", 8, "--all"]
    assert command(monkeypatch, "analyze", *words) == 4
    assert "other.safetensors: its network description differs" in capsys.readouterr().err
