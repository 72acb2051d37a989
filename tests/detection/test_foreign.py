"""Network descriptions that other people wrote: converted, or refused by name."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from spikedet import networks
from spikedet.checkpoint import Checkpoint
from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.description import build, read_description
from spikedet.detection.model import head_of, raw_outputs
from spikedet.detection.task import DETECTION
from spikedet.errors import ConversionError, UsageError, WeightsError
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.networks import with_graph
from spikedet.neurons.layers import SpikingMaxPool
from spikedet.runtime.network import SpikingNetwork
from support.places import ROOT
from support.stages import neurons, quantised

RELU = "torch.nn.ReLU()"
MODELS = ROOT / "configs/models"


def alive(name, width=None, activation=None):
    """(network in evaluation mode with raw outputs, the pictures its batch norms have seen).

    Fresh weights; means and variances of batch norm are those of a few smooth pictures, and its
    biases are 1, which keeps most units active: with 0 a random network of sixty layers is chaotic
    and amplifies any difference, be it the rounding of 256 levels.
    """
    torch.manual_seed(0)
    network = build(read_description(name, width, activation), 20)
    pictures = nn.functional.interpolate(torch.rand(8, 3, 8, 8), size=(64, 64), mode="bilinear")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.ones_(norm.bias)
    with torch.no_grad():
        network.train()(pictures)
    raw_outputs(network.eval())
    return network, pictures


def spiking(network, pictures, T):
    graph = quantised(network, [pictures], T)
    make_spiking(graph)
    return SpikingNetwork(graph, T)


def old_and_new(description, network):
    """Spiking checkpoints: as files of the old form were, and with the graph."""
    old = Checkpoint(
        "snn", "detection", description, VOC_CLASSES, 64, network.graph.layers.state_dict(), 4
    )
    head = head_of(build(description, len(VOC_CLASSES)))
    return old, replace(with_graph(old, network.graph), head=head)


def cosine(a, b):
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


def centred(x):
    """[B, C, A] without each channel's mean, which biases alone could get right."""
    return x - x.mean((0, 2), keepdim=True)


