"""`spikedet benchmark` on small networks: its rows, its files, and what stops it."""

import csv
import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from spikedet.analysis import sides, timing
from spikedet.commands import timed
from spikedet.commands.main import parsed
from spikedet.kernels import library
from spikedet.released import released
from support.classes import add_pictures
from support.commands import command
from support.engines import KERNELS, needs_kernels
from support.places import BUS

pytestmark = pytest.mark.skipif(
    released("snn", 4, "classification") is None, reason="no released weights"
)
FIELDS = {"name", "engine", "T", "batch", "threads", "ms", "passes"}


@pytest.fixture
def classifier():
    return ["--weights", released("snn", 4, "classification"), "--float",
            released("float", task="classification")]  # fmt: skip


def written(path):
    return json.loads(path.read_text())


def test_every_side_at_every_T_batch_and_number_of_threads(
    classifier, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("spikingjelly.activation_based")
    pytest.importorskip("onnxruntime")
    files = {name: tmp_path / f"b.{name}" for name in ("json", "csv", "svg")}
    words = ["--T", 2, 4, "--batch", 1, 3, "--threads", 1, 2, "--rounds", 2, "--peers"]
    words += ["--engines", "torch", *(["events"] if KERNELS else [])]
    words += ["--json", files["json"], "--csv", files["csv"], "--plot", files["svg"]]
    before = torch.get_num_threads()
    assert command(monkeypatch, "benchmark", *classifier, *words) == 0
    assert torch.get_num_threads() == before
    lines = written(files["json"])
    assert all(line.keys() >= FIELDS for line in lines)
    floats = {("float32", "torch", 1), ("bfloat16", "torch", 1), ("int8", "onnxruntime", 1)}
    others = {("spikedet", "torch"), ("spikingjelly", "multi-step"), ("step-loop", "torch")}
    others |= {("spikedet", "events")} if KERNELS else set()
    kinds = floats | {(*other, T) for other in others for T in (2, 4)}
    wanted = {(*kind, b, n) for kind in kinds for b in (1, 3) for n in (1, 2)}
    rows = [tuple(line[k] for k in ("name", "engine", "T", "batch", "threads")) for line in lines]
    assert len(rows) == len(wanted) and set(rows) == wanted
    expect_ratios(lines)
    with files["csv"].open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["ms"]) for row in table] == [line["ms"] for line in lines]
    drawing = files["svg"].read_text()
    for text in ("batch 3, 2 threads", "spikedet, torch", "step-loop", "int8", "processors"):
        assert text in drawing
    shown = capsys.readouterr().out
    assert "processors" in shown.splitlines()[0] and "1 and 2 threads" in shown.splitlines()[0]
    assert "M spikes/s" in shown.splitlines()[1]


def expect_ratios(lines):
    """Ratios are those of the milliseconds, within a batch and a number of threads."""
    for line in lines:
        beside = [one for one in lines
                  if all(one[k] == line[k] for k in ("batch", "threads"))]  # fmt: skip
        ms = {one["name"]: one["ms"] for one in beside if one["T"] == 1}
        assert line["ms_low"] <= line["ms"] <= line["ms_high"] and line["rounds"] == 2
        assert line["passes"] == pytest.approx(line["ms"] / ms["float32"], rel=1e-4)
        assert line["over_fastest"] == pytest.approx(line["ms"] / min(ms.values()), rel=1e-4)
        spiking = line["T"] > 1
        assert (line["spikes_a_second"] is not None) == spiking
        assert (line["limit_share"] is not None) == (spiking and bool(KERNELS))
        assert (line["kernels"] is not None) == (line["engine"] == "events")
    spikes = {(one["name"], one["engine"], one["T"], one["spikes_a_second"] * one["ms"])
              for one in lines if one["T"] > 1}  # fmt: skip
    numbers = {}
    for name, engine, T, number in spikes:
        numbers.setdefault((name, engine, T), []).append(number)
    for several in numbers.values():  # the spikes of a picture do not depend on the time
        assert several == pytest.approx([several[0]] * len(several), rel=1e-4)


