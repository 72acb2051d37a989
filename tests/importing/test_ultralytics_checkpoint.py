"""A best.pt of ultralytics' own classes becomes a float checkpoint with equal outputs."""

import copy

import pytest
import torch
from torch import nn

from spikedet import networks, task_registry
from spikedet.checkpoint import load
from spikedet.commands import import_weights
from spikedet.commands.main import parsed
from spikedet.detection.description import read_description
from spikedet.detection.ultra import DetectionModel, utils
from spikedet.errors import ConversionError, DataError, UsageError, WeightsError

DESCRIPTION = {
    "nc": 3,
    "activation": "torch.nn.ReLU()",
    "scales": {"n": [0.5, 0.25, 64], "s": [1.0, 0.5, 64]},
    "scale": "n",
    "yaml_file": "a-folder-of-its-trainer/small.yaml",
    "backbone": [
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "nn.MaxPool2d", [2, 2]],
        [-1, 2, "C2f", [64, True]],
        [-1, 1, "Conv", [64, 3, 2]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [-1, 1, "C2f", [64]],
        [[7, 4], 1, "Detect", ["nc"]],
    ],
}
NAMES = {0: "cat", 1: "dog", 2: "small owl"}


def detector(**more):
    """A detector of ultralytics whose batch norms have seen pictures."""
    torch.manual_seed(0)
    model = DetectionModel(copy.deepcopy(DESCRIPTION) | more, verbose=False)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.uniform_(-0.2, 0.5)
    model.names = dict(NAMES)
    model.args = utils.IterableSimpleNamespace(imgsz=640, box=7.5)
    return model.eval()


def best(path, network, ema=True, **more):
    """What ultralytics' trainer saves (`ema`), or leaves when it has finished (`model`)."""
    half = copy.deepcopy(network).half()
    optimizer = torch.optim.SGD(half.parameters(), 0.1).state_dict()
    content = {
        "epoch": 3 if ema else -1,
        "best_fitness": torch.tensor(0.5).numpy()[()],
        "model": None if ema else half,
        "ema": half if ema else None,
        "updates": 10,
        "optimizer": optimizer if ema else None,
        "train_args": {"imgsz": 96, "data": "coco8.yaml", "batch": 4},
        "train_metrics": {"fitness": 0.5},
        "train_results": {"epoch": [1, 2, 3]},
        "date": "2025-01-01T00:00:00",
        "version": "8.4.0",
    }
    torch.save(content | more, path)
    return half.float()


def imported(folder, *words, state="best.pt", out="w.safetensors"):
    given = ["--state", folder / state, "--out", folder / out, *words]
    import_weights.run(parsed("import", given))
    return load(folder / out)


def refused(folder, error, match, *words):
    with pytest.raises(error, match=match):
        imported(folder, *words)
    assert not (folder / "w.safetensors").exists()


@pytest.mark.parametrize("ema", [True, False], ids=["last", "finished"])
def test_a_trained_detector_comes_out_whole(tmp_path, capsys, ema):
    source = best(tmp_path / "best.pt", detector(), ema)
    checkpoint = imported(tmp_path)
    assert (checkpoint.stage, checkpoint.task, checkpoint.imgsz) == ("float", "detection", 96)
    assert checkpoint.names == ("cat", "dog", "small owl")
    assert checkpoint.model["backbone"] == DESCRIPTION["backbone"]
    assert (checkpoint.model["scale"], checkpoint.model["activation"]) == ("n", "torch.nn.ReLU()")
    assert "yaml_file" not in checkpoint.model
    assert capsys.readouterr().out.endswith("w.safetensors: detection, 3 classes, 96 pixels\n")
    state = source.state_dict()
    assert state.keys() == checkpoint.tensors.keys()
    for name, tensor in state.items():
        assert (
            torch.equal(tensor, checkpoint.tensors[name])
            and tensor.dtype == checkpoint.tensors[name].dtype
        )
    pictures = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        output, wanted = (
            networks.module_of(task_registry.of(checkpoint), checkpoint)(pictures),
            source(pictures)[1],
        )
        assert torch.equal(output["boxes"], wanted["boxes"])
        assert torch.equal(output["scores"], wanted["scores"])
        assert output["scores"].std() > 0


def test_the_mean_over_training_is_taken_before_the_model(tmp_path):
    other = detector()
    other.model[0].conv.weight.data.zero_()
    source = best(tmp_path / "best.pt", detector(), model=other)
    checkpoint = imported(tmp_path)
    assert torch.equal(checkpoint.tensors["model.0.conv.weight"], source.model[0].conv.weight)


def test_what_is_given_goes_before_what_the_file_says(tmp_path):
    best(tmp_path / "best.pt", detector())
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    checkpoint = imported(tmp_path, "--names", tmp_path / "names.txt", "--imgsz", "128")
    assert (checkpoint.names, checkpoint.imgsz) == (("a", "b", "c"), 128)
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "w.safetensors").unlink()
    words = "does not fit its own description with 2 classes: size mismatch"
    refused(tmp_path, WeightsError, words, "--names", tmp_path / "names.txt")
    refused(tmp_path, UsageError, "--width: .* sets its own width", "--width", "s")
    refused(tmp_path, UsageError, "imgsz is 65; expected a multiple of 32", "--imgsz", "65")


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"train_args": {"imgsz": [96, 96]}}, 96),
        ({"train_args": {}}, 640),  # of the model's own
        ({"train_args": {"imgsz": [96, 64]}}, 640),
        ({"train_args": {"imgsz": True}}, 640),
    ],
)
def test_the_size_of_the_training_pictures(tmp_path, settings, side):
    best(tmp_path / "best.pt", detector(), **settings)
    assert imported(tmp_path).imgsz == side


