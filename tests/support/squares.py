"""A devkit of a few coloured squares, a small detector trained on it, and methods run on that.

The fixtures are those of the folders whose conftest.py imports them.
"""

import cv2
import numpy as np
import pytest
import torch

from spikedet.checkpoint import Checkpoint, load
from spikedet.checkpoint import save as save_checkpoint
from spikedet.commands import convert
from spikedet.commands.main import parsed
from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.data import read_voc
from spikedet.detection.defaults import Settings
from spikedet.detection.description import build, read_description
from spikedet.detection.samples import BoxSamples
from spikedet.detection.task import DETECTION
from spikedet.detection.train import Trainer
from spikedet.methods import METHODS
from spikedet.stages import run_files, stage_one
from spikedet.task import Run
from support.devkits import add, annotation
from support.places import ROOT


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares") / "VOCdevkit"
    rng = np.random.default_rng(0)
    for number in range(24):
        x, y = rng.integers(1, 30, 2)
        add(folder, "VOC2007", f"{number:06}", annotation(("dog", (x, y, x + 30, y + 30), False),
                                                          size=(64, 64)))  # fmt: skip
        picture = np.full((64, 64, 3), 60, np.uint8)
        picture[y - 1 : y + 30, x - 1 : x + 30] = (40, 200, 240)
        cv2.imwrite(str(folder / "VOC2007/JPEGImages" / f"{number:06}.jpg"), picture)
    (folder.parent / "tuning.txt").write_text("".join(f"VOC2007/{n:06}\n" for n in range(4)))
    return folder


@pytest.fixture
def sides(devkit, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))
    samples = BoxSamples(read_voc(devkit, "VOC2007:train"))
    return samples.split_off_tuning(devkit.parent / "tuning.txt")


def trainer(sides, folder, resume=False, width="n", **settings):
    torch.manual_seed(0)
    network = build(read_description(ROOT / "configs/models/tiny-yolo.yaml", width), 20)
    small = {"epochs": 3, "imgsz": 64, "batch": 8, "close_mosaic": 1, "workers": 0}
    settings = Settings(**{**small, **settings})

    def save(averaged, path):
        tensors = averaged.state_dict()
        checkpoint = Checkpoint("float", "detection", {}, VOC_CLASSES, 64, tensors)
        save_checkpoint(checkpoint, path)

    checkpoint = Checkpoint("float", "detection", {}, VOC_CLASSES, settings.imgsz, {})
    return Trainer(network, Run(checkpoint, *sides, folder, settings, save, resume))


@pytest.fixture(scope="module")
def stages_done(devkit, tmp_path_factory):
    """Float and stage-I weights of an untrained network, and the options that all methods share."""
    folder = tmp_path_factory.mktemp("methods")
    torch.manual_seed(0)
    description = read_description(ROOT / "configs/models/tiny-yolo.yaml", "n")
    tensors = build(description, 20).state_dict()
    checkpoint = Checkpoint("float", "detection", description, VOC_CLASSES, 64, tensors)
    save_checkpoint(checkpoint, folder / "float.safetensors")
    samples = BoxSamples(read_voc(devkit, "VOC2007:train", cache=folder))
    train, _ = samples.split_off_tuning(devkit.parent / "tuning.txt")
    save_checkpoint(stage_one.untuned(DETECTION, checkpoint, train, 4), folder / "qc.safetensors")
    return folder


def converted(folder, devkit, method, *words):
    """The network that spikedet convert makes, and its origin."""
    out = folder / f"{method}.safetensors"
    for path in (out, run_files.last_file(out)):
        path.unlink(missing_ok=True)
    does = METHODS.get(method)
    small = ["--pictures", 8, "--held", 8] if does and does.calibrated else []
    small += ["--layer-steps", 4] if does and does.fine else []
    small += ["--end-to-end", 2] if does and does.end_to_end else []
    data = ["--data", devkit, "--split", "VOC2007:train", "--tuning", devkit.parent / "tuning.txt"]
    given = ["--model", folder / "float.safetensors", "--method", method, "--T", 4, "--out", out]
    convert.run(parsed("convert", [*given, *data, *small, *words]))
    checkpoint = load(out)
    assert (checkpoint.stage, checkpoint.T) == ("snn", 4)
    return checkpoint


def different(a, b):
    """Kinds of tensors in which two networks differ."""
    return {
        name.rsplit(".", 1)[1]
        for name, tensor in a.tensors.items()
        if not torch.equal(tensor, b.tensors[name])
    }