def test_a_detector_on_pictures_of_a_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "in/deep").mkdir(parents=True)
    shutil.copy(BUS, tmp_path / "in/deep/bus.jpg")
    (tmp_path / "in/notes.txt").write_text("no picture")
    words = ["--T", 4, "--imgsz", 64, "--rounds", 1, "--data", tmp_path / "in", "--engines"]
    words += ["torch", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    assert command(monkeypatch, "benchmark", *words) == 0
    names = [line["name"] for line in written(tmp_path / "b.json")]
    assert names[0] == "float32" and "spikedet" in names and "step-loop" not in names
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.format == "PNG"
    assert "spikedet" in capsys.readouterr().out
    assert timed.picture_paths(tmp_path / "in", 5) == [tmp_path / "in/deep/bus.jpg"]


def test_a_classifier_sees_the_pictures_of_its_data(classifier, tmp_path):
    add_pictures(tmp_path / "data", "train", 2, ("a", "b"), size=(40, 32))
    words = [*classifier, "--T", 4, "--engines", "torch", "--rounds", 9]
    seen = timed.Timed(parsed("benchmark", [*words, "--data", tmp_path / "data"])).pictures()
    assert seen.shape == (9, 3, 32, 32)
    assert torch.equal(seen[:4], seen[4:8]) and not torch.equal(seen[0], seen[1])
    noise = timed.Timed(parsed("benchmark", words)).pictures()
    assert abs(noise.mean()) < 0.02 < abs(seen.mean())


@needs_kernels
def test_kernels_are_chosen_for_this_run_alone(classifier, tmp_path, monkeypatch, capsys):
    words = [*classifier, "--T", 4, "--rounds", 1, "--json", tmp_path / "b.json", "--kernels"]
    assert command(monkeypatch, "benchmark", *words, KERNELS[-1]) == 0
    assert f"{KERNELS[-1]} kernels" in capsys.readouterr().out
    used = {line["engine"]: line["kernels"] for line in written(tmp_path / "b.json")}
    assert used["events"] == KERNELS[-1] and used["torch"] is None
    assert library.chosen() == KERNELS[0]
    assert command(monkeypatch, "benchmark", *words, "sse9") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: kernels 'sse9'; this machine has {', '.join(KERNELS)}"


def test_a_run_that_is_stopped_keeps_the_rounds_that_ended(
    classifier, tmp_path, monkeypatch, capsys
):
    calls = []
    forward = sides.InBFloat16.forward

    def stop(self, pictures):
        calls.append(len(pictures))
        if len(calls) == 8:  # a warm-up and two rounds, and in the second group three
            raise KeyboardInterrupt
        return forward(self, pictures)

    monkeypatch.setattr(sides.InBFloat16, "forward", stop)
    words = [*classifier, "--T", 4, "--engines", "torch", "--batch", 1, 2, "--rounds", 3]
    files = ["--json", tmp_path / "b.json", "--csv", tmp_path / "b.csv"]
    assert command(monkeypatch, "benchmark", *words, *files, "--memory") == 130
    shown = capsys.readouterr()
    assert "interrupted; finished results are kept" in shown.err
    rounds = [(line["batch"], line["rounds"]) for line in written(tmp_path / "b.json")]
    assert sorted(set(rounds)) == [(1, 3), (2, 2)]
    assert len((tmp_path / "b.csv").read_text().splitlines()) == len(rounds) + 1
    assert shown.out.count("float32") == 2
    calls[:] = [0] * 7  # before anything was timed
    assert command(monkeypatch, "benchmark", *words, "--json", tmp_path / "none.json") == 130
    assert not (tmp_path / "none.json").exists()


def test_files_are_written_whole_or_not_at_all(classifier, tmp_path, monkeypatch):
    from spikedet.plots import speed

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(speed, "render", fail)
    words = [*classifier, "--T", 4, "--engines", "torch", "--rounds", 1]
    files = ["--json", tmp_path / "b.json", "--csv", tmp_path / "b.csv"]
    files += ["--plot", tmp_path / "b.png"]
    assert command(monkeypatch, "benchmark", *words, *files) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "b.csv"}
    assert written(tmp_path / "b.json")


def test_what_is_not_installed_is_left_out_with_a_sentence(classifier, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    words = [*classifier, "--T", 4, "--engines", "torch", "--rounds", 1, "--peers"]
    assert command(monkeypatch, "benchmark", *words) == 0
    shown = capsys.readouterr()
    assert "int8 is left out: int8 needs onnx and onnxruntime; pip install" in shown.err
    assert "spikingjelly is left out: SpikingJelly is not installed" in shown.err
    assert "step-loop" in shown.out and "int8 " not in shown.out
    assert command(monkeypatch, "benchmark", *words, "--quiet") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_peak_memory_of_every_side(classifier, tmp_path, monkeypatch, capsys):
    words = [*classifier, "--T", 4, "--rounds", 1, "--peers", "--memory"]
    words += ["--engines", "torch", "torch-bfloat16", "--json", tmp_path / "b.json"]
    assert command(monkeypatch, "benchmark", *words) == 0
    for line in written(tmp_path / "b.json"):
        assert 100 * 2**20 < line["peak_bytes"] < 4 * 2**30 and line["run_bytes"] >= 0
    assert "MiB" in capsys.readouterr().out


def test_memory_that_is_not_measured_is_a_sentence(classifier, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "_PEAK", "raise SystemExit('broken')")
    words = [*classifier, "--T", 4, "--engines", "torch", "--rounds", 1, "--memory"]
    assert command(monkeypatch, "benchmark", *words, "--json", tmp_path / "b.json") == 0
    assert "was not measured: broken" in capsys.readouterr().err
    assert {line["peak_bytes"] for line in written(tmp_path / "b.json")} == {None}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--batch", 0], 2, "--batch: '0' is not an integer of 1 or more"),
        (["--threads", 0], 2, "--threads: '0' is not an integer between 1 and 1024"),
        (["--engines", "fast"], 2, "no engine 'fast'; expected auto, torch, events, integers, to"),
        (["--plot", "b.jpg"], 2, "'b.jpg'; expected a name that ends in .png or .svg"),
        (["--csv", "b.txt"], 2, "cannot write to 'b.txt'; expected a name that ends in .csv"),
        (["--csv", "FOLDER/a/b.csv"], 2, "is not a folder that can be written to"),
        (["--data", "nowhere"], 3, "nowhere: no such folder"),
        (["--data", "EMPTY"], 3, "no pictures in this folder"),
    ],
)
def test_bad_input_is_one_sentence(
    classifier, words, code, sentence, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"FOLDER/a/b.csv": tmp_path / "file/b.csv", "EMPTY": tmp_path / "empty"}
    words = [places.get(word, word) for word in words]
    usual = ["--T", 4, "--engines", "torch", "--rounds", 1]
    usual = usual[:2] + usual[4:] if "--engines" in words else usual
    assert command(monkeypatch, "benchmark", *classifier, *usual, *words) == code
    shown = capsys.readouterr().err.splitlines()
    assert sentence in shown[-1]
