"""The public face: convert, save, load, any-time readout, firing rates, forms of detections."""

import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spikedet
from spikedet import methods
from spikedet.conversion.copied import expect_faithful, spiking_copy
from spikedet.conversion.prepare import prepare
from spikedet.errors import ConversionError, DataError, UsageError, WeightsError
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import quantise
from spikedet.settings import EndToEnd, LayerWise, Plan, StageOne
from spikedet.stages.calibration import Calibration
from spikedet.stages.conversion import Conversion


class Tutorial(nn.Module):
    """PyTorch's MNIST tutorial, narrower: functional calls, dropout, a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(128, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(self.dropout(torch.flatten(x, 1))))
        return {"logits": self.fc2(x)}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Tutorial()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(8, 1, 12, 12, generator=generator), torch.arange(8) % 4) for _ in range(4)]


@pytest.fixture(scope="module")
def snn(network, batches):
    return spikedet.convert(network, batches, T=16, layer_steps=15, progress=False)


def distance(outputs, wanted):
    return ((outputs - wanted).abs().mean() / wanted.std()).item()


def test_the_answer_is_that_of_the_network_in_its_form(network, snn, batches):
    x = batches[0][0]
    network.eval()
    wanted = network(x)["logits"]
    output = snn(x)
    assert set(output) == {"logits"} and not output["logits"].requires_grad
    assert distance(output["logits"], wanted) < 0.15
    copied = spikedet.convert(network, batches, T=512, method="copy", progress=False)
    assert distance(copied(x)["logits"], wanted) < 0.03


def test_the_network_is_left_as_it_was(network, batches):
    network.train()
    network.fc1.weight.grad = torch.ones_like(network.fc1.weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    spikedet.convert(
        network, batches, T=2, loss=lambda y, label: F.cross_entropy(y["logits"], label),
        epochs=1, end_to_end=2, layer_steps=2, progress=False,
    )  # fmt: skip
    assert network.training and network.norm.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert torch.equal(network.fc1.weight.grad, torch.ones_like(network.fc1.weight))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not network._forward_hooks


def test_a_seed_gives_the_same_network(network, batches):
    words = {"T": 4, "layer_steps": 3, "progress": False}
    one, two = (spikedet.convert(network, batches, seed=3, **words) for _ in range(2))
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def quadrants(count, generator):
    """Pictures with one bright quadrant, and which it is."""
    pictures = torch.rand(count, 1, 12, 12, generator=generator) * 0.5
    labels = torch.randint(4, (count,), generator=generator)
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        y, x = 6 * (label // 2), 6 * (label % 2)
        picture[0, y : y + 6, x : x + 6] += 0.5 * torch.rand((), generator=generator)
    return pictures, labels


def test_both_stages_come_nearer_to_a_trained_network_than_copied_weights():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = Tutorial()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(100):
        pictures, labels = quadrants(32, generator)
        optimiser.zero_grad()
        F.cross_entropy(network(pictures)["logits"], labels).backward()
        optimiser.step()
    network.eval()
    seen = [quadrants(32, generator) for _ in range(10)]
    unseen, _ = quadrants(256, generator)
    wanted = network(unseen)["logits"].detach()
    copied = spikedet.convert(network, seen, T=2, method="copy", progress=False)
    trained = spikedet.convert(
        network, seen, T=2, loss=lambda y, label: F.cross_entropy(y["logits"], label), epochs=6,
        end_to_end=100, progress=False,
    )  # fmt: skip
    before, after = (distance(snn(unseen)["logits"], wanted) for snn in (copied, trained))
    assert after < 0.9 * before  # 0.72 with one thread and with two; at T = 4 it was chance
    assert trained.origin["method"] == "two-stage" and trained.origin["end_to_end_steps"] == 100


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_every_method_is_found_by_its_name(network, batches, method):
    recipe, words = methods.METHODS[method], {"method": method, "progress": False}
    if recipe.finetuned:
        words |= {"loss": lambda y, label: F.cross_entropy(y["logits"], label), "epochs": 1}
    words |= {"layer_steps": 2} if recipe.fine else {}
    spiking = spikedet.convert(network, batches, T=3, end_to_end=0, **words)
    assert spiking.T == 3 and spiking.origin["method"] == method
    assert spiking(batches[0][0])["logits"].isfinite().all()


def test_anytime_readout_is_that_of_runs_of_each_length(snn, batches):
    x = batches[0][0]
    steps = list(snn.anytime(x))
    assert [t for t, _ in steps] == list(range(1, 17))
    for t, output in steps:
        torch.testing.assert_close(output["logits"], snn(x, t)["logits"], rtol=1e-5, atol=1e-6)


def test_rates_are_the_spikes_that_were_sent(snn, batches):
    x = batches[0][0]
    with snn.spike_rates() as rates:
        snn(x)
    snn(x)  # is not counted any more
    layers = rates.by_layer()
    assert list(layers) == ["relu", "relu_1", "relu_2"]
    sizes = [6 * 10 * 10, 8 * 8 * 8, 16]
    total = sum(layers[name] * size for name, size in zip(layers, sizes, strict=True))
    assert rates.mean() == pytest.approx(total / sum(sizes))
    assert 0 < rates.mean(1) < 1 and rates.mean(16) == pytest.approx(rates.mean())
    with pytest.raises(UsageError, match="rates of 17 steps; expected 1 to 16"):
        rates.mean(17)
    with snn.spike_rates() as none, pytest.raises(UsageError, match="no pass was counted"):
        none.mean()


def test_a_file_needs_neither_the_class_nor_ultralytics(snn, batches, tmp_path):
    path = tmp_path / "own.safetensors"
    spikedet.save(snn, path)
    loaded = spikedet.load(path, engine="torch")
    x = batches[0][0]
    assert torch.equal(loaded(x)["logits"], snn(x)["logits"])
    assert (loaded.T, loaded.origin) == (16, snn.origin)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch\n"
        "class No:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('ultralytics', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import spikedet\n"
        f"snn = spikedet.load({str(path)!r}, engine='torch')\n"
        f"y = snn(torch.load({str(tmp_path / 'x.pt')!r}))['logits']\n"
        "assert not any(m.startswith('spikedet.conversion') for m in sys.modules)\n"
        "print(y.double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(snn(x)["logits"].double().sum().item(), abs=1e-5)


def test_half_precision_and_another_number_of_steps(snn, batches, tmp_path):
    path = tmp_path / "own.safetensors"
    spikedet.save(snn, path, half=True)
    loaded = spikedet.load(path, T=3)
    assert loaded.T == 3
    assert distance(loaded(batches[0][0])["logits"], snn(batches[0][0], 3)["logits"]) < 0.1


def test_several_threads_get_the_answers_of_one(snn, batches):
    inputs = [batches[i % 4][0][: 1 + i % 5] for i in range(16)]
    wanted = [snn(x)["logits"] for x in inputs]
    answers: dict[int, torch.Tensor] = {}

    def work(first):
        for i in range(first, 16, 4):
            answers[i] = snn(inputs[i])["logits"]

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in enumerate(wanted):
        torch.testing.assert_close(answers[i], answer, rtol=1e-5, atol=1e-6)


def test_two_passes_of_one_network_do_not_mix(snn, batches):
    x, y = batches[0][0], batches[1][0]
    one, two = snn.anytime(x, chunk=8), snn.anytime(y, chunk=8)
    for (_, a), (_, b) in zip(one, two, strict=True):
        last = a["logits"], b["logits"]
    torch.testing.assert_close(last[0], snn(x)["logits"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last[1], snn(y)["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"T": 0}, UsageError, "T is .*; expected an integer from 1 to 10000"),
        ({"T": 2.5}, UsageError, "T is 2.5; expected"),
        ({"seed": -1}, UsageError, "seed is -1; expected an integer between 0 and 2147483647"),
        ({"seed": (1 << 32) + 5}, UsageError, "seed is 4294967301; expected an integer"),
        ({"method": "best"}, UsageError, "method 'best'; expected one of copy"),
        ({"neuron": "lif"}, UsageError, "neuron 'lif'; expected one of neuron"),
        ({"epochs": 2, "method": "copy"}, UsageError, "has no stage I; leave epochs out"),
        ({"loss": F.cross_entropy}, UsageError, "has no effect without training"),
        ({"method": "stage1"}, UsageError, "fine-tunes the network; expected epochs of 1 or more"),
        ({"epochs": 1, "distill": 0.0}, UsageError, "and a loss"),
        ({"device": "cuda:7"}, UsageError, "cuda:7"),
        ({"batches": iter([])}, DataError, "can be iterated only once"),
        ({"batches": []}, DataError, "no batches; expected two pictures or more"),
        ({"batches": torch.rand(4, 1, 12, 12)}, DataError, "batches is one tensor"),
        ({"batches": [torch.rand(1, 1, 12, 12)]}, DataError, "one picture; expected two or more"),
        ({"batches": ["text"]}, DataError, "a batch without an input"),
        ({"network": nn.Sequential(nn.Conv2d(1, 2, 3))}, ConversionError, "no activation to"),
        ({"network": nn.Sequential(nn.ReLU())}, ConversionError, "no weights; there is nothing"),
        ({"network": "own.pt"}, UsageError, "network is of type str; expected a torch.nn.Module"),
        ({"batch": 0}, UsageError, "batch is 0; expected an integer of 1 or more"),
        ({"rate": "fast"}, UsageError, "rate is 'fast'; expected a number above 0"),
        ({"end_to_end": 1, "int8": True, "end_batch_norm": True}, UsageError, "choose one"),
    ],
)
def test_arguments_that_make_no_sense(network, batches, change, error, sentence):
    words = {"network": network, "batches": batches, "T": 4, "progress": False, **change}
    with pytest.raises(error, match=sentence):
        spikedet.convert(**words)


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("layer-steps", "layer_steps", -3),
        ("layer-steps", "layer_steps", 2.5),
        ("pictures", "pictures", 0),
        ("held", "held", 0),
        ("loss", "layer_loss", "l1"),
        ("end-to-end", "end_to_end", -1),
        ("end-rate", "end_rate", 0.0),
        ("end-sparsity", "sparsity", -1.0),
        ("noise", "noise", 2.0),
        ("noise", "noise", float("nan")),
        ("distill", "distill", -1.0),
        ("rate", "rate", 0.0),
        ("seed", "seed", -1),
        ("pooling", "pooling", "often"),
    ],
)
def test_what_the_command_refuses_is_refused_alike(network, batches, word, name, value):
    from spikedet.commands.main import parsed

    words = ["--weights", "w", "--T", 4, "--out", "o", "--data", "d", f"--{word}", value]
    with pytest.raises(UsageError) as refused:
        parsed("convert", words)
    right = re.split(r" is not |; expected ", str(refused.value))[1]
    with pytest.raises(UsageError, match=re.escape(f"{name} is {value!r}; expected {right}") + "$"):
        spikedet.convert(network, batches, T=4, progress=False, **{name: value})


@pytest.mark.parametrize(
    ("plan", "pooling", "sentence"),
    [
        (Plan(LayerWise(steps=-1)), None, "steps is -1; expected an integer of 0 or more"),
        (Plan(LayerWise(patience="x")), None, "patience is 'x'; expected an integer$"),
        (Plan(end=EndToEnd(rate=0)), None, "rate is 0; expected a number above 0"),
        (Plan(end=EndToEnd(int8=True, batch_norm=True)), None, "choose one"),
        (Plan(), "often", "pooling is 'often'; expected count or step"),
    ],
)
def test_stages_refuse_it_before_they_begin(tmp_path, plan, pooling, sentence):
    out = tmp_path / "out.safetensors"
    nothing = {"task": None, "train": None, "tune": None, "out": out, "origin": {}}
    calibration = Calibration(checkpoint=None, plan=plan, pooling=pooling, **nothing)
    conversion = Conversion(
        weights=tmp_path / "missing", T=4, method=methods.named("two-stage"), settings=None,
        options=StageOne(), plan=plan, pooling=pooling, **nothing,
    )  # fmt: skip
    for run in (calibration, conversion):
        with pytest.raises(UsageError, match=sentence):
            run.run()


def test_a_bar_changes_nothing_and_nothing_is_shown_without(network, batches, capsys):
    words = {"loss": lambda y, label: F.cross_entropy(y["logits"], label), "epochs": 6}
    words |= {"layer_steps": 2, "end_to_end": 2}
    silent = spikedet.convert(network, batches, T=4, progress=False, **words)
    assert capsys.readouterr().err == ""
    shown = spikedet.convert(network, batches, T=4, **words)
    lines = capsys.readouterr().err.splitlines()
    starts = ["stage I: 24 of 24 steps", "stage II, T=4: 4 of 4 layers", "end to end: 2 of 2 steps"]
    assert [line.partition(",")[0] for line in lines if "T=" not in line] == [starts[0], starts[2]]
    assert any(line.startswith(starts[1]) for line in lines)
    for one, other in zip(silent.parameters(), shown.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_none(network, batches):
    with pytest.raises(UsageError, match="loss does not return a scalar"):
        spikedet.convert(
            network, batches, T=2, loss=lambda y, label: y["logits"].detach(), epochs=1,
            distill=0.0, progress=False,
        )  # fmt: skip


def test_what_cannot_be_saved(network, tmp_path):
    with pytest.raises(UsageError, match="a Tutorial cannot be saved; expected what spikedet.conv"):
        spikedet.save(network, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no such weights file"):
        spikedet.load(tmp_path / "x.safetensors")


def test_a_copy_that_lost_a_threshold_is_refused_by_name(network, batches):
    graph = prepare(network, batches[0][0])
    thresholds = {n.name: torch.tensor(0.7 + i) for i, n in enumerate(graph.of(ACTIVATIONS))}
    quantise(graph, thresholds, 8)
    graph.eval()
    x = batches[0][0]
    spiking = spiking_copy(graph, 8, pictures=x)
    expect_faithful(graph, spiking, x)
    spiking.module("fc1").weight.data *= 1.01
    with pytest.raises(ConversionError, match="relu_2: after conversion this layer receives other"):
        expect_faithful(graph, spiking, x)


def test_frames_that_are_mixed_up_are_refused_by_name(network, batches):
    graph = prepare(network, batches[0][0])
    quantise(graph, {n.name: torch.ones(()) for n in graph.of(ACTIVATIONS)}, 8)
    graph.eval()
    spiking = spiking_copy(graph, 8, pictures=batches[0][0])

    class Mixed(nn.Flatten):
        def forward(self, x):
            return super().forward(x).roll(1, 0)

    spiking.replace("flatten", Mixed())
    with pytest.raises(ConversionError, match="relu_2"):
        expect_faithful(graph, spiking, batches[0][0])


def test_detections_in_other_forms():
    detections = spikedet.Detections(
        np.array([[10, 20, 30, 60], [0, 0, 100, 50]], np.float32),
        np.array([0.75, 0.5], np.float32), np.array([1, 0]), ("cat", "dog"), 8,
        np.zeros((50, 100, 3), np.uint8), "x.jpg",
    )  # fmt: skip
    assert detections.to_dict() == {
        "file": "x.jpg", "T": 8, "width": 100, "height": 50,
        "objects": [
            {"class": "dog", "score": 0.75, "box": [10, 20, 30, 60]},
            {"class": "cat", "score": 0.5, "box": [0, 0, 100, 50]},
        ],
    }  # fmt: skip
    assert detections.to_coco(7, [17, 18]) == [
        {"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": 7, "category_id": 17, "bbox": [0, 0, 100, 50], "score": 0.5},
    ]
    assert detections.to_coco()[0]["category_id"] == 1
    assert detections.to_yolo() == (
        "1 0.200000 0.800000 0.200000 0.800000\n0 0.500000 0.500000 1.000000 1.000000\n"
    )
    assert detections.to_yolo(scores=True).splitlines()[0].endswith(" 0.750000")
    bare = spikedet.Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ("cat",))
    assert bare.to_dict()["objects"] == [] and bare.to_coco() == []
    with pytest.raises(UsageError, match="these detections have no picture"):
        bare.to_yolo()


def test_detections_for_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    empty = spikedet.Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ("cat",))
    with pytest.raises(UsageError, match="supervision is not installed"):
        empty.to_supervision()


def test_detections_as_supervision_has_them():
    supervision = pytest.importorskip("supervision")
    detections = spikedet.Detections(
        np.array([[10, 20, 30, 60]], np.float32), np.array([0.75], np.float32), np.array([1]),
        ("cat", "dog"),
    ).to_supervision()  # fmt: skip
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[10, 20, 30, 60]] and detections.class_id.tolist() == [1]
    assert detections.data["class_name"].tolist() == ["dog"]
