"""Which output stride an object is a target of, and where a fresh head starts."""

from types import SimpleNamespace

import pytest
import torch

from spikedet.checkpoint import load
from spikedet.detection.assign import SizedLoss, fits, multiple_of
from spikedet.detection.description import build, read_description
from spikedet.detection.train import Trainer
from spikedet.detection.ultra import DetectionLoss
from spikedet.errors import UsageError
from support.commands import command
from support.places import ROOT
from support.squares import trainer

STRIDES = torch.tensor([16.0, 32.0])


@pytest.fixture
def network():
    torch.manual_seed(0)
    detector = build(read_description(ROOT / "configs/models/tiny-yolo.yaml", "n"), 20)
    detector.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    return detector.train()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1, 1, (True, False)),
        (0, 0, (True, False)),
        (111, 111, (True, False)),
        (112, 112, (True, True)),  # 3.5 strides of 32
        (192, 192, (True, True)),  # 12 strides of 16
        (193, 193, (False, True)),
        (400, 400, (False, True)),
        (50, 400, (True, True)),  # the side is the root of the area: 141
        (400, 20, (True, False)),
    ],
)
def test_strides_of_a_size(width, height, expected):
    box = torch.tensor([[10.0, 20.0, 10.0 + width, 20.0 + height]])
    assert tuple(fits(box, STRIDES)[0].tolist()) == expected


def test_of_three_strides_the_middle_one_has_both_bounds():
    lengths = torch.tensor([20.0, 90.0, 150.0, 300.0])
    boxes = torch.stack([torch.zeros(4), torch.zeros(4), lengths, lengths], 1)
    fitting = fits(boxes, torch.tensor([8.0, 16.0, 32.0])).int().tolist()
    assert fitting == [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]


def targets(network, kind, boxes, side=384):
    """How many anchors of each stride are targets: of one picture with boxes x1 y1 x2 y2."""
    loss, seen = kind(network), {}
    assigned = loss.assigner.forward

    def look(*args, **options):
        targets = assigned(*args, **options)
        seen["foreground"] = targets[3][0]
        return targets

    loss.assigner.forward = look
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4) / side
    centre = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    batch = {"batch_idx": torch.zeros(len(boxes)), "cls": torch.zeros(len(boxes), 1)}
    total, _ = loss(network(torch.zeros(1, 3, side, side)), {**batch, "bboxes": centre})
    assert total.isfinite().all()
    first = (side // 16) ** 2
    foreground = seen["foreground"]
    return int(foreground[:first].sum()), int(foreground[first:].sum())


def test_large_objects_are_targets_of_the_large_stride_and_small_ones_are_not(network):
    small, large = (32, 32, 92, 92), (100, 100, 350, 350)
    fine, coarse = targets(network, SizedLoss, [small])
    assert fine > 0 and coarse == 0
    fine, coarse = targets(network, SizedLoss, [large])
    assert fine == 0 and coarse > 0
    fine, coarse = targets(network, SizedLoss, [small, large])
    assert fine > 0 and coarse > 0


def test_an_object_without_an_anchor_of_its_stride_takes_another(network):
    # 12 pixels wide between the centres of stride 32 (16 and 48), 1,500 high and so a large one
    fine, coarse = targets(network, SizedLoss, [(34, 0, 46, 1500)], side=1536)
    assert fine > 0 and coarse == 0


def test_a_picture_without_objects_has_no_targets(network):
    assert targets(network, SizedLoss, []) == (0, 0)


def test_boxes_of_a_fresh_head_start_at_seven_strides(network):
    for branch in network.model[-1].cv2:
        distances = branch[-1].bias.view(4, 16).softmax(1) @ torch.arange(16.0)
        assert distances.tolist() == pytest.approx([3.5] * 4, abs=0.05)
    both = targets(network, DetectionLoss, [(60, 60, 324, 324)])
    assert both[1] > 0  # which none was at 15 strides: ultralytics' own assignment finds it, too


def test_the_option_reaches_the_loss(sides, tmp_path):
    for by_size, kind in ((False, DetectionLoss), (True, SizedLoss)):
        run = trainer(sides, tmp_path / str(by_size), by_size=by_size)
        run.setup_model()
        run.network.args = run.args
        assert type(run.network.init_criterion()) is kind


def test_heads_that_start_anew(network):
    names = network.model[-1].layers([32])
    assert names == ("model.14.cv2.1.", "model.14.cv3.1.")
    assert any(key.startswith(names) for key in network.state_dict())
    with pytest.raises(UsageError, match="stride 8: expected an output stride .*: 16, 32"):
        network.model[-1].layers([16, 8])


def test_fresh_heads_of_the_command(devkit, tmp_path, monkeypatch, capsys):
    words = ["--data", devkit, "--split", "VOC2007:train", "--width", "n", "--epochs", 1]
    words += ["--tuning", devkit.parent / "tuning.txt", "--imgsz", 64, "--workers", 0]
    assert command(monkeypatch, "train", *words, "--out", tmp_path / "a") == 0
    first = tmp_path / "a/best.safetensors"
    again = [*words, "--pretrained", first, "--rate", 1e-12, "--warmup", 0, "--by-size"]
    assert command(monkeypatch, "train", *again, "--fresh-heads", 32, "--out", tmp_path / "b") == 0
    before, after = (load(tmp_path / f"{run}/best.safetensors").tensors for run in "ab")
    changed = {
        key.split(".")[1] + "." + ".".join(key.split(".")[2:4])
        for key in before
        if key.endswith("conv.weight") and not torch.allclose(before[key], after[key])
    }
    assert changed == {"14.cv2.1", "14.cv3.1"}
    assert command(monkeypatch, "train", *words, "--fresh-heads", 32, "--out", tmp_path / "c") == 2
    assert "--fresh-heads: has no effect" in capsys.readouterr().err
    for wrong, sentence in ((8, ": 16, 32"), (0, "not an integer of 1 or more")):
        out = tmp_path / f"d{wrong}"
        assert command(monkeypatch, "train", *again, "--fresh-heads", wrong, "--out", out) == 2
        assert sentence in capsys.readouterr().err


def test_sides_of_a_network_with_a_larger_stride_inside():
    """The one-head network reads out at stride 16 only, and joins layers of stride 16 and 32."""
    assert multiple_of([8.0]) == multiple_of([16.0]) == multiple_of([16.0, 32.0]) == 32
    assert multiple_of([16.0, 64.0]) == 64
    network = build(read_description(ROOT / "configs/models/tiny-yolo-one-head.yaml", "n"), 20)
    assert network.stride.tolist() == [16.0]
    run = Trainer.__new__(Trainer)
    run.network, run.settings = network.train(), SimpleNamespace(grow_from=64)
    run.args, run.epochs = SimpleNamespace(imgsz=128), 10
    sides = {run.side(epoch) for epoch in range(10)}
    assert sides == {64, 96, 128}
    for side in sides:
        network(torch.rand(2, 3, side, side))
