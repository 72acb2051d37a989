"""Weights files whose header or tensors lie: one sentence, at once, and never a wrong answer."""

import copy
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

import spikedet
from spikedet.checkpoint import Checkpoint, restore_graph, save
from spikedet.classification.data import Samples
from spikedet.classification.task import CLASSIFICATION
from spikedet.conversion.prepare import prepare
from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.data import Sample
from spikedet.detection.description import build, read_description
from spikedet.detection.samples import BoxSamples
from spikedet.detection.task import DETECTION
from spikedet.errors import SpikedetError, UsageError, WeightsError
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.networks import spiking_checkpoint, with_graph
from spikedet.neurons.layers import MeanOverTime
from spikedet.runtime.network import SpikingNetwork
from spikedet.stages import stage_one, stage_two
from support.commands import command
from support.places import ROOT

SECONDS = 20.0  # of the processor, on a machine that is busy; a file that costs more costs minutes


class Net(nn.Module):
    """Some of every kind of operation that options can lie about."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()
        self.pool, self.deep, self.leaky = nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 1, 1), nn.LeakyReLU()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.mix, self.relu2 = nn.Conv2d(16, 6, 1), nn.ReLU()
        self.average, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(24, 5)

    def forward(self, x):
        x = self.relu(self.first(x))
        deep = self.up(self.leaky(self.deep(self.pool(x))))
        x = self.average(self.relu2(self.mix(torch.cat([x, deep], 1))))
        return {"logits": self.last(x.reshape(x.shape[0], 24) * 0.5)}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Bytes of a spiking network of one's own, with weights for its steps."""
    torch.manual_seed(0)
    graph = prepare(Net().eval(), torch.rand(1, 3, 16, 16))
    quantise(graph, {node.name: torch.ones(()) for node in graph.of(ACTIVATIONS)}, 4)
    make_spiking(graph.eval())
    for node in graph.of((MeanOverTime,)):
        graph.replace(node.name, MeanOverTime(4))
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    spikedet.save(SpikingNetwork(graph, 4), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """Bytes of an untrained detector of each stage."""
    folder = tmp_path_factory.mktemp("detectors")
    torch.manual_seed(0)
    description = read_description(ROOT / "configs/models/tiny-yolo.yaml", "n")
    tensors = build(description, 20).state_dict()
    checkpoint = Checkpoint("float", "detection", description, VOC_CLASSES, 64, tensors)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "grey.png")
    nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)
    samples = BoxSamples([Sample("g", folder / "grey.png", 64, 64, *nothing)])
    qc = stage_one.untuned(DETECTION, checkpoint, samples, 2)
    snn = spiking_checkpoint(qc, stage_two.copied(DETECTION, qc), {})
    for one in (checkpoint, qc, snn):
        save(one, folder / one.stage)
    return {stage: (folder / stage).read_bytes() for stage in ("float", "qc", "snn")}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Bytes of an untrained spiking classifier."""
    torch.manual_seed(0)
    description = {"arch": "resnet20", "width": 0.25, "mean": [0.5] * 3, "std": [0.25] * 3}
    tensors = CLASSIFICATION.network(description, 3).state_dict()
    checkpoint = Checkpoint("float", "classification", description, ("a", "b", "c"), 16, tensors)
    picture = torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
    qc = stage_one.untuned(CLASSIFICATION, checkpoint, Samples(checkpoint.names, [0], [picture]), 2)
    path = tmp_path_factory.mktemp("classifier") / "snn.safetensors"
    save(spiking_checkpoint(qc, stage_two.copied(CLASSIFICATION, qc), {}), path)
    return path.read_bytes()


def opened(data):
    """(metadata with the header as a dict, tensors) of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:end])["__metadata__"]
    return {**metadata, "header": json.loads(metadata["header"])}, load_tensors(data)


def closed(metadata, tensors):
    """Bytes of a file."""
    header = metadata["header"]
    text = header if isinstance(header, str) else json.dumps(header)
    return save_tensors(tensors, {**metadata, "header": text})


def changed(data, change):
    """Bytes of a file after `change(header, tensors)`."""
    metadata, tensors = opened(data)
    change(metadata["header"], tensors)
    return closed(metadata, tensors)