@pytest.mark.parametrize(
    ("name", "width", "activation", "pools", "kept"),
    [
        ("yolov3-tiny.yaml", None, RELU, 6, 0),
        ("yolov5n.yaml", None, RELU, 3, 11),
        ("yolov8n.yaml", None, RELU, 3, 10),
        (MODELS / "tiny-yolo-maxpool.yaml", "n", None, 6, 0),
        (MODELS / "tiny-yolo-leaky.yaml", "n", None, 0, 0),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_converts(name, width, activation, pools, kept):
    source, pictures = alive(name, width, activation)
    network = spiking(copy.deepcopy(source), pictures, 256)
    assert sum(isinstance(m, SpikingMaxPool) for m in network.modules()) == pools
    assert sum(not n.folded for n in neurons(network.graph)) == kept
    with torch.no_grad():
        wanted, outputs = source(pictures[:2]), network(pictures[:2])
    for key in ("boxes", "scores"):
        assert cosine(outputs[key], wanted[key]) > 0.99
        assert cosine(centred(outputs[key]), centred(wanted[key])) > 0.97


@pytest.mark.parametrize(
    ("name", "activation", "words"),
    [
        (
            "yolov8n.yaml",
            None,
            r"model\.0\.act \(SiLU\): silu .*fine-tune.*`activation: torch\.nn\.ReLU\(\)`",
        ),
        ("yolo11n.yaml", RELU, r"model\.10\.m\.0\.attn \(Attention\): "),
        ("yolo12n.yaml", RELU, r"model\.6\.m\.0\.0\.attn \(AAttn\): "),
    ],
)
def test_is_refused_by_name(name, activation, words):
    with pytest.raises(ConversionError, match=words):
        networks.expect_convertible(DETECTION, read_description(name, None, activation), 20, 64)


PICTURE_BESIDE_SPIKES = {
    "nc": 20,
    "activation": RELU,
    "backbone": [
        [-1, 1, "nn.MaxPool2d", [2]],
        [-1, 1, "Conv", [16, 3, 1]],
        [[0, 1], 1, "Concat", [1]],
        [-1, 1, "Conv", [16, 3, 2]],
    ],
    "head": [[[3], 1, "Detect", ["nc"]]],
}


@pytest.mark.parametrize(
    ("description", "imgsz", "error", "words"),
    [
        (PICTURE_BESIDE_SPIKES, 64, ConversionError, r"model\.2\.cat: spikes are combined"),
        (
            {"activation": "torch.nn.LeakyReLU(1.5)"},
            64,
            ConversionError,
            r"act \(LeakyReLU\): a leaky ReLU of",
        ),
        ({"spike_pooling": "mean"}, 64, UsageError, "spike_pooling: mean; expected count or step"),
        ({}, 80, UsageError, "imgsz is 80; expected a multiple of 32"),
        ({}, 0, UsageError, "imgsz is 0; expected a multiple of 32"),
        ("yolov8n-p6.yaml", 96, UsageError, "imgsz is 96; expected a multiple of 64"),
    ],
)
def test_what_quantising_and_spiking_refuse_is_refused_before_training(
    description, imgsz, error, words
):
    if description == "yolov8n-p6.yaml":
        description = read_description(description, None, RELU)
    if "head" not in description:
        description = read_description(MODELS / "tiny-yolo.yaml", "n") | description
    with pytest.raises(error, match=words):
        networks.expect_convertible(DETECTION, description, 20, imgsz)


@pytest.mark.slow
def test_training_refuses_before_it_begins(tmp_path):
    """The command takes a stock description by its name, and says what to do about SiLU."""
    command = [sys.executable, "-m", "spikedet", "train", "--model", "yolov8n.yaml"]
    command += ["--data", "nowhere", "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 5 and "model.0.act (SiLU): silu" in done.stderr, done.stderr
    done = subprocess.run(
        [*command, "--activation", RELU], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 3 and "nowhere" in done.stderr, done.stderr  # the data come next


@pytest.mark.parametrize("name", ["yolo26n.yaml", "yolov10n.yaml", "yolov8n-seg.yaml"])
def test_another_head_is_refused(name):
    with pytest.raises(UsageError, match="the last layer .* expected Detect"):
        build(read_description(name, None, RELU), 20)


def test_stock_descriptions_are_found_by_name(tmp_path, monkeypatch):
    description = read_description("yolov8s.yaml", activation=RELU)
    assert description["scale"] == "s" and description["activation"] == RELU
    assert read_description("yolov8s.yaml", "n")["scale"] == "n"
    assert "scale" not in read_description(Path("yolov3-tiny.yaml"))
    with pytest.raises(UsageError, match="width 'z': yolov8.yaml has n, s, m, l, x"):
        read_description("yolov8.yaml", "z")
    for path in ("yolov99n.yaml", tmp_path / "yolov8n.yaml"):
        with pytest.raises(UsageError, match="no such network description"):
            read_description(path)
    monkeypatch.chdir(tmp_path)  # a local file of that name goes first
    Path("yolov8n.yaml").write_text("nc: 3\n")
    assert read_description("yolov8n.yaml") == {"nc": 3}


@pytest.mark.parametrize("text", ["__import__('os').mkdir('made')", "torch.nn.Nothing()", "ReLU"])
def test_the_text_of_a_description_is_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    description = read_description(MODELS / "tiny-yolo.yaml", "n", text)
    with pytest.raises(UsageError, match="cannot be built: .*unsupported activation"):
        build(description, 20)
    checkpoint = Checkpoint("float", "detection", description, VOC_CLASSES, 64, {})
    with pytest.raises(WeightsError, match="description in the weights is damaged"):
        networks.restore(DETECTION, checkpoint)
    assert not Path("made").exists()


def test_pooling_is_read_from_the_description():
    """Of a file of the old form; a graph says it itself."""
    network, pictures = alive(MODELS / "tiny-yolo-maxpool.yaml", "n")
    description = read_description(MODELS / "tiny-yolo-maxpool.yaml", "n")
    state = spiking(network, pictures, 4).graph.layers.state_dict()
    args = description, VOC_CLASSES, 64, state, 4
    for pooling in ("count", "step"):
        description["spike_pooling"] = pooling
        checkpoint = Checkpoint("snn", "detection", *args)
        for again in (checkpoint, networks.current(DETECTION, checkpoint)):
            runner = networks.restore(DETECTION, again)
            pools = [m for m in runner.network.modules() if isinstance(m, SpikingMaxPool)]
            assert {p.mode for p in pools} == {pooling}
    description["spike_pooling"] = "mean"
    with pytest.raises(WeightsError, match="spike_pooling: mean; expected count or step"):
        networks.restore(DETECTION, Checkpoint("snn", "detection", *args))


def test_kept_thresholds_are_restored():
    """Which neurons keep theta on the wire is found again from the description alone."""
    network, pictures = alive("yolov8n.yaml", activation=RELU)
    description = read_description("yolov8n.yaml", activation=RELU)
    before = spiking(network, pictures, 4)
    kept = [neuron.folded for neuron in neurons(before.graph)]
    for checkpoint in old_and_new(description, before):
        after = networks.restore(DETECTION, checkpoint)
        assert [neuron.folded for neuron in neurons(after.network.graph)] == kept
        with torch.no_grad():
            wanted, outputs = before(pictures[:1])["scores"], after.raw(pictures[:1])["scores"]
        assert cosine(centred(outputs), centred(wanted)) > 0.99


def test_per_neuron_potentials_belong_to_a_picture_size():
    description = read_description(MODELS / "tiny-yolo.yaml", "n")
    network, pictures = alive(MODELS / "tiny-yolo.yaml", "n")
    graph = spiking(network, pictures, 4)
    neuron = graph.graph.module("model.0.act")
    neuron.initial.data = neuron.initial.data.view(-1, 1, 1).expand(-1, 32, 32).clone()
    for one in old_and_new(description, graph):
        runner = networks.restore(DETECTION, one, half=True)
        with torch.no_grad():
            runner.raw(pictures[:1])
            with pytest.raises(UsageError, match=r"potentials for \(32, 32\); use the picture"):
                runner.raw(torch.zeros(1, 3, 96, 96))


def test_a_description_that_fails_leaves_the_next_network_its_activation():
    description = read_description("yolov8n.yaml", activation=RELU)
    with pytest.raises(UsageError, match="cannot be built"):
        build({**description, "head": [[-1, 1, "Nothing", []]]}, 20)
    network = build(read_description("yolov8n.yaml"), 20)
    kinds = {type(module) for module in network.modules()}
    assert nn.SiLU in kinds and nn.ReLU not in kinds


def test_what_torch_says_in_many_lines_is_one_sentence():
    description = read_description("tiny-yolo", None, RELU)
    description["backbone"][1][3] = [64, 3, ["2", 2]]
    with pytest.raises(UsageError, match=r"cannot be built: conv2d\(\) received") as raised:
        build(description, 20)
    assert "\n" not in str(raised.value)
