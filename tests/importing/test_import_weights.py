"""Trained weights of other people's networks become float checkpoints that convert."""

import subprocess
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from spikedet import networks, task_registry
from spikedet.checkpoint import load
from spikedet.commands import import_weights
from spikedet.commands.main import parsed
from spikedet.detection.description import build, read_description
from spikedet.errors import DataError, UsageError, WeightsError

RESNET = "configs/models/imagenet-resnet18.yaml"


@pytest.fixture
def resnet(tmp_path):
    """A state dict of torchvision's ResNet-18 with three classes, its names, and the network."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "state.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    return network


def imported(folder, *words, model=RESNET, state="state.pth", imgsz=64, out="w.safetensors"):
    given = ["--model", model, "--state", folder / state, "--names", folder / "names.txt"]
    given += ["--out", folder / out, *words, *(["--imgsz", imgsz] if imgsz else [])]
    import_weights.run(parsed("import", given))
    return load(folder / out)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_torchvision_weights_compute_the_same(resnet, tmp_path, kind):
    if kind == "safetensors":
        save_file(resnet.state_dict(), tmp_path / "state.safetensors")
    checkpoint = imported(tmp_path, state="state.pth" if kind == "torch" else "state.safetensors")
    assert (checkpoint.stage, checkpoint.task, checkpoint.names) == (
        "float",
        "classification",
        ("a", "b", "c"),
    )
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        output = networks.restore(task_registry.of(checkpoint), checkpoint)(pictures)
        assert torch.allclose(output, resnet(pictures), atol=1e-4)


def test_the_side_that_is_usual(resnet, tmp_path):
    assert imported(tmp_path, imgsz=None).imgsz == 224
    with pytest.raises(UsageError, match="--imgsz is missing: yolov8n.yaml does not give"):
        imported(tmp_path, model="yolov8n.yaml", imgsz=None, out="x")


def test_a_relu_detector_of_ultralytics(tmp_path):
    torch.manual_seed(0)
    description = read_description("yolov8n.yaml", activation="torch.nn.ReLU()")
    source = build(description, 2)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    words = ("--activation", "torch.nn.ReLU()")
    checkpoint = imported(tmp_path, *words, model="yolov8n.yaml", state="state.pt")
    assert all(torch.equal(t, checkpoint.tensors[name]) for name, t in source.state_dict().items())
    with pytest.raises(UsageError, match="imgsz is 65; expected a multiple of 32"):
        imported(tmp_path, *words, model="yolov8n.yaml", state="state.pt", imgsz=65, out="x")
    with pytest.raises(Exception, match="SiLU"):
        imported(tmp_path, model="yolov8n.yaml", state="state.pt", out="x")
    assert not (tmp_path / "x").exists()


class Model(torch.nn.Module):
    """Pickled whole."""


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: torch.save(Model(), path), "holds .*Model, which is not read.*state_dict"),
        (lambda path: torch.save({"model": {}}, path), "not a state dict"),
        (lambda path: path.write_bytes(b"no weights"), "damaged, or not a file"),
        (lambda path: None, "cannot be read"),
        (
            lambda path: torch.save({"fc.bias": torch.zeros(3)}, path),
            r'Missing key.*"conv1.weight", .{,200} \.\.\. \(there is no batch norm in this',
        ),
    ],
)
def test_what_is_no_state_dict_of_the_network(tmp_path, write, words):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    write(tmp_path / "state.pth")
    with pytest.raises(WeightsError, match=words):
        imported(tmp_path)
    assert not (tmp_path / "w.safetensors").exists()


def test_other_classes_and_finished_files_are_refused(resnet, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(WeightsError, match="does not fit .* with 2 classes: size mismatch for fc"):
        imported(tmp_path)
    (tmp_path / "names.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="names.txt: two classes have the name 'a'"):
        imported(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="exists already"):
        imported(tmp_path)


def test_a_classifier_of_torchvision_by_its_name(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(num_classes=3).eval()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 9, "state_dict": state}, tmp_path / "state.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    checkpoint = imported(tmp_path, model="torchvision:mobilenet_v2", imgsz=None)
    assert checkpoint.model == {"task": "classification", "arch": "torchvision/mobilenet_v2"}
    assert (checkpoint.names, checkpoint.imgsz) == (("a", "b", "c"), 224)
    assert all(torch.equal(t, checkpoint.tensors[name]) for name, t in network.state_dict().items())
    with pytest.raises(UsageError, match="torchvision/vgg17; torchvision has no such .*/vgg16"):
        imported(tmp_path, model="torchvision:vgg17", out="x")
    with pytest.raises(WeightsError, match="does not fit torchvision:resnet50 with 3 classes"):
        imported(tmp_path, model="torchvision:resnet50", out="x")
    assert not (tmp_path / "x").exists()


def test_auxiliary_heads_are_left_out_with_a_word(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    network = torchvision.models.googlenet(num_classes=3, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "state.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    monkeypatch.setattr(networks, "expect_convertible", lambda *_: None)  # tested elsewhere
    checkpoint = imported(tmp_path, model="torchvision:googlenet", imgsz=None)
    assert "left out: 20 tensors of auxiliary heads" in capsys.readouterr().out
    assert checkpoint.model["mean"] == checkpoint.model["std"] == [0.5, 0.5, 0.5]
    assert not any(name.startswith("aux") for name in checkpoint.tensors)
    weight = network.inception5b.branch1.conv.weight
    assert torch.equal(checkpoint.tensors["inception5b.branch1.conv.weight"], weight)


def test_the_command_ends_with_a_sentence_and_a_code(tmp_path):
    torch.save({"model": Model()}, tmp_path / "best.pt")
    words = ["--state", tmp_path / "best.pt", "--out", tmp_path / "w.safetensors"]
    done = subprocess.run(
        [sys.executable, "-m", "spikedet", "import", *words], capture_output=True, text=True
    )
    assert done.returncode == 4 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert f"holds the Python object {Model.__module__}.Model" in done.stderr
    assert not (tmp_path / "w.safetensors").exists()