def refused(path, data, errors=(WeightsError, UsageError)):
    """The sentence with which `spikedet.load` refuses a file, at once."""
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(errors) as error:
        spikedet.load(path)
    assert time.process_time() - start < SECONDS
    sentence = str(error.value)
    assert sentence and "\n" not in sentence and len(sentence) < 600
    return sentence


def options(header, kind, number=0):
    """Options of a node of some kind."""
    return [node[3] for node in header["graph"]["nodes"] if node[1] == kind][number]


def node_of(header, kind, number=0):
    return [node for node in header["graph"]["nodes"] if node[1] == kind][number]


def test_what_the_tests_start_from_loads_and_answers(own, detectors, classifier, tmp_path):
    (tmp_path / "own").write_bytes(own)
    network = spikedet.load(tmp_path / "own")
    output = network(torch.rand(2, 3, 16, 16))
    assert output["logits"].shape == (2, 5) and output["logits"].isfinite().all()
    kinds = {node.kind for node in network.graph}
    assert kinds >= {"neuron", "count_max_pool", "upsample", "mean_over_time", "reshape", "scale"}
    for data in (*detectors.values(), classifier, changed(own, lambda header, tensors: None)):
        (tmp_path / "w").write_bytes(data)
        spikedet.load(tmp_path / "w")


# ------------------------------------------------------------------ tensors


def filled(ending, value):
    """Put a value into the last number of the first tensor whose name ends so."""

    def change(header, tensors):
        name = next(name for name in sorted(tensors) if name.endswith(ending))
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    return change


def swapped(ending, make):
    """Another tensor in place of the first whose name ends so."""

    def change(header, tensors):
        name = next(name for name in sorted(tensors) if name.endswith(ending))
        tensors[name] = make(tensors[name])

    return change


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("ending", ["threshold", "initial", "weight", "bias", "log_weights"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite(own, tmp_path, ending, value):
    words = refused(tmp_path / "w", changed(own, filled(ending, value)), WeightsError)
    assert ending in words and "not finite" in words


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, -1e-30])
def test_thresholds_that_are_not_positive(own, detectors, tmp_path, value):
    for data in (own, detectors["snn"]):
        words = refused(tmp_path / "w", changed(data, filled("threshold", value)), WeightsError)
        assert "threshold" in words


def test_a_quantiser_of_no_threshold(detectors, tmp_path):
    words = refused(tmp_path / "w", changed(detectors["qc"], filled("threshold", 0.0)))
    assert "threshold" in words


def test_a_variance_below_zero(detectors, tmp_path):
    words = refused(tmp_path / "w", changed(detectors["float"], filled("running_var", -1.0)))
    assert "variance" in words


def test_step_weights_that_no_number_holds_answer_no_nan(own, tmp_path):
    """exp(1000) is infinite: refused, or the mean is the one of that step."""
    (tmp_path / "w").write_bytes(changed(own, filled("log_weights", 1000.0)))
    try:
        network = spikedet.load(tmp_path / "w")
    except WeightsError:
        return
    assert network(torch.rand(1, 3, 16, 16))["logits"].isfinite().all()


