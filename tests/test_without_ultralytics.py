"""What runs without ultralytics, and without other libraries that only detectors need."""

import os
import subprocess
import sys

import pytest

from spikedet.errors import UsageError
from support.places import ROOT

WITHOUT = """
import sys

for name in sys.argv[1:]:
    sys.modules[name] = None  # importing it fails as if it were not installed
"""
CORE = """
from pathlib import Path

import torch
from PIL import Image

import spikedet

network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
snn = spikedet.convert(network, [torch.rand(2, 3, 8, 8) for _ in range(2)], T=4)
spikedet.save(snn, "own.safetensors")
x = torch.rand(1, 3, 8, 8)
assert torch.equal(spikedet.load("own.safetensors", engine="torch")(x), snn(x))
spikedet.export("own.safetensors", "own.int8.safetensors")
Image.new("RGB", (32, 32), (200, 10, 10)).save("a.png")
assert len(spikedet.load(T=4, task="classification")("a.png").names) == 5

from spikedet import checkpoint, resources
from spikedet.classification.models import build
from spikedet.detection.boxes import Detections
from spikedet.files import read_yaml
from spikedet.released import released
from spikedet.runtime.file import restore

description = read_yaml(resources.config("cifar-resnet20", "models"))
spikedet.export(released("snn", 4, "classification"), "classifier.int8.safetensors")
spikedet.convert(build({**description, "width": 0.25}, 3), [torch.rand(2, 3, 8, 8)] * 2, T=4)
graph = restore(checkpoint.load(released("snn", 4)))  # a detector's, as far as its head
assert graph(torch.rand(1, 3, 64, 64))["scores"].shape == (1, 20, 20)
"""
DETECTOR = """
import spikedet
from spikedet.errors import UsageError

try:
    spikedet.load(T=4)
except UsageError as error:
    print(error)
"""


def run(code, *names, cwd):
    command = [sys.executable, "-c", WITHOUT + code, *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_the_core_and_classifiers(tmp_path):
    names = ["ultralytics", "cv2", "pycocotools", "albumentations", "matplotlib"]
    done = run(CORE, *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_detector_says_what_is_missing(tmp_path):
    done = run(DETECTOR, "ultralytics", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = "detectors need ultralytics, which is not installed here: pip install ultralytics\n"
    assert done.stdout == wanted


@pytest.mark.parametrize("tool", ["evaluate", "detect"])
def test_a_command_says_it_and_ends(tool, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    code = f"""
from spikedet.commands.main import main

main("{tool}", ["a.png"] if "{tool}" == "detect" else ["--data", "."])
"""
    done = run(code, "ultralytics", cwd=tmp_path)
    assert done.returncode == UsageError.exit_code and "Traceback" not in done.stderr
    assert "error: detectors need ultralytics" in done.stderr
