"""From data of one's own to spiking answers, by the commands of docs/own-data.md."""

import json
import re
import shlex

import numpy as np
import pytest

from spikedet.checkpoint import load
from spikedet.commands.main import parsed
from support.classes import add_cifar, add_pictures
from support.commands import command
from support.places import ROOT
from support.shapes import NAMES, WRITERS, listing

PAGE = ROOT / "docs/own-data.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
TOOLS = ["train", "convert", "evaluate", "detect", "energy"]
STAGE_TWO = ["--pictures", 4, "--held", 2, "--layer-steps", 1, "--end-to-end", 1]
STAGE_TWO += ["--end-batch", 4, "--end-workers", 0]
SMALL = {
    "train": ["--epochs", 1, "--imgsz", 64, "--batch", 4, "--workers", 0],
    "convert": ["--T", 2, "--epochs", 1, "--batch", 4, "--workers", 0, *STAGE_TWO],
    "evaluate": ["--json", "rows.json"],
    "detect": ["--json", "found.json", "--conf", 0],
    "classify": ["--json", "found.json"],
}


def commands(block):
    """(tool, words) of a block of the page."""
    return [
        (tool, shlex.split(words))
        for tool, words in re.findall(r"^spikedet (\w+)(.*)", block.replace("\\\n", ""), re.M)
    ]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(monkeypatch, block, **other):
    for tool, words in commands(block):
        words = [other.get(word, word) for word in words]
        width = ["--width", "n"] if tool == "train" and "--model" not in words else []
        assert command(monkeypatch, tool, *words, *SMALL.get(tool, []), *width) == 0, tool


def test_the_page_names_every_command():
    assert [tool for tool, _ in commands(BLOCKS[0])] == TOOLS
    for block in BLOCKS:
        for tool, words in commands(block):
            parsed(tool, words)


@pytest.mark.parametrize(
    ("format", "pictures", "shown"),
    [
        ("yolo", "shapes/images/val", "shapes: YOLO labels, 12 pictures of train, 3 classes"),
        ("voc", "shapes/Shapes/JPEGImages", "shapes: VOCdevkit, 12 pictures of Shapes:train, 3 cl"),
        ("coco", "shapes/val", "shapes: COCO annotations, 12 pictures of train, 3 classes"),
    ],
)
def test_detection(format, pictures, shown, tmp_path, monkeypatch, capsys):
    WRITERS[format](tmp_path / "shapes")
    before = listing(tmp_path / "shapes")
    run(monkeypatch, BLOCKS[0], **{"shapes/images/val": pictures})
    printed, told = capsys.readouterr()
    assert f"{shown}: circle, square, triangle" in told or format == "voc"
    assert shown in told
    assert listing(tmp_path / "shapes") == before  # nothing is written beside the pictures
    checkpoint = load(tmp_path / "runs/shapes-T8.safetensors")
    assert (checkpoint.names, checkpoint.stage, checkpoint.T) == (NAMES, "snn", 2)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["images"] == 4 and set(row["per_class"]) == set(NAMES) and row["AP"] is not None
    entries = json.loads((tmp_path / "found.json").read_text())
    assert len(entries) == (16 if format == "voc" else 4)
    assert {each["class"] for one in entries for each in one["detections"]} <= set(NAMES)
    assert "energy per picture" in printed


def test_classification(tmp_path, monkeypatch, capsys):
    add_pictures(tmp_path / "classes", "train", 50, NAMES, size=(16, 16))
    add_pictures(tmp_path / "classes", "test", 2, NAMES, size=(16, 16))
    (tmp_path / "classes/test/circle/000.png").rename(tmp_path / "picture.png")
    model = ROOT / "configs/models/cifar-resnet20.yaml"
    small = {"cifar-resnet20.yaml": model, "configs/models/cifar-resnet20.yaml": model}
    monkeypatch.setitem(SMALL, "train", [*SMALL["train"], "--imgsz", 16, "--width", 0.25])
    monkeypatch.setitem(SMALL, "energy", ["--limit", 2])
    run(monkeypatch, BLOCKS[1], **small)
    printed = capsys.readouterr().err
    assert "classes: class folders, 150 pictures of train, 3 classes: circle, square" in printed
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["images"] == 5 and 0 <= row["top1"] <= 1
    (answer,) = json.loads((tmp_path / "found.json").read_text())
    assert {each["class"] for each in answer["classes"]} == set(NAMES)


def test_cifar_is_said(tmp_path, monkeypatch, capsys):
    from spikedet import task_registry
    from spikedet.commands import shared

    add_cifar(tmp_path / "cifar10", monkeypatch)
    args = parsed("evaluate", ["--data", "cifar10"])
    task = task_registry.named("classification")
    samples = shared.read(args, task, shared.split(args, task.name, test=True))
    assert samples.labels == [2, 0, 1]
    told = "cifar10: CIFAR, 3 pictures of test, 3 classes: plane, car, bird\n"
    assert capsys.readouterr().err == told


def test_crowds_and_areas_reach_the_measurement(tmp_path, monkeypatch, capsys):
    """One of the boxes of COCO's file is a crowd; the largest counts as small where it is told."""
    from spikedet.detection.data import fingerprint
    from spikedet.detection.task import DETECTION
    from spikedet.task import Source

    WRITERS["coco"](tmp_path / "shapes")
    path = tmp_path / "shapes/annotations/instances_val.json"
    content = json.loads(path.read_text())
    before = DETECTION.read(Source([tmp_path / "shapes"], "val"))
    content["annotations"][0] |= {"iscrowd": 1, "area": 3}
    path.write_text(json.dumps(content))
    after = DETECTION.read(Source([path], "val"))
    assert [s.crowd.sum() for s in after] == [1, 0, 0, 0] and after[0].areas[0] == 3
    assert fingerprint(before) != fingerprint(after)
    assert np.array_equal(before[0].boxes, after[0].boxes)