ODD = {
    "empty": lambda x: torch.zeros(0),
    "boolean": lambda x: torch.ones_like(x, dtype=torch.bool),
    "of five dimensions": lambda x: torch.ones(1, 1, 1, 1, 1),
    "complex": lambda x: torch.ones_like(x, dtype=torch.complex64),
    "of one more": lambda x: torch.ones(x.numel() + 1),
    "of integers": lambda x: torch.ones_like(x, dtype=torch.int64),
    "of bytes": lambda x: torch.ones_like(x, dtype=torch.uint8),
    "transposed": lambda x: torch.ones(*x.shape, 2),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("ending", ["threshold", "initial", "weight", "log_weights"])
def test_shapes_and_types_that_no_network_has(own, tmp_path, ending, odd):
    refused(tmp_path / "w", changed(own, swapped(ending, ODD[odd])), WeightsError)


@pytest.mark.parametrize(
    "shape", [[0], [1, 1, 1, 1, 1], [3], [8, 8], [-1], [10**12], ["8"], [True], 8]
)
@pytest.mark.parametrize("name", ["threshold", "initial"])
def test_shapes_that_graph_and_tensor_agree_in(own, tmp_path, name, shape):
    """The header declares what the tensor has, and still it fits no layer."""

    def change(header, tensors):
        node = node_of(header, "neuron")
        node[3][name] = shape
        good = isinstance(shape, list) and all(type(s) is int and 0 <= s < 99 for s in shape)
        tensors[f"{node[0]}.{name}"] = torch.ones(shape if good else [2])

    refused(tmp_path / "w", changed(own, change), WeightsError)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_read_as_float32(own, tmp_path, kind):
    (tmp_path / "w").write_bytes(changed(own, swapped("last.weight", lambda x: x.to(kind))))
    network = spikedet.load(tmp_path / "w")
    assert all(t.dtype == torch.float32 for t in network.graph.layers.state_dict().values())


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits_are_read_or_refused(own, tmp_path, kind):
    data = changed(own, swapped("last.weight", lambda x: x.to(getattr(torch, kind))))
    (tmp_path / "w").write_bytes(data)
    try:
        network = spikedet.load(tmp_path / "w")
    except WeightsError:
        return
    assert network(torch.rand(1, 3, 16, 16))["logits"].isfinite().all()


def test_numbers_beyond_float32_are_not_finite(own, tmp_path):
    data = changed(
        own, swapped("last.weight", lambda x: torch.full_like(x, 1e300, dtype=torch.float64))
    )
    refused(tmp_path / "w", data, WeightsError)


def test_missing_and_surplus_tensors(own, detectors, tmp_path):
    for data in (own, detectors["snn"], detectors["qc"]):
        names = sorted(opened(data)[1])
        for name in (names[0], names[len(names) // 2], names[-1]):
            words = refused(tmp_path / "w", changed(data, lambda h, t, name=name: t.pop(name)))
            assert name in words

        def add(header, tensors):
            tensors["more.weight"] = torch.ones(3)

        assert "more.weight" in refused(tmp_path / "w", changed(data, add), WeightsError)
    refused(tmp_path / "w", changed(own, lambda header, tensors: tensors.clear()), WeightsError)


# ------------------------------------------------------------------ header


FIELDS = [
    *[("T", T) for T in (10**21, 10**9, 0, -1, True, "4", 2.5, NAN, None, [4], 10**4000)],
    *[("imgsz", side) for side in (10**6, 10**21, 0, -64, "64", 64.0, None, True)],
    *[("names", names) for names in ("ab", 3, None, [1, 2], {"a": 1}, ["a"] * 200_000)],
    *[("stage", stage) for stage in ("", "ann", None, 3, ["snn"])],
    *[("task", task) for task in ("pose", None, 3, ["none"])],
    *[("model", value) for value in (None, [], "x")],
    *[("origin", value) for value in (None, [], "x")],
    *[("head", value) for value in (None, [], "x")],
    *[("graph", graph) for graph in ([], "x", 3, True, {}, [[]], {"nodes": []}, None)],
    ("more", 1),
]


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=lambda v: str(v)[:24])
def test_fields_that_no_file_has(own, tmp_path, field, value):
    def change(header, tensors):
        header[field] = value

    if field == "T" and isinstance(value, int) and value > 10**3999:
        text = json.dumps(opened(own)[0]["header"]).replace('"T": 4', '"T": 1' + "0" * 4000)
        metadata, tensors = opened(own)
        data = closed({**metadata, "header": text}, tensors)
    else:
        data = changed(own, change)
    refused(tmp_path / "w", data, WeightsError)


def test_a_stage_that_is_not_that_of_the_graph(detectors):
    """Each of the other stages, with the T that it has; else another network would run."""
    made = {}
    for stage in ("qc", "snn"):
        metadata, tensors = opened(detectors[stage])
        made[stage] = Checkpoint(**metadata["header"], tensors=tensors)
    made["float"] = with_graph(made["qc"], prepare(Net().eval(), torch.rand(1, 3, 16, 16)))
    for right, checkpoint in made.items():
        for stage in {"float", "qc", "snn"} - {right}:
            checkpoint = replace(checkpoint, stage=stage, T=None if stage == "float" else 2)
            with pytest.raises(WeightsError, match=f"the stage is {stage}, but the graph"):
                restore_graph(checkpoint)


def test_spikes_that_a_network_returns_without_a_mean(own):
    metadata, tensors = opened(own)
    header = metadata["header"]
    spikes = next(name for name, kind, *_ in header["graph"]["nodes"] if kind == "neuron")
    header["graph"]["output"] = {"list": [header["graph"]["output"], {"node": spikes}]}
    header["names"] = tuple(header["names"])
    with pytest.raises(WeightsError, match=f"{spikes} of the graph is not a mean over time"):
        restore_graph(Checkpoint(**header, tensors=tensors))


@pytest.mark.parametrize("field", ["stage", "task", "model", "names", "imgsz", "T", "graph"])
def test_fields_that_are_missing(own, tmp_path, field):
    refused(tmp_path / "w", changed(own, lambda header, tensors: header.pop(field)), WeightsError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, "{}"])
def test_headers_that_are_no_object(own, tmp_path, text):
    metadata, tensors = opened(own)
    refused(tmp_path / "w", closed({**metadata, "header": text}, tensors), WeightsError)


GRAPHS = {
    "an unknown operation": lambda g: g["nodes"][2].__setitem__(1, "exec"),
    "an operation that is no text": lambda g: g["nodes"][2].__setitem__(1, ["relu"]),
    "an input that does not exist": lambda g: g["nodes"][3].__setitem__(2, ["nowhere"]),
    "an input that comes later": lambda g: g["nodes"][1].__setitem__(2, [g["nodes"][-1][0]]),
    "itself as an input": lambda g: g["nodes"][1].__setitem__(2, [g["nodes"][1][0]]),
    "no inputs": lambda g: g["nodes"][1].__setitem__(2, []),
    "an input too many": lambda g: g["nodes"][1].__setitem__(2, ["input", "input"]),
    "inputs that are text": lambda g: g["nodes"][1].__setitem__(2, g["nodes"][0][0]),
    "inputs that are numbers": lambda g: g["nodes"][1].__setitem__(2, [0]),
    "a name twice": lambda g: g["nodes"][1].__setitem__(0, g["nodes"][0][0]),
    "no name": lambda g: g["nodes"][1].__setitem__(0, ""),
    "a name that is a number": lambda g: g["nodes"][1].__setitem__(0, 3),
    "the name of the picture": lambda g: g["nodes"][1].__setitem__(0, "input"),
    "the name of a method": lambda g: g["nodes"][1].__setitem__(0, "forward"),
    "a name with dots": lambda g: g["nodes"][1].__setitem__(0, "..relu"),
    "no nodes": lambda g: g["nodes"].clear(),
    "nodes that are a number": lambda g: g.__setitem__("nodes", 3),
    "a node of three": lambda g: g["nodes"][1].pop(),
    "a node that is text": lambda g: g["nodes"].__setitem__(1, "relu"),
    "200,000 nodes": lambda g: g["nodes"].extend([["x", "relu", ["input"], {}]] * 200_000),
    "an output that does not exist": lambda g: g.__setitem__("output", {"node": "nowhere"}),
    "the picture as output": lambda g: g.__setitem__("output", {"node": "input"}),
    "no output": lambda g: g.__setitem__("output", {"value": None}),
    "an output that is text": lambda g: g.__setitem__("output", "last"),
    "an output that is a number": lambda g: g.__setitem__("output", 3),
    "an output of unknown form": lambda g: g.__setitem__("output", {"set": []}),
    "an output with keys that are lists": lambda g: g.__setitem__(
        "output", {"dict": [[["a"], {"node": g["nodes"][-1][0]}]]}
    ),
    "a named tuple of bad names": lambda g: g.__setitem__(
        "output", {"namedtuple": "a b", "fields": [["class", {"node": g["nodes"][-1][0]}]]}
    ),
    "no input": lambda g: g.pop("input"),
    "an input of no size": lambda g: g.__setitem__("input", []),
    "an input of two pictures": lambda g: g.__setitem__("input", [2, 3, 16, 16]),
    "an input of a million": lambda g: g.__setitem__("input", [1, 3, 10**6, 10**6]),
    "an input of 10^21": lambda g: g.__setitem__("input", [1, 3, 10**21, 16]),
    "an input below zero": lambda g: g.__setitem__("input", [1, 3, -16, 16]),
    "an input of text": lambda g: g.__setitem__("input", "1333"),
    "an input of other channels": lambda g: g.__setitem__("input", [1, 4, 16, 16]),
    "names of tensors that are a list": lambda g: g.__setitem__("tensors", ["x"]),
    "names of tensors that are numbers": lambda g: g.__setitem__("tensors", {"first.weight": 3}),
    "names of tensors that are lists": lambda g: g.__setitem__("tensors", {"first.weight": [3]}),
    "names of tensors that are not there": lambda g: g.__setitem__(
        "tensors", {"first.weight": "x"}
    ),
}


@pytest.mark.parametrize("lie", GRAPHS)
def test_graphs_that_no_network_is(own, tmp_path, lie):
    refused(
        tmp_path / "w", changed(own, lambda header, _: GRAPHS[lie](header["graph"])), WeightsError
    )


def test_an_output_nested_without_end(own, tmp_path):
    metadata, tensors = opened(own)
    text = json.dumps(metadata["header"])
    output = json.dumps(metadata["header"]["graph"]["output"])
    assert output in text
    for depth in (5_000, 200_000):
        deep = '{"list": [' * depth + output + "]}" * depth
        data = closed({**metadata, "header": text.replace(output, deep)}, tensors)
        refused(tmp_path / "w", data, WeightsError)


SIZES = [
    ("reshape", "shape", [[10**9], [10**9, 10**9], [-1, -1], [0], "24", [24.0], [7], [], None]),
    ("upsample", "scale_factor", [10**6, 1e30, NAN, INF, 0, -2, "x", [2, 2, 2], None, 10**21]),
    ("upsample", "mode", ["bilinear", "nearest-exactly", None, 3]),
    ("upsample", "size", [[10**6, 10**6], 10**9]),
    ("adaptive_avg_pool2d", "output_size", [10**6, [10**9, 10**9], -1, "2", [2, 2, 2], 10**21]),
    ("count_max_pool", "kernel_size", [10**9, 0, -1, "2", 10**21, [2, 2, 2], None]),
    ("count_max_pool", "stride", [0, -1, "2", 10**21]),
    ("count_max_pool", "padding", [10**9, -1]),
    ("count_max_pool", "dilation", [0, 10**18]),
    ("count_max_pool", "dimensions", [3, 0, "2", None]),
    ("count_max_pool", "mode", ["mean", None, []]),
    ("conv2d", "out_channels", [10**9, 10**21, 0, -8, "8", 8.5, None, True]),
    ("conv2d", "in_channels", [10**9, 10**21, 0, -3, "3", None]),
    ("conv2d", "kernel_size", [10**9, 0, -1, "3", [3], [3, 3, 3], 10**21]),
    ("conv2d", "stride", [0, -1, "2", [2, 2, 2], 10**21, None]),
    ("conv2d", "padding", [10**9, 10**21, -1, "sane", [1, 1, 1], None]),
    ("conv2d", "dilation", [0, 10**18, "1"]),
    ("conv2d", "groups", [0, 3, -1, 10**21, "1", None]),
    ("conv2d", "bias", [False]),  # which the file has
    ("linear", "in_features", [10**12, 10**21, 0, "24", -24]),
    ("linear", "out_features", [10**12, 0, "5"]),
    ("linear", "bias", [False]),
    ("neuron", "slope", [NAN, INF, -0.1, 2, "0", None, [], [0.1, 0.2], {}]),
    ("mean_over_time", "steps", [10**12, 0, -1, "4", None, 5, 10**21, 4.0]),
    ("concatenate", "dim", [0, 7, -9, "1", None, 10**21]),
    ("scale", "factor", [[10**12], [7], [0], "x", [2, 1, 1]]),
]  # fmt: skip
LIES = [(kind, name, value) for kind, name, values in SIZES for value in values]


@pytest.mark.parametrize(("kind", "name", "value"), LIES, ids=lambda v: str(v)[:24])
def test_options_that_no_operation_has(own, tmp_path, kind, name, value):
    def change(header, tensors):
        own = options(header, kind)
        assert name in own
        own[name] = value

    refused(tmp_path / "w", changed(own, change), WeightsError)


@pytest.mark.parametrize("kind", ["conv2d", "neuron", "upsample", "reshape", "mean_over_time"])
def test_options_too_many_and_too_few(own, tmp_path, kind):
    for change in (lambda given: given.popitem(), lambda given: given.update(more=1)):
        data = changed(own, lambda header, _, change=change: change(options(header, kind)))
        refused(tmp_path / "w", data, WeightsError)
    data = changed(own, lambda header, _: node_of(header, kind).__setitem__(3, None))
    refused(tmp_path / "w", data, WeightsError)


INSERTED = {
    "padding without end": ["pad", {"pad": [10**9] * 4, "mode": "constant"}],
    "padding of 10^21": ["pad", {"pad": [10**21] * 4, "mode": "constant"}],
    "pixels of a million": ["pixel_shuffle", {"upscale_factor": 10**6}],
    "no pixels": ["pixel_unshuffle", {"downscale_factor": 0}],
    "groups of none": ["channel_shuffle", {"groups": 0}],
    "time into the batch": ["flatten", {"start_dim": 0, "end_dim": 1}],
    "pictures taken apart": ["slice", {"dim": 0, "start": 0, "stop": 0, "step": 1}],
    "no step": ["slice", {"dim": 1, "start": 0, "stop": 8, "step": 0}],
    "pictures in another order": ["permute", {"dims": [1, 0, 2, 3]}],
    "the mean of pictures": ["mean", {"dims": [0], "keepdim": True}],
    "the sum of pictures": ["sum", {"dims": [0, 1], "keepdim": True}],
    "one picture": ["select", {"dim": 0, "index": 0}],
    "windows without end": ["avg_pool2d", {
        "kernel_size": 2, "stride": 1, "padding": 10**9, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": None,
    }],
    "a division by zero": ["avg_pool2d", {
        "kernel_size": 2, "stride": 1, "padding": 0, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": 0,
    }],
    "a mean of half the neurons": ["avg_pool2d", {
        "kernel_size": 2.5, "stride": 1, "padding": 0, "ceil_mode": False,
        "count_include_pad": True, "divisor_override": None,
    }],
}  # fmt: skip


@pytest.mark.parametrize("lie", INSERTED)
def test_operations_that_are_put_behind_a_layer(own, tmp_path, lie):
    kind, options = INSERTED[lie]

    def change(header, tensors):
        nodes = header["graph"]["nodes"]
        nodes.append(["more", kind, [nodes[0][0]], options])
        header["graph"]["output"] = {"list": [{"node": nodes[-2][0]}, {"node": "more"}]}

    refused(tmp_path / "w", changed(own, change), WeightsError)


def test_layers_that_grow_without_end(own, tmp_path):
    """Each doubles its side: forty of them are more than any machine has."""

    def change(header, tensors):
        nodes = header["graph"]["nodes"]
        for number in range(40):
            options = {"size": None, "scale_factor": 2.0, "mode": "nearest"}
            nodes.append([f"up{number}", "upsample", [nodes[-1][0]], options])
            if number == 0:
                nodes[-1][2] = [nodes[0][0]]
        header["graph"]["output"] = {"node": nodes[-1][0]}

    refused(tmp_path / "w", changed(own, change), WeightsError)


# ------------------------------------------------------------------ detectors and classifiers


def repeated(header, tensors):
    header["model"]["backbone"][2][1] = 10**9


def many_channels(header, tensors):
    header["model"]["backbone"][0][3][0] = 10**9


def old(change=None):
    """The same file in the old form, which had no graph."""

    def make(header, tensors):
        for field in ("graph", "head"):
            header.pop(field)
        if change is not None:
            change(header, tensors)

    return make


DETECTORS = {
    "float": {
        "a backbone repeated": repeated,
        "many channels": many_channels,
        "a backbone that is text": lambda h, t: h["model"].__setitem__("backbone", "x"),
        "no backbone": lambda h, t: h["model"].pop("backbone"),
        "another activation": lambda h, t: h["model"].__setitem__("activation", "exit()"),
        "a scale without end": lambda h, t: h["model"].__setitem__(
            "scales", {"n": [1e9, 1e9, 1e9]}
        ),
        "pixels without end": lambda h, t: h.__setitem__("imgsz", 10**6),
        "16,384 pixels": lambda h, t: h.__setitem__("imgsz", 16_384),
        "a missing tensor": lambda h, t: t.pop("model.0.conv.weight"),
    },
    "snn": {
        "pixels without end": lambda h, t: h.__setitem__("imgsz", 10**6),
        "steps without end": lambda h, t: h.__setitem__("T", 10**9),
        "strides of nothing": lambda h, t: h["head"].__setitem__("strides", [0, 0]),
        "strides of NaN": lambda h, t: h["head"].__setitem__("strides", [NAN, NAN]),
        "strides that are text": lambda h, t: h["head"].__setitem__("strides", "816"),
        "more strides": lambda h, t: h["head"]["strides"].append(64.0),
        "no strides": lambda h, t: h["head"].pop("strides"),
        "a reg_max without end": lambda h, t: h["head"].__setitem__("reg_max", 10**9),
        "another reg_max": lambda h, t: h["head"].__setitem__("reg_max", 3),
        "no head": lambda h, t: h.__setitem__("head", {}),
        "fewer classes": lambda h, t: h.__setitem__("names", ["a", "b"]),
        "more classes": lambda h, t: h["names"].append("unicorn"),
        "an output alone": lambda h, t: h["graph"].__setitem__(
            "output", {"node": h["graph"]["nodes"][-1][0]}
        ),
        "no scores": lambda h, t: h["graph"]["output"]["dict"].pop(1),
        "an input of one dimension": lambda h, t: h["graph"].__setitem__("input", [1, 3]),
        "the task of another": lambda h, t: h.__setitem__("task", "classification"),
        "pixels that no stride divides": lambda h, t: h.__setitem__("imgsz", 70),
        "levels that are numbers": lambda h, t: h["graph"]["output"]["dict"].__setitem__(
            2, ["feats", {"list": [{"value": 3}]}]
        ),
        "no graph, and a backbone repeated": old(repeated),
        "no graph, and many channels": old(many_channels),
        "no graph, and another pooling": old(
            lambda h, t: h["model"].__setitem__("spike_pooling", "least")
        ),
    },
}
BOTH = [(stage, lie) for stage, lies in DETECTORS.items() for lie in lies]


@pytest.mark.parametrize(("stage", "lie"), BOTH)
def test_detectors_that_lie(detectors, tmp_path, stage, lie):
    data = changed(detectors[stage], DETECTORS[stage][lie])
    refused(tmp_path / "w.safetensors", data, WeightsError)


@pytest.mark.parametrize(
    "change",
    [
        lambda h, t: h.__setitem__("names", ["a", "b"]),
        lambda h, t: h["names"].append("d"),
        lambda h, t: h["model"].__setitem__("mean", [NAN] * 3),
        lambda h, t: h["model"].__setitem__("std", [0, 0, 0]),
        lambda h, t: h["model"].__setitem__("mean", "x"),
        lambda h, t: h["graph"].__setitem__(
            "output", {"list": [{"node": h["graph"]["nodes"][-1][0]}] * 2}
        ),
    ],
    ids=["fewer classes", "more classes", "mean", "std", "text", "two outputs"],
)
def test_classifiers_that_lie(classifier, tmp_path, change):
    refused(tmp_path / "w.safetensors", changed(classifier, change), WeightsError)


@pytest.fixture
def devkit(tmp_path):
    from support.devkits import add, annotation

    add(tmp_path / "devkit", "VOC2007", "1", annotation(size=(64, 64)), "test")
    picture = tmp_path / "devkit/VOC2007/JPEGImages/1.jpg"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(picture)
    return tmp_path / "devkit"


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("snn", filled("threshold", 0.0)),
        ("snn", filled("initial", NAN)),
        ("snn", swapped("initial", lambda x: torch.zeros(0))),
        ("snn", DETECTORS["snn"]["pixels without end"]),
        ("snn", DETECTORS["snn"]["steps without end"]),
        ("snn", DETECTORS["snn"]["another reg_max"]),
        ("snn", lambda h, t: h.__setitem__("graph", "x")),
        ("snn", lambda h, t: GRAPHS["an unknown operation"](h["graph"])),
        ("snn", lambda h, t: t.pop("model.0.act.initial")),
        ("float", repeated),
        ("float", many_channels),
    ],
)
def test_commands_say_it_in_one_sentence(
    detectors, devkit, tmp_path, monkeypatch, capsys, stage, change
):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(changed(detectors[stage], change))
    picture = devkit / "VOC2007/JPEGImages/1.jpg"
    given = ["--weights", weights]
    for words in (
        ["evaluate", *given, "--data", devkit, "--split", "VOC2007:test"],
        ["detect", *given, "--out", tmp_path / "out", picture],
    ):
        assert command(monkeypatch, *words) == WeightsError.exit_code == 4
        shown = capsys.readouterr().err.splitlines()
        shown = [line for line in shown if not line.startswith(f"{devkit}: ")]  # what it holds
        assert len(shown) == 1 and shown[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ at random

ANYTHING = [
    None, True, False, 0, 1, 2, 3, -1, 7, 10**9, 10**21, 0.5, -0.0, 1e308, NAN, INF, "", "x",
    "input", "relu", "conv2d", [], {}, [1], [0], [1, 2, 3], [None], [[]], {"node": "input"},
    {"value": 1}, [10**9, 10**9], ["input"], "\x00", "a.b", "1" * 1000,
]  # fmt: skip


def places(value, path=()):
    """Paths to everything in nested lists and dictionaries."""
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


def mutated(value, rng):
    """A nested value with something in it replaced, removed, doubled, swapped or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        path = rng.choice(list(places(value)))
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        key, how = path[-1], rng.randrange(6)
        if how <= 2:
            parent[key] = copy.deepcopy(rng.choice(ANYTHING))
        elif how == 3:
            del parent[key]
        elif how == 4 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
        elif type(parent[key]) in (int, float):
            parent[key] = parent[key] * rng.choice([-1, 2, 10, 1000, 0.5])
        else:
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[key], parent[other] = parent[other], parent[key]
        if not list(places(value)):
            break
    return value


def expect_refused_or_right(path, data, picture):
    """A file ends in one sentence, or in a network that answers at its size."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        network = spikedet.load(path)
    except SpikedetError as error:
        assert str(error) and "\n" not in str(error)
        return False
    finally:
        assert time.process_time() - start < SECONDS
    try:
        if isinstance(network, SpikingNetwork):
            shape = network.graph.shapes["input"]
            if torch.Size(shape).numel() < 10**6:
                network(torch.rand(shape), 1)
        elif network.imgsz <= 128:
            network(picture, 1)
    except SpikedetError as error:
        assert str(error) and "\n" not in str(error)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(20))
