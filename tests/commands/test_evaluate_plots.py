"""`spikedet evaluate --plots` with released weights on a few pictures."""

import csv
import json

import pytest
from PIL import Image

from spikedet.commands.plotting import labels, readouts, slug
from spikedet.released import released
from support.classes import add_pictures
from support.commands import command
from support.devkits import add, annotation
from support.places import BUS

DETECTOR, CLASSIFIER = released("snn", 4), released("snn", 4, "classification")
pytestmark = pytest.mark.skipif(not (DETECTOR and CLASSIFIER), reason="no released weights")


@pytest.fixture
def lines(monkeypatch):
    """What stands below each plot, by its name."""
    from spikedet import plots

    said, write = {}, plots.write

    def spy(folder, name, rows, draw, about, *rest):
        said[name] = about.line()
        return write(folder, name, rows, draw, about, *rest)

    monkeypatch.setattr(plots, "write", spy)
    return said


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def plots(folder):
    """Names of plots; each has its numbers beside it."""
    names = sorted(path.stem for path in folder.glob("*.png"))
    assert names == sorted(path.stem for path in folder.glob("*.csv"))
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            picture.load()
    return names


def test_a_detector(tmp_path, monkeypatch, capsys):
    boxes = [("person", (49, 399, 245, 903), False), ("bus", (23, 231, 805, 757), False)]
    add(tmp_path / "devkit", "VOC2007", "1", annotation(*boxes, size=(810, 1080)), "val")
    (tmp_path / "devkit/VOC2007/JPEGImages/1.jpg").write_bytes(BUS.read_bytes())
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))
    words = ["--data", tmp_path / "devkit", "--split", "VOC2007:val", "--weights", DETECTOR]
    words += ["--plots", tmp_path / "plots", "--json", tmp_path / "rows.json", "--bootstrap", 5]
    assert command(monkeypatch, "evaluate", *words) == 0
    out = capsys.readouterr().out
    assert "7 plots, each with its numbers as CSV" in out
    names = ["AP-classes-T4", "AP-over-T", "AP-sizes-T4", "confusion-T4", "f1-T4"]
    assert plots(tmp_path / "plots") == [*names, "precision-recall-T4", "reliability-T4"]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["T"] for row in rows] == [1, 2, 4]
    value = rows[-1]["AP50"]  # of one picture, which every draw is
    assert rows[-1]["AP50_interval"] == [value, value]
    assert f"AP50 {value:.4f} to {value:.4f} in 95 % of the resamplings" in out
    about = {(row["spikedet"], row["command"], row["weights"], row["split"]) for row in rows}
    assert about == {(rows[0]["spikedet"], "evaluate", DETECTOR.name, "VOC2007:val")}
    over = table(tmp_path / "plots/AP-over-T.csv")
    assert [(row["T"], float(row["AP"])) for row in over] == [
        (str(row["T"]), row["AP"]) for row in rows
    ]
    classes = {row["class"]: row["AP"] for row in table(tmp_path / "plots/AP-classes-T4.csv")}
    assert classes["cat"] == "" and float(classes["bus"]) == rows[-1]["per_class"]["bus"]
    sizes = table(tmp_path / "plots/AP-sizes-T4.csv")
    large = [float(row["AP"]) for row in sizes if row["size"] == "large"]
    assert large == [row["AP_large"] for row in rows]
    named = {row["class"] for row in table(tmp_path / "plots/f1-T4.csv")}
    assert named == {"person", "bus", "all classes"}
    confused = table(tmp_path / "plots/confusion-T4.csv")
    assert {row["T"] for row in confused} == {"4"} and {row["method"] for row in confused}


def test_a_classifier_and_its_float_network(tmp_path, monkeypatch, lines):
    from spikedet import checkpoint

    names = checkpoint.load(CLASSIFIER).names
    add_pictures(tmp_path / "data", "test", 2, names)
    words = ["--data", tmp_path / "data", "--plots", tmp_path / "plots", "--json"]
    words += [tmp_path / "rows.json", "--T", 1, 4, "--weights", CLASSIFIER]
    words.append(released("float", task="classification"))
    assert command(monkeypatch, "evaluate", *words, "--bootstrap", 5) == 2
    assert command(monkeypatch, "evaluate", *words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["stage"], row["T"]) for row in rows] == [("float", None), ("snn", 1), ("snn", 4)]
    kinds = ("classes", "confusion", "reliability")
    wanted = [f"{kind}-{end}" for kind in kinds for end in ("float", "stages-i-ii-T4")]
    assert plots(tmp_path / "plots") == sorted([*wanted, "top1-over-T"])
    below = lines["confusion-stages-i-ii-T4"]
    assert CLASSIFIER.name in below and "-float.safetensors" not in below  # that network alone
    assert "-float.safetensors" in lines["confusion-float"]
    assert "-float.safetensors" in lines["top1-over-T"] and CLASSIFIER.name in lines["top1-over-T"]
    confused = table(tmp_path / "plots/confusion-stages-i-ii-T4.csv")
    right = sum(int(r["count"]) for r in confused if r["truth"] == r["predicted"])
    assert sum(int(r["count"]) for r in confused) == 20 and right / 20 == rows[-1]["top1"]
    each = table(tmp_path / "plots/classes-stages-i-ii-T4.csv")
    assert sum(float(row["top1"]) for row in each) / len(names) == pytest.approx(rows[-1]["top1"])
    bins = table(tmp_path / "plots/reliability-float.csv")
    assert sum(int(row["count"]) for row in bins) == 20


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    words = ["--data", tmp_path, "--plots", tmp_path / "file"]
    assert command(monkeypatch, "evaluate", *words) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_networks_of_one_method_are_told_apart_by_their_files():
    rows = [("float", None, "f.safetensors"), ("snn", 4, "a"), ("snn", 8, "b.safetensors")]
    assert labels(rows) == ["float", "snn", "snn"]
    assert labels([*rows, ("snn", 8, "c.d")]) == ["float", "snn", "snn, b", "snn, c"]


def test_steps_of_a_curve_and_names_of_files():
    assert [readouts(T) for T in (1, 2, 5, 8, 20)] == [
        [1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8], [1, 2, 4, 8, 16, 20],
    ]  # fmt: skip
    assert slug("stage I, quantised") == "stage-i-quantised"