def test_a_file_without_a_size(tmp_path):
    model = detector()
    del model.args
    best(tmp_path / "best.pt", model, train_args=None)
    refused(tmp_path, UsageError, "--imgsz is missing: .*best.pt does not give")
    assert imported(tmp_path, "--imgsz", "64").imgsz == 64


def test_an_activation_that_does_not_convert_is_refused_with_advice(tmp_path):
    best(tmp_path / "best.pt", detector(activation=None))
    refused(tmp_path, ConversionError, "SiLU.*torch.nn.ReLU")


def test_layers_that_were_exchanged_after_they_were_built(tmp_path):
    model = detector(activation=None)
    for layer in model.modules():
        if hasattr(layer, "act"):
            layer.act = nn.ReLU()
    source = best(tmp_path / "best.pt", model)
    refused(tmp_path, WeightsError, "model.0.act is ReLU in the file but SiLU.*--activation")
    checkpoint = imported(tmp_path, "--activation", "torch.nn.ReLU()")
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        output = networks.module_of(task_registry.of(checkpoint), checkpoint)(pictures)
        assert torch.equal(output["scores"], source(pictures)[1]["scores"])


def exchange(model, name, value):
    owner, _, key = name.rpartition(".")
    setattr(model.get_submodule(owner), key, value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.0.bn.eps", 0.5, "model.0.bn has eps 0.5 in the file but 0.001"),
        ("model.2.kernel_size", 3, "model.2 has kernel_size 3 in the file but 2"),
        ("model.3.m.0.add", False, "model.3.m.0 has add False in the file but True"),
        ("model.6.f", [-1, 2], r"model.6 has f \[-1, 2\] in the file but \[-1, 3\]"),
        ("model.2.more", nn.ReLU(), "model.2.more is not in the description of the network"),
    ],
)
def test_settings_that_differ_from_the_description(tmp_path, name, value, words):
    model = detector()
    exchange(model, name, value)
    best(tmp_path / "best.pt", model)
    refused(tmp_path, WeightsError, words)


def test_a_layer_that_is_missing(tmp_path):
    model = detector()
    del model.model._modules["2"]
    best(tmp_path / "best.pt", model)
    refused(tmp_path, WeightsError, "model.2 of the description is not in the network")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("names", {0: "cat", 2: "dog"}, "the class names are damaged"),
        ("names", ["cat", "cat", "dog"], "the class names are damaged"),
        ("names", ["cat", 1, "dog"], "the class names are damaged"),
        ("names", None, "the class names are damaged"),
        ("names", ["cat", "dog"], "its network has 3 classes and 2 names"),
        ("yaml", None, "the description of its network is damaged"),
        ("yaml", {"nc": {1}}, "the description of its network is damaged"),
        ("yaml", {"nc": float("nan")}, "the description of its network is damaged"),
    ],
)
def test_damaged_contents(tmp_path, key, value, words):
    model = detector()
    setattr(model, key, value)
    best(tmp_path / "best.pt", model)
    refused(tmp_path, WeightsError, f"best.pt: {words}")


def test_a_description_that_cannot_be_built(tmp_path):
    model = detector()
    model.yaml = {"nc": 3, "backbone": [[-1, 1, "Nothing", []]], "head": []}
    best(tmp_path / "best.pt", model)
    refused(tmp_path, UsageError, "the network description cannot be built")


def test_names_in_a_row(tmp_path):
    model = detector()
    model.names = ["a", "b", "c"]
    best(tmp_path / "best.pt", model)
    assert imported(tmp_path).names == ("a", "b", "c")


def test_the_state_of_a_checkpoint_for_a_named_description(tmp_path):
    torch.manual_seed(0)
    model = DetectionModel(read_description("yolov8n.yaml", None, "torch.nn.ReLU()"), nc=2)
    model.names = {0: "a", 1: "b"}
    source = best(tmp_path / "best.pt", model)
    checkpoint = imported(tmp_path, "--model", "yolov8n.yaml", "--activation", "torch.nn.ReLU()")
    assert torch.equal(checkpoint.tensors["model.0.conv.weight"], source.model[0].conv.weight)
    assert (checkpoint.names, checkpoint.imgsz) == (("a", "b"), 96)


def test_plain_states_need_a_network_and_names(tmp_path):
    torch.save(detector().state_dict(), tmp_path / "best.pt")
    refused(tmp_path, UsageError, "--model is missing: .*best.pt does not contain a network")
    refused(tmp_path, UsageError, "--names is missing: .*best.pt", "--model", "yolov8n.yaml")
    (tmp_path / "names.txt").write_text("\n")
    names = ("--names", tmp_path / "names.txt")
    refused(tmp_path, DataError, "names.txt: no class names", "--model", "yolov8n.yaml", *names)
