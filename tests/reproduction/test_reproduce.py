"""Reproduction: what is run, what is resumed, and what stands in the files."""

import csv
import shutil

import matplotlib.pyplot as plt
import pytest
import torch

import spikedet
from spikedet.checkpoint import Checkpoint, identity, load, save
from spikedet.commands.main import parsed as parsed_words
from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.description import build, read_description
from spikedet.detection.published import TABLE_10
from spikedet.errors import DataError, SpikedetError, UsageError
from spikedet.plots import pictures
from spikedet.released import released_leaky
from spikedet.reproduction import command as reproduce
from spikedet.reproduction import detection
from spikedet.reproduction.experiment import Cell, Experiment
from support.devkits import add, annotation
from support.places import BUS, ROOT


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A devkit of one picture twice, one of them for tuning, and an untrained float network."""
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))
    boxes = [("person", (49, 399, 245, 903), False), ("bus", (23, 231, 805, 757), False)]
    for number in ("1", "2"):
        add(tmp_path / "devkit", "VOC2007", number, annotation(*boxes, size=(810, 1080)))
        shutil.copy(BUS, tmp_path / f"devkit/VOC2007/JPEGImages/{number}.jpg")
    (tmp_path / "tuning.txt").write_text("VOC2007/2\n")
    torch.manual_seed(0)
    description = read_description(ROOT / "configs/models/tiny-yolo.yaml", "n")
    tensors = build(description, 20).state_dict()
    checkpoint = Checkpoint("float", "detection", description, VOC_CLASSES, 64, tensors)
    save(checkpoint, tmp_path / "float.safetensors")
    return tmp_path


def parsed(place, name, *words):
    split = "VOC2007:train"
    given = [name, "--data", place / "devkit", "--split", split, "--train-split", split,
             "--tuning", place / "tuning.txt", "--model", place / "float.safetensors",
             "--out", place / "results", *words]  # fmt: skip
    return parsed_words("reproduce", given)


@pytest.mark.slow
def test_a_row_is_made_once_and_stands_beside_the_papers(place, monkeypatch, capsys):
    args = parsed(place, "table10", "--methods", "float", "spiking-yolo", "--T", 20)
    reproduce.run(args)
    lines = list(csv.DictReader((place / "results/table10.csv").open()))
    shown = [(line["method"], line["T"], line["images"]) for line in lines]
    assert shown == [("float", "", "2"), ("spiking-yolo", "20", "2")]
    assert [line["paper_AP"] for line in lines] == ["", str(TABLE_10["spiking-yolo", 20][0])]
    assert all(0 <= float(line["AP"]) <= 1 for line in lines)
    assert (place / "results/table10.png").stat().st_size > 1000
    assert "(0.2)" in capsys.readouterr().out

    def nothing(self, tool, *words):
        raise AssertionError(f"{tool} was run again")

    monkeypatch.setattr(Experiment, "run", nothing)
    before = (place / "results/table10.csv").read_text()
    reproduce.run(args)
    assert (place / "results/table10.csv").read_text() == before
    (weights,) = place.glob("results/*/weights/spiking-yolo-T8.safetensors")
    kept = weights.read_bytes()
    weights.unlink()
    reproduce.run(args)  # the row stands, as it is known how they were made
    note = weights.with_name(weights.name + ".txt")
    note.rename(place / "note")
    with pytest.raises(AssertionError, match="convert was run again"):
        reproduce.run(args)
    (place / "note").rename(note)
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(AssertionError, match="evaluate was run again"):  # other weights, other row
        reproduce.run(args)


@pytest.mark.slow
def test_a_penalty_on_spikes(place, monkeypatch, capsys):
    for number in ("3", "4"):
        boxes = annotation(("bus", (23, 231, 805, 757), False), size=(810, 1080))
        add(place / "devkit", "VOC2007", number, boxes)
        shutil.copy(BUS, place / f"devkit/VOC2007/JPEGImages/{number}.jpg")
    words = ["--T", 2, "--sparsity", 0, 50, "--end-to-end", 20, "--epochs", 1, "--pictures", 2]
    args = parsed(place, "sparsity", *words, "--layer-steps", 2, "--engine", "events")
    reproduce.run(args)
    lines = list(csv.DictReader((place / "results/sparsity.csv").open()))
    assert [line["sparsity"] for line in lines] == ["", "0.0", "50.0"]
    assert {line["engine"] for line in lines} == {"events"}
    plain, sparse = (float(line["energy"]) for line in lines[1:])
    assert sparse < plain
    assert all(float(line["passes"]) > 0 for line in lines)
    assert (place / "results/sparsity.png").stat().st_size > 1000
    (weights,) = place.glob("results/*/weights/*sparsity-50-T2.safetensors")
    assert load(weights).origin["int8"]
    assert "before" in capsys.readouterr().out
    monkeypatch.setattr(Experiment, "run", lambda *words: pytest.fail(f"run again: {words}"))
    reproduce.run(args)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--T", 2, 4], "one T"),
        ([], "one T"),
        (["--T", 2, "--methods", "copy"], "has no effect"),
        (["--T", 2, "--end-to-end", 0], "must be 1 or more"),
    ],
)
def test_a_penalty_is_of_one_T(place, words, said):
    with pytest.raises(UsageError, match=said):
        reproduce.run(parsed(place, "sparsity", *words))
    with pytest.raises(UsageError, match="only sparsity"):
        reproduce.run(parsed(place, "table10", "--sparsity", 1))


@pytest.mark.slow
def test_rows_of_one_network_are_read_out_from_one_run(place, monkeypatch):
    commands, run = [], Experiment.run
    monkeypatch.setattr(Experiment, "run", lambda self, *w: (commands.append(w[0]), run(self, *w)))
    args = parsed(place, "table10", "--methods", "spiking-yolo", "--T", 20, 8)
    reproduce.run(args)
    assert commands == ["convert", "evaluate"]
    lines = list(csv.DictReader((place / "results/table10.csv").open()))
    assert [(line["T"], line["paper_AP"]) for line in lines] == [
        ("8", ""), ("20", str(TABLE_10["spiking-yolo", 20][0])),
    ]  # fmt: skip
    before = (place / "results/table10.csv").read_text()
    args.T = [40]
    reproduce.run(args)  # only this one is measured, beside the others
    assert commands == ["convert", "evaluate", "evaluate"]
    assert (place / "results/table10.csv").read_text().startswith(before)
    monkeypatch.setattr(Experiment, "run", None)
    for T in ([8], [20, 40]):
        args.T = T
        reproduce.run(args)  # nothing is made again, and no row is lost
        lines = list(csv.DictReader((place / "results/table10.csv").open()))
        assert [line["T"] for line in lines] == ["8", "20", "40"]


@pytest.mark.slow
def test_rows_of_other_pictures_are_not_taken_for_those_asked_for(place, monkeypatch):
    words = ("table10", "--methods", "float")
    reproduce.run(parsed(place, *words))
    monkeypatch.setattr(Experiment, "run", None)
    reproduce.run(parsed(place, *words))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        reproduce.run(parsed(place, *words, "--data", place / "nowhere"))
    monkeypatch.setattr(detection, "SPLIT", "VOC2007:train")
    box = ("bus", (24, 231, 805, 757), False)
    add(place / "other", "VOC2007", "1", annotation(box, size=(810, 1080)))
    shutil.copy(BUS, place / "other/VOC2007/JPEGImages/1.jpg")
    with pytest.raises(UsageError, match="measured on other pictures than those of --data; choose"):
        reproduce.run(parsed(place, *words, "--data", place / "other"))


def test_weights_of_other_settings_are_not_taken_for_those_asked_for(place, monkeypatch):
    words = ("figure7", "--methods", "copy", "--T", 4, "--layer-steps")
    reproduce.run(parsed(place, *words, 1))
    (line,) = csv.DictReader((place / "results/figure7.csv").open())
    checkpoint = [line[key] for key in ("method", "T", "weights_for_T", "calibration_pictures")]
    assert checkpoint == ["copy", "4", "4", "0"]
    reproduce.run(parsed(place, *words, 2))  # nothing to it
    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "run", lambda *_: None)  # killed before it wrote any weights
        one, two = (
            Experiment(
                parsed(place, *words, n), place, place / "float.safetensors", "detection", []
            )
            for n in (1, 2)
        )
        cell = Cell("stage2", 4, None, 256)
        assert one.weights(cell) == one.weights(cell)
        with pytest.raises(UsageError, match=r"-steps 1 .*this run needs .*-steps 2 .*--out"):
            two.weights(cell)
    other = place / "other.safetensors"
    checkpoint = load(place / "float.safetensors")
    checkpoint.tensors = {name: tensor + 1 for name, tensor in checkpoint.tensors.items()}
    save(checkpoint, other)
    folders = []
    monkeypatch.setattr(detection, "table", lambda args, experiment: folders.append(experiment.out))
    for path in (place / "float.safetensors", other):
        reproduce.run(parsed(place, *words, 2, "--model", path))
    assert len(set(folders)) == 2


def test_figure8_follows_one_run(place, monkeypatch):
    captions, add_caption = [], pictures.add_caption
    monkeypatch.setattr(
        pictures,
        "add_caption",
        lambda figure, about: (captions.append(about.line()), add_caption(figure, about)),
    )
    reproduce.run(parsed(place, "figure8", "--methods", "spiking-yolo", "--T", 2, 4))
    lines = list(csv.DictReader((place / "results/figure8.csv").open()))
    assert [(line["method"], line["T"], line["weights_for_T"]) for line in lines] == [
        ("spiking-yolo", "2", "8"), ("spiking-yolo", "4", "8"),
    ]  # fmt: skip
    drawn = plt.imread(place / "results/figure8.png")
    (line,) = captions
    assert line.startswith("T=2, 4; bus.jpg; from float.safetensors; ") and line.endswith(
        spikedet.__version__
    )
    reproduce.run(
        parsed(place, "figure8", "--methods", "spiking-yolo", "--T", 2, 4, "--boxes-only")
    )
    empty = plt.imread(place / "results/figure8.png")
    assert drawn.shape == empty.shape and empty.mean() > drawn.mean()  # no dark photograph in it


def test_options_of_another_name_are_refused(place):
    with pytest.raises(UsageError, match="--boxes-only: only figure8 draws a picture"):
        reproduce.run(parsed(place, "table10", "--boxes-only"))


def test_cells_of_every_table():
    def planned(name, *words):
        given = parsed_words("reproduce", [name, "--data", "devkit", *words])
        return detection.cells(given)

    table = planned("table10", "--leaky", "leaky.safetensors")
    assert {(c.method, c.T, c.limit) for c in table} >= {
        *((m, t, None) for m in ("copy", "spiking-yolo", "stage1", "two-stage")
          for t in (8, 20, 40, 60)),
        *(("two-stage", t, None) for t in (4, 16, 32)),
        *(("spiking-yolo", t, 200) for t in (500, 2000)),
        *((m, 8, 200) for m in ("copy", "stage1", "quantised", "two-stage")),
        *((m, None, limit) for m in ("float", "float-leaky") for limit in (None, 200)),
    }  # fmt: skip
    runs = {(c.row_name, c.made_for, c.steps, c.limit) for c in table}
    assert runs == {
        *((m, None, (), limit) for m in ("float", "float-leaky") for limit in (None, 200)),
        *(("quantised", t, (), None) for t in (4, 8)), ("quantised", 8, (), 200),
        ("two-stage", 4, (4,), None), ("two-stage", 8, (8, 16, 20, 32, 40, 60), None),
        *((m, 8, (8,), 200) for m in ("copy", "stage1", "two-stage")),
        *((m, 8, (8, 20, 40, 60), None) for m in ("copy", "stage1", "stage1-correcting")),
        ("stage1-correcting", 4, (4,), None),
        ("spiking-yolo", 8, (8, 20, 40, 60), None), ("spiking-yolo", 8, (500, 2000), 200),
    }  # fmt: skip
    assert len(table) == len(set(table))
    ablation = {(c.method, c.T) for c in planned("figure7")}
    assert len(ablation) == 1 + 6 * 3 and ("stage1-coarse", 4) in ablation
    assert len(planned("figure7")) == 1 + 8 * 3
    counted = [(c.pictures, c.end_to_end) for c in planned("table6")]
    assert counted == [(count, False) for count in detection.CALIBRATION_PICTURES]
    assert {c.T for c in planned("figure9")} == {None, 30}
    own = planned("table10", "--made-for", "20", "60", "--methods", "stage1")
    assert {(c.T, c.made_for) for c in own if c.limit is None} == {
        (8, 20), (20, 20), (40, 60), (60, 60),
    }  # fmt: skip
    assert not any(c.method == "float-leaky" for c in planned("table10"))
    for words, wanted in {
        ("--methods", "magic"): "--methods magic: figure7 has no such row; it has float; copy at 4",
        ("--methods", "copy", "spiking-yolo"): "--methods spiking-yolo: figure7 has no such row",
        ("--methods", "copy", "--T", "8", "9"): "--T 9: figure7 has no such row",
    }.items():
        with pytest.raises(UsageError, match=wanted):
            planned("figure7", *words)
    with pytest.raises(UsageError, match="--methods quantised: table10 has no such row"):
        planned("table10", "--methods", "quantised", "--T", "4", "--made-for", "8")


def test_a_row_with_neurons_that_take_back_spikes(place, monkeypatch):
    for row in {row for rows in detection.STEPS.values() for row in rows}:
        assert Cell.of(row, 8, None, 256).row_name == row
    commands = []
    monkeypatch.setattr(Experiment, "run", lambda self, *words: commands.append(words))
    args = parsed(place, "table10")
    experiment = Experiment(args, place, place / "float.safetensors", "detection", [])
    names = [
        experiment.weights(Cell.of(row, 8, None, 256)).name
        for row in ("stage1", "stage1-correcting")
    ]
    assert names == ["stage1-T8.safetensors", "stage1-correcting-T8.safetensors"]
    neurons = [w[w.index("--neuron") + 1] for w in commands if "--neuron" in w]
    assert neurons == ["correcting"]
    row = dict.fromkeys((*detection.MEASURES, "engine", "calibration_pictures", "images"))
    lines = [  # the last one is of a released network
        detection.entry("table10", Cell.of(name, 20, None, 256), row | {"method": measured})
        for name, measured in (
            ("stage1", "stage I alone"),
            ("stage1-correcting", "stage I alone, correcting"),
            ("two-stage", "stages I + II, correcting"),
        )
    ]
    names = ["stage1", "stage1-correcting", "two-stage-correcting"]
    assert [line["method"] for line in lines] == names
    assert [line["paper_AP"] for line in lines] == [TABLE_10["stage1", 20][0], "", ""]


def test_an_upgraded_checkpoint_has_the_notes_of_the_old_one(place):
    old, new = place / "float.safetensors", place / "new/float.safetensors"
    one = Experiment(parsed(place, "table10"), place / "out", old, "detection", [])
    checkpoint = load(old)
    checkpoint.origin["upgraded_from"] = identity(old)
    new.parent.mkdir()
    save(checkpoint, new)
    assert new.read_bytes() != old.read_bytes()
    assert one.describe_argument(new) == one.describe_argument(old)


def test_ap_of_every_class_is_written_and_drawn(place):
    reproduce.run(parsed(place, "figure9", "--methods", "float", "stage1"))
    line, spiking = csv.DictReader((place / "results/figure9.csv").open())
    assert (line["T"], spiking["T"]) == ("", "30")
    classes = {name: line[f"AP_{name}"] for name in VOC_CLASSES}
    assert 0 <= float(classes.pop("person")) <= 1 and 0 <= float(classes.pop("bus")) <= 1
    assert set(classes.values()) == {""}  # no object, no precision
    assert (place / "results/figure9.png").read_bytes()[:4] == b"\x89PNG"


def test_the_checkpoints_or_pictures_say_which_task_a_name_is_of(place, tmp_path):
    float_one = place / "float.safetensors"
    (tmp_path / "VOC/VOC2007").mkdir(parents=True)
    (tmp_path / "classes/train").mkdir(parents=True)
    voc, classes = [tmp_path / "VOC"], [tmp_path / "classes"]
    assert reproduce.task_of("figure7", [], voc) == "detection"
    assert reproduce.task_of("figure7", [], classes) == "classification"
    assert reproduce.task_of("figure7", [float_one], classes) == "detection"
    assert reproduce.task_of("table2", [], voc) == "classification"
    with pytest.raises(UsageError, match="for detection, but table2 is for classification"):
        reproduce.task_of("table2", [float_one], classes)
    with pytest.raises(UsageError, match="--model names 2 checkpoints; expected one detector"):
        reproduce.run(parsed(place, "figure7", "--model", float_one, float_one))


@pytest.mark.parametrize("own", [False, True])
def test_spiking_yolo_starts_from_the_released_leaky_network(place, monkeypatch, own):
    commands = []
    args = parsed(place, "table10", "--T", 20)
    models = [place / "float.safetensors"] if own else []
    monkeypatch.setattr(Experiment, "run", lambda self, *words: commands.append(words))
    monkeypatch.setattr(
        detection, "table", lambda args, experiment: experiment.weights(spiking_yolo)
    )
    spiking_yolo = Cell("spiking-yolo", 20, None, 256)
    detection.make(args, models)
    ((tool, *words),) = commands
    assert tool == "convert"
    assert words[words.index("--out") + 1].name == "spiking-yolo-T20.safetensors"
    assert words[words.index("--model") + 1] == (models[0] if own else released_leaky())


def test_a_command_that_fails_ends_it(place):
    args = parsed(place, "table10", "--methods", "spiking-yolo", "--T", 20)
    args.leaky = place / "gone.safetensors"
    with pytest.raises(SpikedetError, match="spikedet convert ended with exit code 4"):
        reproduce.run(args)
    assert not list(place.glob("results/*/weights/*"))  # no note that would stand in the way


@pytest.mark.parametrize(
    ("detected", "objects"),
    [
        ([], 0),
        ([("bus", (0, 0, 100, 100))], 1),
        ([("person", (0, 0, 100, 100))], 0),
        ([("bus", (0, 0, 100, 49))], 0),
        ([("bus", (0, 0, 100, 100)), ("bus", (0, 0, 100, 90))], 1),
    ],
)
def test_agreement_with_the_float_network(detected, objects):
    import numpy as np

    from spikedet.detection.boxes import Detections

    def detections(listed):
        boxes = np.array([box for _, box in listed], np.float32).reshape(-1, 4)
        labels = np.array([VOC_CLASSES.index(name) for name, _ in listed], np.int64)
        return Detections(boxes, np.ones(len(listed), np.float32), labels, VOC_CLASSES)

    truth = detections([("bus", (0, 0, 100, 100))])
    assert detection.count_found(detections(detected), truth) == objects


def test_rows_of_each_engine_are_kept_apart(place, monkeypatch):
    """A row that names no engine, as those of older files, is torch's."""
    asked = []

    def measured(self, tool, cell, path, *words):
        engine = words[words.index("--engine") + 1] if "--engine" in words else None
        asked.append(engine)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new.json").touch()
        named = {} if engine is None else {"engine": engine}
        row = {"T": cell.T, "weights_sha256": identity(weights), "data": "these"}
        return [row | named]

    weights = place / "float.safetensors"
    monkeypatch.setattr(Experiment, "measure", measured)
    monkeypatch.setattr(Experiment, "weights", lambda self, cell, make=True: weights)
    monkeypatch.setattr(Experiment, "pictures", lambda self, limit: "these")

    def row(engine, cell):
        options = parsed(place, "table10", "--engine", engine)
        options.split = "VOC2007:train"
        experiment = Experiment(options, place / "out", weights, "detection", options.data)
        return experiment.row(cell)["engine"]

    spiking, plain = Cell("two-stage", 8, None, 16), Cell("float", None, None, 16)
    assert [row(engine, spiking) for engine in ("torch", "events", "integers")] == [
        "torch", "events", "integers",
    ]  # fmt: skip
    assert asked == [None, "events", "integers"]
    assert [row(engine, spiking) for engine in ("integers", "torch")] == ["integers", "torch"]
    assert row("events", plain) == row("torch", plain) == "torch"
    assert asked == [None, "events", "integers", None]  # the rest was there


def test_half_precision_is_torch_s_alone(place):
    with pytest.raises(UsageError, match="--half: the events engine computes with integers"):
        reproduce.run(parsed(place, "table10", "--engine", "events", "--half"))