def test_random_changes_of_the_header(own, tmp_path, seed):
    """Ten changes each of a network of one's own: 200 in all."""
    rng = random.Random(seed)
    metadata, tensors = opened(own)
    for number in range(10):
        header = mutated(metadata["header"], rng)
        data = closed({**metadata, "header": header}, tensors)
        try:
            expect_refused_or_right(tmp_path / "w", data, None)
        except Exception:
            (Path("/tmp") / f"lie-{seed}-{number}.json").write_text(json.dumps(header))
            raise


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["snn", "float", "classifier"])
def test_random_changes_of_detectors_and_classifiers(detectors, classifier, tmp_path, which):
    rng = random.Random(which)
    metadata, tensors = opened({**detectors, "classifier": classifier}[which])
    picture = np.full((64, 64, 3), 90, np.uint8)
    for _ in range(20):
        header = mutated(metadata["header"], rng)
        data = closed({**metadata, "header": header}, tensors)
        expect_refused_or_right(tmp_path / "w", data, picture)


@pytest.mark.filterwarnings("ignore")
def test_random_changes_of_the_bytes(own, tmp_path):
    rng = random.Random(0)
    end = 8 + int.from_bytes(own[:8], "little")
    for _ in range(100):
        data = bytearray(own)
        for _ in range(rng.choice([1, 2, 8])):
            data[rng.randrange(end)] = rng.randrange(256)
        expect_refused_or_right(
            tmp_path / "w", bytes(data[: rng.choice([len(data)] * 3 + [end])]), None
        )


@pytest.mark.filterwarnings("ignore")
def test_random_changes_of_the_index_of_tensors(own, tmp_path):
    """Shapes, types and places of tensors, which safetensors itself reads."""
    rng = random.Random(0)
    end = 8 + int.from_bytes(own[:8], "little")
    index = json.loads(own[8:end])
    told = index.pop("__metadata__")
    for _ in range(100):
        text = json.dumps({**mutated(index, rng), "__metadata__": told}).encode()
        data = len(text).to_bytes(8, "little") + text + own[end:]
        expect_refused_or_right(tmp_path / "w", data, None)
