"""The commands as a user runs them: in a process of their own, with the released weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import spikedet
from support.places import BUS, ROOT

TOOLS = sorted((ROOT / "tools").glob("*.py"))


pytestmark = pytest.mark.skipif(
    not list((ROOT / "weights").glob("tiny-yolo-s-snn-T8.safetensors")),
    reason="no spiking weights are released yet",
)


def run(name, *words, cwd=None, timeout=300):
    command = [sys.executable, "-m", "spikedet", name, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment
    )


@pytest.fixture
def bus(tmp_path):
    return shutil.copy(BUS, tmp_path / "bus.jpg")


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_the_tools_of_the_clone_are_the_commands(path, tmp_path):
    """Each says in its first line which, and has its options, beside which nothing stands there."""
    name, *given = re.findall(r"spikedet ([\w -]+)`", path.read_text())[0].split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, path, "--help"], capture_output=True, text=True, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(name, *given, "--help", cwd=tmp_path).stdout
    assert len(path.read_text().splitlines()) < 10


def test_detect_finds_people_and_a_bus(bus, tmp_path):
    done = run("detect", "--T", 20, "bus.jpg", "--json", "found.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "found.json").read_text())
    assert entry["file"] == "bus.jpg" and entry["T"] == 20
    assert entry["command"] == "detect" and entry["spikedet"] == spikedet.__version__
    classes = [d["class"] for d in entry["detections"]]
    assert "person" in classes and "bus" in classes
    for each in entry["detections"]:
        x1, y1, x2, y2 = each["xyxy"]
        assert 0 <= x1 < x2 <= 810 and 0 <= y1 < y2 <= 1080 and 0.25 < each["score"] <= 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("bus.jpg: ")]
    assert len(lines) == len(classes)
    drawn, original = cv2.imread(str(tmp_path / "detections/bus.jpg")), cv2.imread(bus)
    assert drawn.shape == original.shape and (drawn != original).mean() > 0.01
    assert "T=20" in done.stdout


@pytest.mark.slow
def test_each_step_is_listed_and_drawn(bus, tmp_path):
    shutil.copy(bus, tmp_path / "copy.png")  # read by its content
    done = run("detect", "--T", 8, "bus.jpg", "--json", "last.json", cwd=tmp_path)
    every = run(
        "detect", "--T", 8, "--each-step", "bus.jpg", "copy.png", "--classes", "person", "bus",
        "--json", "steps.json", "--out", "steps", cwd=tmp_path,
    )  # fmt: skip
    assert every.returncode == 0, every.stderr
    entries = json.loads((tmp_path / "steps.json").read_text())
    assert [(e["file"], e["T"]) for e in entries] == [
        (name, t) for name in ("bus.jpg", "copy.png") for t in range(1, 9)
    ]
    (last,) = json.loads((tmp_path / "last.json").read_text())
    assert entries[0]["detections"] != entries[7]["detections"]
    for detection, wanted in zip(entries[7]["detections"], last["detections"], strict=True):
        assert detection["class"] == wanted["class"]
        assert np.allclose(detection["xyxy"], wanted["xyxy"], atol=0.5)
    names = [f"{stem}-t0{t}.{kind}" for stem, kind in (("bus", "jpg"), ("copy", "png"))
             for t in range(1, 9)]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == names
    lines = [line for line in every.stdout.splitlines() if line.startswith("bus.jpg: ")]
    assert lines == done.stdout.splitlines()[:-1]
    assert "objects in 2 pictures, T=8" in every.stdout


def test_each_step_needs_spikes(bus, tmp_path):
    weights = next((ROOT / "weights").glob("tiny-yolo-s-float.safetensors"))
    done = run("detect", "--each-step", "--weights", weights, "bus.jpg", cwd=tmp_path)
    assert done.returncode == 2 and "expected spiking weights" in done.stderr, done.stderr


def test_the_rest_of_a_batch_is_done(bus, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(BUS.read_bytes()[:50_000])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(tmp_path / "grey.png")
    done = run(
        "detect", "--T", 8, "cut.jpg", "text.jpg", "gone.jpg", "empty", "*.bmp", "grey.png",
        "bus.jpg", "--json", "found.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3
    errors = done.stderr.splitlines()
    for words in (
        "cut.jpg: truncated",
        "text.jpg: is not a picture",
        "gone.jpg: no such picture",
        "empty: no pictures in this folder",
        "*.bmp: no file matches",
    ):
        assert sum(words in line for line in errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [e["file"] for e in entries] == ["grey.png", "bus.jpg"]
    assert entries[0]["detections"] == [] and entries[1]["detections"]


def test_what_cannot_be_read_in_a_folder_stops_nothing(tmp_path):
    """A pipe hung here, a link to itself and a long row of pixels ended the run."""
    from support.pictures import write_png

    folder = tmp_path / "holiday"
    folder.mkdir()
    name = "n" * 242 + ".jpg"  # whose temporary name was too long
    for good in ("a.avif", "b.jp2", name):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / good)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "telephone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    write_png(folder / "row.png", "1", (134_300_000, 1))
    write_png(folder / "wall.png", "L", (15_000, 10_000))
    done = run("detect", "--T", 4, "holiday", "--json", "found.json", cwd=tmp_path, timeout=200)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    wanted = ["loop.jpg: a link that leads nowhere", "pipe.jpg: is a pipe or a device"]
    wanted += ["row.png: 134300000 x 1 pixels are too many", "wall.png: 15000 x 10000 pixels are"]
    wanted += [] if find_spec("pillow_heif") else ["1 HEIC picture cannot be read (telephone.heic)"]
    for words in wanted:
        assert sum(words in line for line in done.stderr.splitlines()) == 1, done.stderr
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [Path(e["file"]).name for e in entries] == ["a.avif", "b.jp2", name]
    written = sorted(p.name for p in (tmp_path / "detections").iterdir())
    assert written == ["a.png", "b.png", name]


def test_a_resized_set_is_measured_as_it_is(bus, tmp_path):
    """AP of a set whose pictures were made smaller, without their XML, was 0."""
    from support.devkits import add, annotation

    boxes = [("person", (49, 399, 245, 903), False), ("bus", (23, 231, 805, 757), False)]
    for devkit, size in (("as-it-was", (810, 1080)), ("smaller", (540, 720))):
        add(tmp_path / devkit, "VOC2007", "1", annotation(*boxes, size=(810, 1080)), "val")
        with Image.open(BUS) as picture:
            small = picture.resize(size, Image.Resampling.BICUBIC)
        small.save(tmp_path / devkit / "VOC2007/JPEGImages/1.jpg", quality=95)
    rows = {}
    for devkit in ("as-it-was", "smaller"):
        done = run("evaluate", "--data", devkit, "--T", 8, "--json", "rows.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (rows[devkit],) = json.loads((tmp_path / "rows.json").read_text())
        warned = (
            "1 picture with another size than in the annotations; the boxes are scaled to it (1.jpg"
        )
        assert (warned in done.stderr) == (devkit == "smaller")
    assert rows["smaller"]["AP50"] == rows["as-it-was"]["AP50"] > 0.4
    assert abs(rows["smaller"]["AP"] - rows["as-it-was"]["AP"]) < 0.15


def test_inputs_are_never_overwritten(bus, tmp_path):
    before = Path(bus).read_bytes()
    done = run("detect", "--T", 8, "bus.jpg", "--out", ".", cwd=tmp_path)
    assert done.returncode == 3 and "is one of the inputs" in done.stderr
    assert Path(bus).read_bytes() == before


def test_two_inputs_of_one_name_give_two_pictures(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / folder / "x.png")
    done = run("detect", "--T", 8, "a", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "detections").iterdir()) == ["x-2.png", "x.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--T", "0", "bus.jpg"], 2, "T is '0'; expected an integer from 1 to 10000"),
        (["--T", "two", "bus.jpg"], 2, "T is 'two'"),
        (["--conf", "7", "bus.jpg"], 2, "not a number between 0 and 1"),
        (["--classes", "zebra", "--", "bus.jpg"], 2, "unknown class 'zebra'"),
        (["--weights", "gone.safetensors", "bus.jpg"], 4, "gone.safetensors: no such weights"),
        (["--weights", "bus.jpg", "bus.jpg"], 4, "damaged, or not a safetensors file"),
        (["--device", "cuda:99", "bus.jpg"], 2, "CUDA devices"),
    ],
)
def test_bad_arguments(bus, tmp_path, arguments, code, words):
    done = run("detect", *arguments, cwd=tmp_path)
    assert done.returncode == code and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_another_T_warns_and_runs(bus, tmp_path):
    done = run("detect", "--T", 3, "bus.jpg", cwd=tmp_path)
    assert done.returncode == 0
    assert "calibrated for T=4, not T=3" in done.stderr


@pytest.mark.slow
def test_evaluate_on_a_devkit_of_one_picture(bus, tmp_path):
    from support.devkits import add, annotation

    boxes = [("person", (49, 399, 245, 903), False), ("bus", (23, 231, 805, 757), False)]
    add(tmp_path / "devkit", "VOC2007", "1", annotation(*boxes, size=(810, 1080)), "val")
    add(tmp_path / "devkit", "VOC2007", "2", annotation(), "val")
    shutil.copy(BUS, tmp_path / "devkit/VOC2007/JPEGImages/1.jpg")
    done = run("evaluate", "--data", "devkit", "--T", 4, 8, "--json", "rows.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["stage"], row["T"], row["images"]) for row in rows] == [
        ("snn", 4, 2), ("snn", 8, 2),
    ]  # fmt: skip
    for row in rows:
        assert row["AP50"] > 0.4 and 0 < row["spike_rate"] < 1 and row["AP_small"] is None
        assert len(row["weights_sha256"]) == 64
    assert rows[0]["weights_sha256"] != rows[1]["weights_sha256"]
    assert "warning" not in done.stderr
    add(tmp_path / "devkit", "VOC2007", "000012", annotation(*boxes, size=(810, 1080)), "val")
    shutil.copy(bus, tmp_path / "devkit/VOC2007/JPEGImages/000012.jpg")
    done = run("energy", "--data", "devkit", "--T", 8, cwd=tmp_path)
    assert done.returncode == 0 and "trained on 1 of these pictures" in done.stderr
    words = ["--classes", "--weights", ROOT / "weights/tiny-yolo-s-float.safetensors"]
    done = run("evaluate", "--data", "devkit", *words, cwd=tmp_path)
    assert done.returncode == 0 and "trained on 1 of these pictures" in done.stderr
    assert re.search(r"^ +bus +[01]\.\d{4}$", done.stdout, re.MULTILINE), done.stdout
    done = run("evaluate", "--data", "devkit", "--split", "VOC2007:test", cwd=tmp_path)
    assert done.returncode == 3 and "no such split; VOC2007 has val" in done.stderr
