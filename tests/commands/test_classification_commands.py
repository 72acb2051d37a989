"""The commands with a classifier, from pictures to energy, and what they refuse."""

import csv
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import spikedet
from spikedet import networks
from spikedet.checkpoint import Checkpoint, load, save, sha256
from spikedet.classification import data
from spikedet.classification import train as training
from spikedet.classification.data import Samples
from spikedet.classification.defaults import EndToEnd, LayerWise
from spikedet.classification.distillation import divergence
from spikedet.classification.predict import Classifier
from spikedet.classification.task import CLASSIFICATION
from spikedet.commands import analyze
from spikedet.commands.main import parsed
from spikedet.conversion.features import Features
from spikedet.errors import DataError, PictureError, TrainingError, UsageError, WeightsError
from spikedet.methods import METHODS, label
from spikedet.networks import spiking_checkpoint
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.pictures import read_picture
from spikedet.released import released
from spikedet.settings import Plan
from spikedet.stages import stage_one, stage_two
from support.classes import add_pictures
from support.commands import command
from support.engines import needs_kernels
from support.stages import operations

CLASSES = ("a", "b", "c")
TRAINING = ["--epochs", 1, "--batch", 50]
STAGE_TWO = ["--pictures", 8, "--held", 4, "--layer-steps", 2, "--end-to-end", 1]
DESCRIPTION = """
task: classification
arch: resnet20
width: 0.25
mean: [0.5, 0.5, 0.5]
std: [0.25, 0.25, 0.25]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of pictures of three classes, a description, and weights of all stages."""
    folder = tmp_path_factory.mktemp("classifier")
    add_pictures(folder / "data", "train", 51, CLASSES, size=(16, 16))
    add_pictures(folder / "data", "test", 3, CLASSES, size=(16, 16))
    (folder / "toy.yaml").write_text(DESCRIPTION)
    read = ["--data", folder / "data"]
    with pytest.MonkeyPatch.context() as patch:
        done = command(patch, "train", "--model", folder / "toy.yaml", *read, *TRAINING,
                       "--epochs", 4, "--imgsz", 16, "--out", folder / "float")  # fmt: skip
        assert done == 0
        done = command(patch, "finetune", "--weights", folder / "float/best.safetensors", "--T", 4,
                       *read, *TRAINING, "--out", folder / "qc")  # fmt: skip
        assert done == 0
        done = command(patch, "calibrate", "--weights", folder / "qc/best.safetensors", *read,
                       "--teacher", folder / "float/best.safetensors", *STAGE_TWO,
                       "--end-batch-norm", "--end-to-end", 10,
                       "--out", folder / "snn.safetensors")  # fmt: skip
        assert done == 0
    stages = {"float": "float/best", "qc": "qc/best", "snn": "snn"}
    for stage, name in stages.items():
        (folder / f"{name}.safetensors").rename(folder / f"{stage}.safetensors")
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A file of detector weights."""
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save(Checkpoint("float", "detection", {}, ("dog",), 64, {"x": torch.ones(1)}), path)
    return path


def weights(runs, stage):
    return runs / f"{stage}.safetensors"


# ---------------------------------------------------------------------- the way of the weights


def test_every_stage_says_what_it_is_and_where_it_came_from(runs):
    checkpoints = {stage: load(weights(runs, stage)) for stage in ("float", "qc", "snn")}
    for stage, one in checkpoints.items():
        assert (one.stage, one.task, one.names, one.imgsz) == (stage, "classification", CLASSES, 16)
        assert one.model["width"] == 0.25
        assert (None if stage == "float" else 4) == one.T
    assert checkpoints["float"].origin["command"].startswith("spikedet train --model toy.yaml")
    assert checkpoints["float"].origin["pictures"] == 150  # 3 are kept aside
    assert checkpoints["qc"].origin["parent"] == sha256(weights(runs, "float"))
    assert checkpoints["snn"].origin["parent"] == sha256(weights(runs, "qc"))
    assert (
        "tuning_loss" in checkpoints["snn"].origin
        and "layer_wise_gain" in checkpoints["snn"].origin
    )
    assert not any("running_mean" in name for name in checkpoints["snn"].tensors)


def test_stage_one_is_written_with_its_batch_norm_folded(runs):
    """What is written computes what was trained and measured beside its batch norm."""
    one = load(weights(runs, "qc"))
    assert not any("running_mean" in name for name in one.tensors)
    _, tune = data.read([runs / "data"], "train").split_off_tuning()
    runner = networks.restore(CLASSIFICATION, one)
    ((accuracy, _),) = CLASSIFICATION.measure(runner, tune)
    (row,) = csv.DictReader((runs / "qc/results.csv").open())
    assert accuracy["top1"] == pytest.approx(float(row["tuning_top1"]), abs=1e-4)


def test_a_training_leaves_curves_and_can_be_reported(runs, monkeypatch, tmp_path):
    for name in ("float/curves.png", "qc/curves-T4.png"):
        assert (runs / name).read_bytes()[:4] == b"\x89PNG"
    shutil.copytree(runs / "qc", tmp_path / "qc")
    shutil.copy(weights(runs, "qc"), tmp_path / "qc/best.safetensors")
    out = tmp_path / "report.html"
    assert command(monkeypatch, "report", tmp_path / "qc", "--out", out, "--quiet") == 0
    page = out.read_text()
    for words in ("quantised (stage I)", "spikedet finetune", "tuning_top1", "epochs done"):
        assert words in page, words
    assert page.count("data:image/png") == 1  # the curves are drawn anew, not shown twice


def test_where_batch_norm_is_folded_makes_another_run(runs, monkeypatch, capsys, tmp_path):
    shutil.copytree(runs / "qc", tmp_path / "qc")
    shutil.copy(weights(runs, "qc"), tmp_path / "qc/last.safetensors")
    words = ["--data", runs / "data", "--T", 4, *TRAINING, "--out", tmp_path / "qc", "--fold-first"]
    float_weights = ["--weights", weights(runs, "float"), "--resume"]
    assert command(monkeypatch, "finetune", *float_weights, *words) == TrainingError.exit_code
    assert "fold_first=False; this run has fold_first=True" in capsys.readouterr().err
    folded = ["--weights", weights(runs, "qc")]
    assert command(monkeypatch, "finetune", *folded, *words) == UsageError.exit_code
    assert "--fold-first: batch norm of stage-I weights is folded" in capsys.readouterr().err


def test_a_float_network_learns_from_a_teacher(runs, tmp_path, monkeypatch):
    words = ["--model", runs / "toy.yaml", "--data", runs / "data", *TRAINING, "--imgsz", 16]
    words += ["--pretrained", weights(runs, "float"), "--rate", 0.001, "--epochs", 3]
    teacher = load(weights(runs, "float"))
    teacher.tensors["fc.bias"] += torch.tensor([6.0, 0.0, 0.0])  # not what the labels say
    save(teacher, tmp_path / "teacher.safetensors")
    drawn = {}
    for weight in (0, 50):
        guide = ["--teacher", tmp_path / "teacher.safetensors", "--distill", weight]
        guide = guide if weight else []
        out = tmp_path / str(weight)
        assert command(monkeypatch, "train", *words, *guide, "--out", out) == 0
        bias = load(out / "last.safetensors").tensors["fc.bias"]
        drawn[weight] = (bias[0] - bias[1:].mean()).item()
    assert drawn[50] > drawn[0] + 0.05
    guide = ["--teacher", weights(runs, "qc"), "--out", tmp_path / "other"]
    assert command(monkeypatch, "train", *words, *guide) == WeightsError.exit_code


@pytest.mark.parametrize("method", METHODS)
def test_every_method_converts(runs, tmp_path, monkeypatch, capsys, method):
    out = tmp_path / "out.safetensors"
    words = ["--weights", weights(runs, "float"), "--T", 2, "--data", runs / "data", "--out", out]
    does = METHODS.get(method)
    if method == "two-stage":
        words += TRAINING
    elif does and does.finetuned:
        words += ["--stage1", weights(runs, "qc")]
    words += ["--pictures", 8, "--held", 4] if does and does.calibrated else []
    words += ["--layer-steps", 2] if does and does.fine else []
    words += ["--end-to-end", 1] if does and does.end_to_end else []
    assert command(monkeypatch, "convert", *words, "--method", method) == 0
    compared = "squared error of the outputs, compared with the float network"
    assert (compared in capsys.readouterr().out) == (not METHODS[method].finetuned)
    checkpoint = load(out)
    assert (checkpoint.stage, checkpoint.T, checkpoint.origin["method"]) == ("snn", 2, method)
    assert ("tuning_loss" in checkpoint.origin) == (method == "two-stage")
    stage1 = tmp_path / "out.safetensors.stage1/best.safetensors"
    assert stage1.is_file() == (method == "two-stage")
    classes = spikedet.load(out)(runs / "data/test/a/000.png")
    assert classes.T == 2 and classes.probabilities.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("form", "side"), [("cifar", 32), ("imagenet", 224)])
def test_networks_for_imagenet_take_its_pictures(runs, tmp_path, monkeypatch, form, side):
    description = DESCRIPTION.replace("resnet20", "resnet18").replace("0.25\nmean", "0.0625\nmean")
    (tmp_path / "net.yaml").write_text(description + f"form: {form}\n")
    sides = []
    monkeypatch.setattr(
        CLASSIFICATION, "fit", lambda network, run: sides.append(run.checkpoint.imgsz)
    )
    words = ["--model", tmp_path / "net.yaml", "--data", runs / "data", "--out", tmp_path / "out"]
    assert command(monkeypatch, "train", *words) == 0
    assert command(monkeypatch, "train", *words, "--imgsz", 64) == 0
    assert sides == [side, 64]


def test_pictures_of_the_end_to_end_pass_that_a_network_cannot_pool():
    description = {"arch": "vgg16", "width": 0.125, "mean": [0.5] * 3, "std": [0.25] * 3}
    picture = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)
    network = CLASSIFICATION.network(description, 3)
    source = Checkpoint("float", "classification", description, CLASSES, 32, network.state_dict())
    checkpoint = stage_one.untuned(CLASSIFICATION, source, Samples(CLASSES, [0], [picture]), 2)
    network = stage_two.copied(CLASSIFICATION, checkpoint)
    stage_two.expect_end_size(CLASSIFICATION, checkpoint, Plan(end=EndToEnd(grow_from=32)), network)
    with pytest.raises(UsageError, match="grow from 16, which the network cannot take: "):
        stage_two.expect_end_size(
            CLASSIFICATION, checkpoint, Plan(end=EndToEnd(grow_from=16)), network
        )


def test_imagenet_form_from_pictures_of_any_size_to_classes(tmp_path, monkeypatch, capsys):
    add_pictures(tmp_path / "in", "train", 51, CLASSES, size=(40, 36))
    add_pictures(tmp_path / "in", "val", 2, CLASSES, size=(70, 50))
    Image.new("RGB", (20, 90)).save(tmp_path / "in/val/a/tall.png")
    description = DESCRIPTION.replace("resnet20", "resnet18").replace("0.25\nmean", "0.0625\nmean")
    (tmp_path / "net.yaml").write_text(description + "form: imagenet\n")
    read, out = ["--data", tmp_path / "in"], tmp_path / "snn.safetensors"
    words = ["--model", tmp_path / "net.yaml", "--imgsz", 32, *read, *TRAINING]
    assert command(monkeypatch, "train", *words, "--out", tmp_path / "float") == 0
    weights = tmp_path / "float/last.safetensors"
    words = ["--weights", weights, "--T", 2, *read, *TRAINING, *STAGE_TWO, "--out", out]
    assert command(monkeypatch, "convert", *words) == 0
    words = ["--weights", weights, out, *read, "--split", "val", "--json", tmp_path / "rows.json"]
    assert command(monkeypatch, "evaluate", *words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["stage"], row["T"], row["images"]) for row in rows] == [
        ("float", None, 7), ("snn", 2, 7)
    ]  # fmt: skip
    capsys.readouterr()
    assert command(monkeypatch, "classify", "--weights", out, tmp_path / "in/val/a") == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [line.split(".png: ")[1].split(", ") for line in lines]
    assert len(answers) == 3
    assert all({answer[0] for answer in answered} == set(CLASSES) for answered in answers)


def test_neurons_that_take_back_spikes_from_calibrate_to_the_table(
    runs, tmp_path, monkeypatch, capsys
):
    files, out = [weights(runs, "float"), weights(runs, "qc")], tmp_path / "snn.safetensors"
    words = ["--weights", files[1], "--data", runs / "data", "--teacher", files[0], *STAGE_TWO]
    words += ["--neuron", "correcting", "--end-to-end", 3, "--out", out]
    assert command(monkeypatch, "calibrate", *words) == 0
    (tmp_path / "out.last.safetensors").unlink(missing_ok=True)
    graph = networks.restore(CLASSIFICATION, load(out)).network.graph
    assert "correcting" in {node.kind for node in graph}
    more = ["--compare", "--data", runs / "data", "--json", tmp_path / "rows.json"]
    assert command(monkeypatch, "evaluate", "--weights", *files, out, *more) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in rows] == [
        "float", "copied weights", "stage I, quantised", "stage I alone",
        "stage I alone, correcting", load_label(out) + ", correcting",
    ]  # fmt: skip
    tables = tmp_path / "tables"
    words = ["--weights", out, "--stage1", files[1], "--data", runs / "data"]
    assert command(monkeypatch, "analyze", *words, "--out", tables) == 0
    with (tables / "residual.csv").open() as file:
        compared = [row["network"] for row in csv.DictReader(file)]
    assert [*dict.fromkeys(compared)] == [row["method"] for row in rows[-2:]]
    words = ["--weights", out, "--data", runs / "data", "--teacher", files[0]]
    words += ["--neuron", "correcting", "--out", tmp_path / "more.safetensors"]
    assert command(monkeypatch, "calibrate", *words) == 2  # the neurons are those of the file
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for T in (4, 20, 3):  # more steps than it was made for only make it more accurate
            Classifier(out, T)(noise)
    assert ["T=3" in str(each.message) for each in told] == [True]
    begun = tmp_path / "begun.safetensors"  # a copy with ordinary neurons, stopped in its pass
    source = load(files[1])
    copies = {
        kind: spiking_checkpoint(source, stage_two.copied(CLASSIFICATION, source, neuron=kind), {})
        for kind in ("neuron", "correcting")
    }
    for kind, checkpoint in copies.items():
        save(checkpoint, tmp_path / f"{kind}.safetensors")
    words = ["--data", runs / "data", "--teacher", files[0], "--end-to-end", 3, "--out", begun]

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage_two, "end_to_end", stop)
        ordinary = ["--weights", tmp_path / "neuron.safetensors"]
        assert command(monkeypatch, "calibrate", *ordinary, *words) == 130
    words += ["--weights", tmp_path / "correcting.safetensors", "--resume"]
    assert command(monkeypatch, "calibrate", *words) == 6
    assert "a run with other neuron" in capsys.readouterr().err


def test_a_margin_of_calibrate(runs, tmp_path, monkeypatch, capsys):
    """Of a new network, kept by a second pass, changed by a third, refused elsewhere."""

    def calibrated(source, name, *more):
        words = ["--weights", source, "--data", runs / "data", "--teacher", weights(runs, "float")]
        words += ["--end-to-end", 2, "--end-sparsity", 1, *more, "--out", tmp_path / name]
        return command(monkeypatch, "calibrate", *words)

    def margins(name):
        graph = networks.graph_of(CLASSIFICATION, load(tmp_path / name))
        return {neuron.margin for neuron in graph.only(CorrectingNeuron)}

    few = STAGE_TWO[:-2]
    correcting = ("--neuron", "correcting", *few)
    assert calibrated(weights(runs, "qc"), "a", "--margin", 0.25, *correcting) == 0
    assert calibrated(tmp_path / "a", "b") == 0
    assert calibrated(tmp_path / "a", "c", "--margin", 0.5) == 0
    assert calibrated(weights(runs, "qc"), "d", *correcting) == 0
    assert [margins(name) for name in "abcd"] == [{0.25}, {0.25}, {0.5}, {0.0}]
    assert calibrated(weights(runs, "qc"), "f", "--margin", 0, *few) == 0  # as without it
    capsys.readouterr()
    for source, more in (
        (weights(runs, "qc"), ("--margin", 0.25, *few)),
        (weights(runs, "snn"), ("--margin", 0.25)),
    ):
        assert calibrated(source, "e", *more) == UsageError.exit_code
        assert "only neurons that take back spikes have a margin" in capsys.readouterr().err
    assert calibrated(weights(runs, "qc"), "e", "--margin", -1, *correcting) == 2
    assert "margin" in capsys.readouterr().err and not (tmp_path / "e").exists()


def test_a_margin_of_convert_and_of_a_resumed_run(runs, tmp_path, monkeypatch, capsys):
    read = ["--data", runs / "data", "--pictures", 8, "--held", 4, "--layer-steps", 2]
    read += ["--neuron", "correcting", "--end-to-end", 2]
    words = ["--weights", weights(runs, "float"), "--stage1", weights(runs, "qc"), "--T", 2, *read]
    out = tmp_path / "out"
    assert command(monkeypatch, "convert", *words, "--margin", 0.5, "--out", out) == 0
    found = networks.graph_of(CLASSIFICATION, load(out)).only(CorrectingNeuron)
    assert {neuron.margin for neuron in found} == {0.5}

    def stop(*arguments):
        raise KeyboardInterrupt

    begun = [*read, "--weights", weights(runs, "qc"), "--out", tmp_path / "begun"]
    begun += ["--teacher", weights(runs, "float")]
    with monkeypatch.context() as patched:
        patched.setattr(stage_two, "end_to_end", stop)
        assert command(monkeypatch, "calibrate", *begun, "--margin", 0.25) == 130
    capsys.readouterr()
    assert command(monkeypatch, "calibrate", *begun, "--margin", 0.5, "--resume") == 6
    assert "a run with other margin" in capsys.readouterr().err
    assert command(monkeypatch, "calibrate", *begun, "--margin", 0.25, "--resume") == 0


def load_label(path):
    return label("snn", load(path).origin)


def test_evaluate_compares_all_stages(runs, tmp_path, monkeypatch, capsys):
    spiking = load(weights(runs, "snn"))
    spiking.origin["end_to_end"] = True  # whether a pass is kept may depend on rounding
    save(spiking, tmp_path / "snn.safetensors")
    files = [tmp_path / "snn.safetensors", weights(runs, "float"), weights(runs, "qc")]
    words = ["--data", runs / "data", "--compare", "--json", tmp_path / "rows.json"]
    assert command(monkeypatch, "evaluate", "--weights", *files, *words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["method"], row["stage"], row["T"]) for row in rows] == [
        ("float", "float", None), ("copied weights", "snn", 4), ("stage I, quantised", "qc", 4),
        ("stage I alone", "snn", 4), ("stages I + II", "snn", 4),
    ]  # fmt: skip
    for row in rows:
        assert set(row) == {"spikedet", "command", "stage", "method", "T", "top1", "top5", "images",
                            "spike_rate", "engine", "weights", "weights_sha256", "data", "split",
                            "calibration_pictures"}  # fmt: skip
        assert row["images"] == 9 and 0 <= row["top1"] <= 1
        assert row["top5"] == 1  # three classes
        assert (row["spike_rate"] is None) == (row["stage"] != "snn")
        assert row["spike_rate"] is None or 0 < row["spike_rate"] < 1
    assert rows[0]["top1"] > 0.5  # it has learnt; a third by chance
    # the same by hand
    runner = networks.restore(CLASSIFICATION, load(weights(runs, "float")))
    samples = data.read([runs / "data"], "test")
    pictures = next(data.batches(samples, runner.description, 16, 9))
    right = (runner(pictures).argmax(1) == torch.tensor(samples.labels)).float().mean().item()
    assert rows[0]["top1"] == pytest.approx(right)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("9 pictures of test; 16 pixels, one view")
    assert printed[2].split() == ["T", "top1", "top5", "spike", "rate", "engine"]


def test_evaluate_at_several_time_steps(runs, tmp_path, monkeypatch):
    words = ["--weights", weights(runs, "snn"), "--data", runs / "data", "--T", 1, 6, "--limit", 4]
    path = tmp_path / "rows.json"
    assert command(monkeypatch, "evaluate", *words, "--json", path) == 0
    rows = json.loads(path.read_text())
    assert [(row["T"], row["images"]) for row in rows] == [(1, 4), (6, 4)]
    assert rows[0]["spike_rate"] != rows[1]["spike_rate"]


def test_evaluate_in_bfloat16(runs, tmp_path, monkeypatch, capsys):
    restore, halves = networks.restore, []

    def look(task, one, half=False):
        halves.append((one.stage, half))
        return restore(task, one, half)

    monkeypatch.setattr(networks, "restore", look)
    words = ["--weights", weights(runs, "snn"), "--data", runs / "data", "--half"]
    assert command(monkeypatch, "evaluate", *words, "--json", tmp_path / "rows.json") == 0
    assert ("snn", True) in halves and "spiking layers in bfloat16" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["images"] == 9 and 0 < row["spike_rate"] < 1


def test_energy_counts_the_float_network_by_hand(runs, tmp_path, monkeypatch):
    path = tmp_path / "energy.json"
    words = ["--weights", weights(runs, "snn"), "--float", weights(runs, "float")]
    assert command(monkeypatch, "energy", *words, "--data", runs / "data", "--json", path) == 0
    result = json.loads(path.read_text())
    assert (result["T"], result["images"], result["split"]) == (4, 9, "test")
    # pixels that a 3x3 convolution reads, without its padding, in each direction: 46 of 16
    # outputs, 22 of 8, 10 of 4; and 23 or 11 where it halves the size
    stem, last = 3 * 4 * 46**2, 16 * 3
    stages = 6 * 4 * 4 * 46**2
    stages += 4 * 8 * 23**2 + 5 * 8 * 8 * 22**2 + 4 * 8 * 8**2
    stages += 8 * 16 * 11**2 + 5 * 16 * 16 * 10**2 + 8 * 16 * 4**2
    assert result["totals"]["float"]["multiply_accumulates"] == stem + stages + last
    assert result["totals"]["multiply_accumulates"]["mean"] == stem + last
    assert 0 < result["totals"]["accumulates"]["mean"] < 4 * stages
    assert result["totals"]["ours"]["pJ"]["mean"] > result["totals"]["paper"]["pJ"]["mean"]


def test_analyze_writes_all_tables(runs, tmp_path, monkeypatch):
    words = ["--weights", weights(runs, "snn"), "--stage1", weights(runs, "qc"),
             "--float", weights(runs, "float"), "--data", runs / "data"]  # fmt: skip
    assert command(monkeypatch, "analyze", *words, "--out", tmp_path) == 0
    tables = ("residual", "periodic", "similarity", "gap", "layers", "rates", "raster")
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{table}.{kind}" for table in tables for kind in ("csv", "png")
    }
    residual = (tmp_path / "residual.csv").read_text()
    assert residual.startswith("network,layer,T") and "layer3.2" in residual
    assert command(monkeypatch, "analyze", *words[:2], *words[-2:], "--out", tmp_path) == 0
    few = {"residual", "periodic", "rates", "raster"}  # none of two runs
    assert {p.stem for p in tmp_path.iterdir()} == few
    some = parsed("analyze", [*words, "--all", "--limit", 12, "--out", ""])
    taken = analyze.samples(some, CLASSIFICATION, load(weights(runs, "snn")))
    assert len(taken) == 12 and set(taken.labels) == {0, 1, 2}


def test_analyze_takes_the_stages_of_a_conversion_that_chose_the_pooling(runs, tmp_path):
    spiking = load(weights(runs, "snn"))
    spiking.model["spike_pooling"] = "step"
    save(spiking, tmp_path / "step.safetensors")
    words = ["--stage1", weights(runs, "qc"), "--float", weights(runs, "float"), "--data", "d"]
    words = ["--weights", tmp_path / "step.safetensors", *words, "--out", tmp_path]
    loaded = analyze.load(parsed("analyze", words))
    assert [one.model["spike_pooling"] for one in loaded] == ["step"] * 3


def test_benchmark_times_a_classifier_against_its_float_network(runs, monkeypatch, capsys):
    words = ["--weights", weights(runs, "snn"), "--T", 4, "--imgsz", 32, "--rounds", 1, "--float"]
    assert command(monkeypatch, "benchmark", *words, weights(runs, "float")) == 0
    assert "of fastest" in capsys.readouterr().out
    detector = released("float")
    if detector:
        assert command(monkeypatch, "benchmark", *words, detector) == 4
        assert "weights for detection and classification" in capsys.readouterr().err


# ---------------------------------------------------------------------- answers


def test_classify_prints_and_writes_the_most_probable_classes(runs, tmp_path, monkeypatch, capsys):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(b"no picture")
    pictures = runs / "data/test/b"
    words = ["--weights", weights(runs, "snn"), "--top", 2, "--json", tmp_path / "found.json"]
    assert command(monkeypatch, "classify", *words, pictures) == 0
    lines = capsys.readouterr().out.splitlines()
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [entry["file"] for entry in entries] == [str(pictures / f"00{n}.png") for n in range(3)]
    for line, entry in zip(lines, entries, strict=True):
        assert entry["T"] == 4 and len(entry["classes"]) == 2
        first, second = entry["classes"]
        assert 1 >= first["probability"] >= second["probability"] > 0
        assert line == f"{entry['file']}: " + ", ".join(
            f"{c['class']} {c['probability']:.3f}" for c in entry["classes"]
        )
    assert command(monkeypatch, "classify", *words, cut, "gone.png", pictures / "000.png") == 3
    shown = capsys.readouterr()
    assert "cut.jpg: is not a picture" in shown.err and "gone.png: no such picture" in shown.err
    assert len(shown.out.splitlines()) == 1  # the rest is done
    assert len(json.loads((tmp_path / "found.json").read_text())) == 1


def test_classify_writes_each_picture_at_once(runs, tmp_path, monkeypatch):
    """A camera has no end, so nothing is kept in memory until one."""
    from spikedet.classification.predict import Classifier

    file, seen, call = tmp_path / "found.json", [], Classifier.__call__

    def classify(self, *given, **options):
        seen.append(len(json.loads(file.read_text())) if file.exists() else 0)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return call(self, *given, **options)

    monkeypatch.setattr(Classifier, "__call__", classify)
    words = ["--weights", weights(runs, "snn"), "--json", file]
    assert command(monkeypatch, "classify", *words, runs / "data/test/b") == 130
    assert seen == [0, 1, 2] and len(json.loads(file.read_text())) == 2


def test_classify_reads_what_detect_reads_and_names_what_is_none(
    runs, tmp_path, monkeypatch, capsys
):
    """Files of a folder that are no pictures were left out without a word."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(runs / "data/test/b/000.png", folder / "a.png")
    for name in ("x.docx", "y.csv", "z.md", "zz.ini"):
        (folder / name).write_text("no picture")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(folder / "b.gif", save_all=True, append_images=frames[1:], duration=200)
    (tmp_path / "list.txt").write_text(f"{folder}\n")
    words = ["--weights", weights(runs, "snn"), "--json", tmp_path / "found.json"]
    assert command(monkeypatch, "classify", *words, tmp_path / "list.txt", "--frames", 2) == 0
    shown = capsys.readouterr()
    left = "4 files are neither a picture nor a video that can be read (x.docx, y.csv, z.md, ...)"
    assert f"warning: {left}" in shown.err.splitlines()
    begins = [line.partition(": ")[0] for line in shown.out.splitlines()]
    film = folder / "b.gif"
    assert begins == [str(folder / "a.png"), f"{film} 0.00 s", f"{film} 0.20 s"]
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [(e["frame"], e["time"]) for e in entries] == [(0, 0), (0, 0), (1, 0.2)]


@pytest.mark.parametrize("stage", ["float", "qc", "snn"])
def test_a_classifier_in_python(runs, stage):
    classifier = spikedet.load(weights(runs, stage), half=False)
    assert isinstance(classifier, Classifier) and classifier.names == CLASSES
    steps = classifier.T
    assert steps == (4 if stage == "snn" else None)
    paths = [runs / f"data/test/{name}/000.png" for name in CLASSES]
    arrays = [read_picture(path) for path in paths]
    one = classifier(paths[0])
    samples = data.read([runs / "data"], "test")
    by_hand = classifier.runner(next(data.batches(samples, classifier.runner.description, 16, 1)))
    by_hand = by_hand.softmax(1)[0].sort(descending=True)
    assert np.allclose(one.probabilities, by_hand.values.numpy(), atol=1e-5)
    assert one.names == tuple(CLASSES[n] for n in by_hand.indices.tolist())
    assert set(one.names) == set(CLASSES) and one.T == classifier.T
    assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
    for answers in (classifier(paths), classifier(arrays), classifier([*paths], batch=2)):
        assert len(answers) == 3 and answers[0].names == one.names
        assert np.allclose(answers[0].probabilities, one.probabilities, atol=1e-5)
    grey = classifier(arrays[0][..., 0], top=1)
    colour = classifier(np.repeat(arrays[0][..., :1], 3, 2), top=1)
    assert grey.names == colour.names and len(grey.names) == 1
    assert np.array_equal(grey.probabilities, colour.probabilities)
    assert classifier([]) == []
    large = classifier(np.zeros((40, 70, 3), np.uint8))
    assert large.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_bad_calls_of_a_classifier(runs):
    classifier = spikedet.load(weights(runs, "snn"))
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(PictureError, match="expected .H, W, 3. uint8"):
        classifier(picture.astype(np.float32))
    for name, words in (
        ("top", "of 1 or more"),
        ("batch", "of 1 or more"),
        ("T", "from 1 to 10000"),
    ):
        with pytest.raises(UsageError, match=f"{name} is 0; expected an integer {words}"):
            classifier(picture, **{name: 0})
    with pytest.warns(UserWarning, match="calibrated for T=4, not T=2"):
        assert classifier(picture, 2).T == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        classifier(picture, 2)
    with pytest.warns(UserWarning, match="float weights; T=3 is ignored"):
        assert spikedet.load(weights(runs, "float"), 3).T is None


# ---------------------------------------------------------------------- refusals

TRAIN = ["train", "--model", "toy.yaml", "--data", "data", "--imgsz", 16, "--out", "OUT"]
BACKBONE = ["pretrain", "--data", "data", "--out", "OUT"]
TUNE = ["finetune", "--weights", "float.safetensors", "--T", 4, "--out", "OUT"]
CONVERT = ["convert", "--weights", "float.safetensors", "--T", 4, "--out", "OUT"]
MEASURE = ["evaluate", "--weights", "float.safetensors", "--data", "data"]
GO_ON = ["calibrate", "--weights", "snn.safetensors", "--teacher", "float.safetensors"]
GO_ON += ["--data", "data", "--out", "OUT"]
QC = ["--weights", "qc.safetensors"]
FEWER = "2 classes, number 3 is none; the network knows 3, number 3 is c"
OTHERS = "these weights are for {}; expected {} weights"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([*TUNE, "--data", "fewer"], 3, FEWER),
        ([*CONVERT, "--data", "fewer"], 3, FEWER),
        (["evaluate", "--weights", "snn.safetensors", "--data", "fewer"], 3, FEWER),
        (["energy", "--weights", "snn.safetensors", "--data", "fewer"], 3, FEWER),
        ([*TRAIN, "--data", "fewer"], 3, "2 pictures are too few"),
        ([*TRAIN, "--data", "half"], 3, "train: 2 classes, number 3 is none; "),
        ([*MEASURE, "--data", "VOCdevkit"], 3, "for detection; the network is for classification"),
        ([*TRAIN, "--model", "typo.yaml"], 2, "task: clasification; expected detection or class"),
        ([*MEASURE, "--split", "val"], 3, "CLASS/pictures with --split test or train"),
        ([*GO_ON, *QC, "--teacher", "DETECTOR"], 4, "the teacher has 1 classes, dog"),
        ([*TRAIN, "--temperature", 4], 2, "--temperature: has no effect without --teacher"),
        ([*TUNE, "--data", "data", "--distill", 0, "--temperature", 4], 2,
         "--temperature: has no effect with --distill 0"),
        ([*TUNE, "--data", "data", "--qcfs", "--temperature", 4], 2, "--temperature: QCFS trains"),
        ([*TUNE, *QC, "--data", "data", "--temperature", 4], 2, "--temperature: stage-I weights"),
        (["classify", "--weights", "DETECTOR", "data/test/a"], 4,
         OTHERS.format("detection", "classification")),
        (["detect", "--weights", "float.safetensors", "data/test/a"], 4,
         OTHERS.format("classification", "detection")),
        (["energy", "--weights", "snn.safetensors", "--float", "DETECTOR", "--data", "data"], 4,
         "its task differs from that of"),
        ([*MEASURE, "--weights", "float.safetensors", "DETECTOR"], 4,
         "weights for classification and detection; expected weights for one task"),
        ([*MEASURE, "--weights", "float.safetensors", "renamed.safetensors"], 4,
         "the weights have different classes; expected the same"),
        ([*TUNE, "--data", "data", "--teacher", "renamed.safetensors"], 4,
         "the teacher has 3 classes, x, b, c"),
        ([*TRAIN, "--close-mosaic", 2], 2, "--close-mosaic is no option of classification"),
        ([*TUNE, "--data", "data", "--cache"], 2, "--cache is no option of classification"),
        ([*TRAIN, "--tuning", "list.txt"], 2, "--tuning is no option of classification"),
        ([*MEASURE, "--classes"], 2, "--classes is no option of classification"),
        ([*TRAIN, "--width", "s"], 2, "width: s; expected a number such as 0.5"),
        ([*TRAIN, "--width", "0"], 2, "width: 0.0; expected a number above 0"),
        ([*TRAIN, "--width", "nan"], 2, "width: nan; expected a number above 0"),
        ([*TRAIN, "--activation", "gelu"], 2, "activation: gelu; there are relu, leaky"),
        ([*TRAIN, "--model", "arch.yaml"], 2, "arch: lenet; there are"),
        ([*TRAIN, "--model", "form.yaml"], 2, "form: mnist; resnet20 has cifar"),
        ([*TRAIN, "--augment", "mixup"], 2, "--augment: 'mixup'; expected none"),
        ([*MEASURE, "--T", 8], 2, "--T: is for spiking weights only"),
        ([*MEASURE, *QC, "--T", 8], 2, "--T: is for spiking weights only"),
        ([*MEASURE, *QC, "--compare", "--T", 16], 2, "--T: the weights of --compare are for T=4"),
        ([*MEASURE, "--threshold-split", "train"], 2, "--threshold-split: has no effect"),
        (["benchmark", "--weights", "float.safetensors", "--float", "float.safetensors"], 4,
         "these are float weights; expected snn weights"),
        (["benchmark", "--weights", "snn.safetensors", "--float", "qc.safetensors"], 4,
         "these are qc weights; expected float weights"),
        ([*TRAIN, "--distill", 2], 2, "--distill: has no effect without --teacher"),
        ([*TRAIN, "--distill", -1], 2, "--distill: '-1' is not a number of 0 or more"),
        ([*BACKBONE, "--rate", -1], 2, "--rate: '-1' is not a number"),
        ([*BACKBONE, "--temperature", 4], 2, "unrecognized arguments: --temperature 4"),
        ([*BACKBONE, "--model", "yolov8n.yaml"], 5, "SiLU"),
        ([*TRAIN, "--teacher", "float.safetensors", "--distill", 0], 2,
         "--teacher: has no effect with --distill 0"),
        ([*TUNE, "--data", "data", "--teacher", "float.safetensors", "--distill", 0], 2,
         "--teacher: has no effect with --distill 0"),
        ([*GO_ON, *QC, "--end-to-end", 0], 2, "--teacher: has no effect with --end-to-end 0"),
        ([*CONVERT, "--data", "data", "--method", "copy", "--no-fold-first"], 2,
         "--fold-first: copy has no stage I"),
        (["energy", "--weights", "snn.safetensors", "--float", "renamed.safetensors", "--data",
          "data"], 4, "renamed.safetensors: its list of classes differs"),
        (["analyze", "--weights", "snn.safetensors", "--float", "renamed.safetensors", "--data",
          "data", "--out", "OUT"], 4, "renamed.safetensors: its list of classes differs"),
        ([*BACKBONE, "--width", "x"], 2, "width 'x'"),
        ([*BACKBONE, "--grow-from", 50], 2, "grow_from is 50 pixels; expected"),
        ([*CONVERT, "--data", "data", "--method", "spiking-yolo", "--resume"], 2,
         "--resume: spiking-yolo has neither stage"),
        ([*TUNE, *QC, "--data", "data", "--distill", 2], 2, "--distill: stage-I weights cannot"),
        ([*TUNE, "--data", "data", "--qcfs", "--noise", 0], 2, "--noise: QCFS trains without"),
        ([*TUNE, "--data", "data", "--qcfs", "--stage1-sparsity", 1], 2,
         "--stage1-sparsity: QCFS trains without"),
        ([*TUNE, *QC, "--data", "data", "--stage1-features", 2], 2,
         "--stage1-features: stage-I weights cannot be a teacher"),
        ([*TUNE, "--data", "data", "--distill", 0, "--stage1-features", 2], 2,
         "--stage1-features: has no effect with --distill 0"),
        ([*TUNE, "--data", "data", "--qcfs", "--stage1-features", 1], 2,
         "--stage1-features: QCFS trains without"),
        ([*CONVERT, "--data", "data", "--method", "stage2", "--stage1-features", 1], 2,
         "--stage1-features: stage2 has no stage I"),
        ([*GO_ON, "--end-to-end", 0, "--end-features", 1], 2, "--end-features: has no effect with"),
        ([*GO_ON, "--pictures", 8], 2, "--pictures: spiking weights only continue"),
        ([*GO_ON, "--held", 1], 2, "--held: spiking weights only continue"),
        ([*GO_ON, "--no-coarse"], 2, "--no-coarse: spiking weights only continue"),
        ([*GO_ON, *QC, "--no-fine", "--loss", "kl"], 2, "--loss: has no effect with --no-fine"),
        ([*GO_ON, *QC, "--no-fine", "--no-coarse", "--held", 1], 2, "--held: has no effect"),
        (["classify", "--weights", "snn.safetensors", "data/test/a", "--json", "toy.yaml/x.json"],
         2, "toy.yaml is not a folder that can be written to"),
        ([*GO_ON, "--end-to-end", 0, "--end-rate", 1], 2, "--end-rate: has no effect with"),
        ([*TRAIN, "--unlabelled", "data"], 2, "--unlabelled: has no effect without --teacher"),
        ([*TUNE, "--data", "data", "--distill", 0, "--unlabelled", "data"], 2,
         "--unlabelled: has no effect with --distill 0"),
        ([*TUNE, "--data", "data", "--unlabelled", "toy.yaml"], 3,
         "toy.yaml: no pictures in this folder"),
        ([*GO_ON, "--end-to-end", 0, "--unlabelled", "data"], 2, "--unlabelled: has no effect"),
        ([*CONVERT, "--data", "data", "--method", "copy", "--unlabelled", "data"], 2,
         "--unlabelled: has no effect"),
        ([*GO_ON, "--end-temperature", 0.5], 2, "'0.5' is not a number of 1 or more"),
        ([*GO_ON, "--end-jpeg", 101], 2, "--end-jpeg: '101' is not an integer"),
        ([*GO_ON, "--end-to-end", 0, "--end-jpeg", 75], 2, "--end-jpeg: has no effect with"),
        ([*CONVERT, "--data", "data", "--layers", "model.3"], 2,
         "no layer is named 'model.3'; there are relu, layer1.0.relu, "),
        ([*CONVERT, "--data", "data", "--method", "copy", "--stage1", "qc.safetensors"], 2,
         "--stage1: copy has no stage I"),
        ([*TRAIN, "--model", "float.safetensors"], 2, "not readable as YAML"),
        ([*TRAIN, "--config", "float.safetensors"], 2, "not readable as YAML"),
        ([*MEASURE, "--device", "mps"], 2, "'mps': this machine has"),
        ([*TRAIN, "--device", "mps"], 2, "--device: 'mps': this machine has"),
        ([*TRAIN, "--rate", -1], 2, "--rate: '-1' is not a number"),
        ([*TRAIN, "--smoothing", 2], 2, "--smoothing: '2' is not a number"),
        ([*TRAIN, "--teacher", "float.safetensors", "--temperature", 0.5], 2,
         "--temperature: '0.5' is not a number"),
        ([*TRAIN, "--out", "float", "--resume", "--width", 0.5], 6, "width=0.25; this run has"),
        ([*TRAIN, "--out", "float", "--resume", "--imgsz", 32], 6, "imgsz=16; this run has"),
        ([*TRAIN, "--out", "float", "--resume", "--epochs", 9, "--batch", 50, "--optimizer",
          "AdamW"], 6, "a run with optimizer=SGD; this run has optimizer=AdamW"),
        ([*CONVERT, "--data", "data", "--out", "damaged", "--resume"], 6, "this file is damaged"),
        ([*TRAIN, "--epochs", 0], 2, "--epochs: '0' is not an integer"),
        ([*TRAIN, "--device", "9"], 2, "CUDA devices; expected cpu"),
        ([*TRAIN, "--resume"], 6, "nothing to resume here"),
    ],
)  # fmt: skip
def test_refusals(runs, detector, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(runs)
    add_pictures(tmp_path / "fewer", "train", 1, "ab", size=(16, 16))
    add_pictures(tmp_path / "fewer", "test", 1, "ab", size=(16, 16))
    add_pictures(tmp_path / "half", "train", 1, "ab", size=(16, 16))
    add_pictures(tmp_path / "half", "test", 1, "abc", size=(16, 16))
    (tmp_path / "VOCdevkit/VOC2007").mkdir(parents=True)
    given = load(weights(runs, "float"))
    save(replace(given, names=("x", "b", "c")), tmp_path / "renamed.safetensors")
    (tmp_path / "damaged.stage1").mkdir()
    (tmp_path / "damaged.stage1/state.pt").write_bytes(b"damaged")
    (tmp_path / "arch.yaml").write_text(DESCRIPTION.replace("resnet20", "lenet"))
    (tmp_path / "typo.yaml").write_text("task: clasification\n")
    (tmp_path / "form.yaml").write_text(DESCRIPTION + "form: mnist\n")
    places = {"OUT": tmp_path / "out", "DETECTOR": detector, "damaged": tmp_path / "damaged"}
    places |= {p.name: p for p in tmp_path.iterdir()}
    tool, *words = [places.get(word, word) for word in words]
    assert command(monkeypatch, tool, *words) == code
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    if shown.startswith("error: "):
        assert len(shown.splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.stage1").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file"), ("a: [", "not readable as YAML"), ("\0", "not readable as YAML")],
)
def test_descriptions_that_cannot_be_read(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words):
        CLASSIFICATION.describe(path)


def test_calibration_with_few_pictures(runs):
    """As many batches as there are pictures for, one at least to fit to and one to judge by."""
    given = load(weights(runs, "qc"))
    samples = data.read([runs / "data"], "test")
    plan = Plan(LayerWise(batch=32))
    plan.layers.steps = 1
    for count in (2, 5):
        network = stage_two.copied(CLASSIFICATION, given)
        reports, fitted, judges = stage_two.layer_wise(
            CLASSIFICATION, given, network, samples.select(range(count)), plan
        )
        assert all(report.after <= report.before for report in reports) and len(reports) > 19
        assert fitted == judges == {2: 1, 5: 2}[count]
    with pytest.raises(DataError, match="1 pictures to calibrate with; expected 2 or more"):
        stage_two.layer_wise(CLASSIFICATION, given, network, samples.select([0]), plan)


def test_the_loss_of_the_end_to_end_pass():
    logits, wanted = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], [[1.0, 1.0, 0.0]] * 2])
    labels = torch.tensor([0, 2])
    batch, network = {"label": labels}, torch.nn.Identity()
    end = EndToEnd(truth=0.5, temperature=4)
    loss = CLASSIFICATION.loss(None, network, (logits, wanted), batch, end)
    expected = divergence(logits, wanted, 4) + 0.5 * torch.nn.functional.cross_entropy(
        logits, labels
    )
    assert loss.item() == pytest.approx(expected.item())


def test_the_end_to_end_pass_has_its_temperature(runs, monkeypatch, tmp_path):
    losses = []
    monkeypatch.setattr(
        CLASSIFICATION,
        "loss",
        lambda checkpoint, network, outputs, batch, end: (
            losses.append(end.temperature) or outputs[0].square().mean()
        ),
    )
    words = ["--weights", weights(runs, "snn"), "--teacher", weights(runs, "float"), "--data",
             runs / "data", "--end-to-end", 1, "--end-temperature", 4]  # fmt: skip
    assert command(monkeypatch, "calibrate", *words, "--out", tmp_path / "w.safetensors") == 0
    assert losses == [4, 4, 4]  # before, a step, after


def test_the_end_to_end_pass_compresses_its_pictures_but_not_those_that_judge_it(
    runs, monkeypatch, tmp_path
):
    qualities = []
    real = data.augmentation

    def watched(*given, **more):
        qualities.append(more["jpeg"])
        return real(*given, **more)

    monkeypatch.setattr(data, "augmentation", watched)
    words = ["--weights", weights(runs, "snn"), "--teacher", weights(runs, "float"), "--data",
             runs / "data", "--end-to-end", 1, "--end-jpeg", 75]  # fmt: skip
    assert command(monkeypatch, "calibrate", *words, "--out", tmp_path / "w.safetensors") == 0
    assert qualities == [0, 75, 0]  # before, a step, after


def test_unlabelled_pictures_are_distilled(runs, monkeypatch, tmp_path):
    """Both stages learn what the float network says of them; the names of folders do not count."""
    add_pictures(tmp_path, "pictures", 10, "xyz", size=(16, 16))
    more = ["--unlabelled", tmp_path / "pictures", "--data", runs / "data"]
    drawn, real = [], CLASSIFICATION.loss

    def watched(checkpoint, network, outputs, batch, end):
        drawn.extend(batch["label"].tolist())
        return real(checkpoint, network, outputs, batch, end)

    monkeypatch.setattr(CLASSIFICATION, "loss", watched)
    words = ["--weights", weights(runs, "qc"), "--teacher", weights(runs, "float"), *STAGE_TWO]
    out = tmp_path / "snn.safetensors"
    words += ["--end-to-end", 6, "--end-batch", 30]
    assert command(monkeypatch, "calibrate", *words, *more, "--out", out) == 0
    assert drawn.count(data.UNLABELLED) == 30  # six steps are one round of 180 pictures
    words = ["--weights", weights(runs, "float"), "--T", 4, *TRAINING, "--batch", 30]
    seen, epoch = [], training.cross_entropy
    monkeypatch.setattr(
        training, "cross_entropy", lambda *given: seen.extend(given[1].tolist()) or epoch(*given)
    )
    assert command(monkeypatch, "finetune", *words, *more, "--out", tmp_path / "qc") == 0
    assert seen.count(data.UNLABELLED) == 30 and len(seen) == 150 + 30 + 3  # tuning pictures last


def test_a_penalty_in_stage_one(runs, monkeypatch, tmp_path, capsys):
    counted, rows = [], []
    for weight in (0, 100):
        out = tmp_path / f"qc{weight}"
        words = ["--weights", weights(runs, "float"), "--T", 4, "--data", runs / "data"]
        words += ["--epochs", 2, "--batch", 50, "--stage1-sparsity", weight, "--out", out]
        assert command(monkeypatch, "finetune", *words) == 0
        counted.append(operations(load(out / "best.safetensors")))
        with (out / "results.csv").open() as file:
            rows.append(list(csv.DictReader(file)))
    assert counted[1] < 0.8 * counted[0]
    last, best = (load(out / f"{name}.safetensors") for name in ("last", "best"))
    assert all(torch.equal(last.tensors[name], best.tensors[name]) for name in best.tensors)
    assert "operations" not in rows[0][0]
    seen = [float(row["operations"]) for row in rows[1]]
    assert 0 < seen[1] < seen[0] < 1 and best.origin["operations"] == pytest.approx(seen[1])
    assert float(rows[1][0]["loss"]) < 5 * float(rows[0][0]["loss"])  # without the penalty
    read = ["--data", runs / "data", "--teacher", weights(runs, "float")]
    again = ["--end-to-end", 2, "--end-sparsity", 1]
    for source, name, more in (
        (out / "best.safetensors", "a.safetensors", STAGE_TWO[:-2]),
        (tmp_path / "a.safetensors", "b.safetensors", ()),
    ):
        words = ["--weights", source, *read, *again, *more, "--out", tmp_path / name]
        assert command(monkeypatch, "calibrate", *words) == 0
        assert networks.method_name(load(tmp_path / name)) == "stages I + II, sparse"
    words = ["--weights", weights(runs, "float"), "--T", 4, "--data", runs / "data", "--resume"]
    words += ["--epochs", 3, "--batch", 50, "--stage1-sparsity", 7, "--out", out]
    assert command(monkeypatch, "finetune", *words) == TrainingError.exit_code
    assert "a run with sparsity=100.0; this run has sparsity=7.0" in capsys.readouterr().err


def far_apart(runs, made, teacher):
    """The distance of a network's activations to those of its float network, on test pictures."""
    checkpoint, teacher = load(made), load(teacher)
    pictures = next(data.read([runs / "data"], "test").pictures(checkpoint, 30))
    network, guide = (networks.restore(CLASSIFICATION, c).network for c in (checkpoint, teacher))
    own = getattr(network, "graph", network)
    features = Features(own, guide)
    _, wanted = features.teach(pictures)
    with features.watched() as seen, torch.no_grad():
        network(pictures)
    assert len(seen) == len(features.names) > 3
    return features.distance(seen, wanted).item()


def test_features_of_both_stages(runs, monkeypatch, tmp_path, capsys):
    source, apart = weights(runs, "float"), {"finetune": [], "calibrate": []}
    for weight in (0, 3):
        out, read = tmp_path / f"qc{weight}", ["--data", runs / "data"]
        words = ["--weights", source, "--T", 4, *read, "--epochs", 2, "--batch", 50]
        words += ["--stage1-features", weight, "--out", out]
        assert command(monkeypatch, "finetune", *words) == 0
        apart["finetune"].append(far_apart(runs, out / "last.safetensors", source))
        words = ["--weights", tmp_path / "qc0/last.safetensors", "--teacher", source, *read]
        words += ["--end-to-end", 20, "--end-features", weight, *STAGE_TWO[:-2]]
        made = tmp_path / f"snn{weight}.safetensors"
        assert command(monkeypatch, "calibrate", *words, "--out", made) == 0
        apart["calibrate"].append(far_apart(runs, made, source))
    assert all(with_them < 0.9 * without for without, with_them in apart.values()), apart
    assert "features" not in load(tmp_path / "qc0/last.safetensors").origin["run"]
    words = ["--weights", source, "--T", 4, *read, "--resume", "--epochs", 3, "--batch", 50]
    words += ["--stage1-features", 7, "--out", out]
    assert command(monkeypatch, "finetune", *words) == TrainingError.exit_code
    assert "a run with features=3.0; this run has features=7.0" in capsys.readouterr().err


def test_a_teacher_of_other_layers_has_no_features(runs, monkeypatch, tmp_path, capsys):
    description = {"arch": "vgg16", "width": 0.0625, "mean": [0.5] * 3, "std": [0.25] * 3}
    network = CLASSIFICATION.network(description, 3)
    other = tmp_path / "vgg.safetensors"
    save(
        Checkpoint("float", "classification", description, CLASSES, 32, network.state_dict()), other
    )
    words = ["--weights", weights(runs, "qc"), "--teacher", other, "--data", runs / "data"]
    words += ["--end-to-end", 1, *STAGE_TWO[:-2], "--out", tmp_path / "out.safetensors"]
    monkeypatch.setattr(stage_two, "layer_wise", lambda *_: pytest.fail("too late"))
    assert command(monkeypatch, "calibrate", *words, "--end-features", 1) == UsageError.exit_code
    assert "the teacher has no layer of the network" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_the_mean_of_two_passes(runs, monkeypatch, tmp_path, capsys):
    other = load(weights(runs, "snn"))
    for tensor in other.tensors.values():
        tensor += 1
    save(other, tmp_path / "other.safetensors")
    both = [weights(runs, "snn"), tmp_path / "other.safetensors"]
    out = tmp_path / "mean.safetensors"
    assert command(monkeypatch, "average", "--weights", *both, "--out", out) == 0
    first, mean = load(both[0]), load(out)
    assert mean.tensors.keys() == first.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.allclose(mean.tensors[name], tensor + 0.5, atol=1e-6)
    assert mean.origin["parents"] == [sha256(path) for path in both]
    assert mean.origin["calibration_pictures"] == first.origin["calibration_pictures"]
    assert "tuning_loss" not in mean.origin and networks.restore(CLASSIFICATION, mean).T == 4
    other.T = 8
    save(other, tmp_path / "eight.safetensors")
    other.T = 4
    other.tensors.pop("fc.bias")
    save(other, tmp_path / "fewer.safetensors")
    other = load(both[0])
    options = next(node[3] for node in other.graph["nodes"] if node[1] == "neuron")
    options["folded"] = not options["folded"]
    save(other, tmp_path / "changed.safetensors")
    for words, code, message in (
        (both, 2, "exists already"),
        ([both[0], tmp_path / "changed.safetensors"], 4, "its layers have other settings than"),
        (both[:1], 2, "expected two checkpoints or more"),
        ([both[0], tmp_path / "eight.safetensors"], 4, "made for T=8; expected T=4"),
        ([both[0], tmp_path / "fewer.safetensors"], 4, "other names or shapes than"),
        ([both[0], weights(runs, "qc")], 4, "these are qc weights; expected snn weights"),
    ):
        target = out if words == both else tmp_path / "new.safetensors"
        assert command(monkeypatch, "average", "--weights", *words, "--out", target) == code
        assert message in capsys.readouterr().err and not (tmp_path / "new.safetensors").exists()


def test_damaged_tensors_of_a_classifier_are_refused(runs):
    given = load(weights(runs, "snn"))
    given.tensors.pop("fc.weight")
    with pytest.raises(WeightsError, match="the tensor fc.weight of the graph is not in the file"):
        networks.graph_of(CLASSIFICATION, given)
    given = load(weights(runs, "float"))
    given.tensors.pop("fc.weight")
    with pytest.raises(WeightsError, match='tensors do not fit.*"fc.weight"'):
        networks.module_of(CLASSIFICATION, given)
    given.model["arch"] = "lenet"
    with pytest.raises(WeightsError, match="description in the weights is damaged: arch: lenet"):
        networks.module_of(CLASSIFICATION, given)


# ---------------------------------------------------------------------- engines


def engine_rows(monkeypatch, path, *words):
    assert command(monkeypatch, "evaluate", *words, "--json", path) == 0
    return json.loads(path.read_text())


@needs_kernels
def test_rounded_weights_from_calibration_to_evaluation_by_events(runs, tmp_path, monkeypatch):
    """Files hold int8; steps read out of one run are those of runs of their own."""
    out = tmp_path / "int8.safetensors"
    words = ["--weights", weights(runs, "qc"), "--teacher", weights(runs, "float"), *STAGE_TWO]
    words += ["--data", runs / "data", "--end-int8", "--end-sparsity", 0.01, "--out", out]
    assert command(monkeypatch, "calibrate", *words, "--end-also", 3, 2) == 0
    assert load(out).origin["int8"] is True
    assert load(out).origin["also_for"] == [2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spikedet.load(out, T=2)
    with pytest.warns(UserWarning, match="calibrated for T=4, not T=1"):
        spikedet.load(out, T=1)
    with safe_open(out, "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert "I8" in kinds
    words = ["--weights", out, "--data", runs / "data", "--engine"]
    together = engine_rows(monkeypatch, tmp_path / "a.json", *words, "events", "--T", 2, 4)
    assert [(row["T"], row["engine"]) for row in together] == [(2, "events"), (4, "events")]
    alone = [
        engine_rows(monkeypatch, tmp_path / "b.json", *words, "events", "--T", T)[0] for T in (2, 4)
    ]
    assert together == alone
    (whole,) = engine_rows(monkeypatch, tmp_path / "c.json", *words, "integers", "--T", 4)
    assert whole == {**together[1], "engine": "integers"}


@needs_kernels
def test_steps_of_one_run_are_those_of_runs_of_their_own_to_the_last_bit(runs):
    network = spikedet.load(weights(runs, "snn"), engine="events").runner.network
    pictures = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = network.after(pictures, [1, 3, 4, 9])
    for T, output in zip((1, 3, 4, 9), together, strict=True):
        assert torch.equal(output, network(pictures, T))


@needs_kernels
def test_rows_say_their_engine_and_torch_is_the_default(runs, tmp_path, monkeypatch, capsys):
    words = ["--weights", weights(runs, "float"), weights(runs, "snn"), "--data", runs / "data"]
    rows = engine_rows(monkeypatch, tmp_path / "rows.json", *words)
    assert [row["engine"] for row in rows] == ["torch", "torch"]
    rows = engine_rows(monkeypatch, tmp_path / "rows.json", *words, "--engine", "auto")
    assert [row["engine"] for row in rows] == ["torch", "events"]
    shown = capsys.readouterr()
    assert "engine events: integers" in shown.err and shown.out.rstrip().endswith("events")


@needs_kernels
def test_energy_counts_the_spikes_of_the_engine(runs, tmp_path, monkeypatch):
    words = ["--weights", weights(runs, "snn"), "--data", runs / "data", "--limit", 4]
    results = {}
    for engine in ("events", "integers", "torch"):
        path = tmp_path / f"{engine}.json"
        assert command(monkeypatch, "energy", *words, "--engine", engine, "--json", path) == 0
        results[engine] = json.loads(path.read_text())
        assert results[engine].pop("engine") == engine
    assert results["events"] == results["integers"]
    counts = [results[name]["totals"]["accumulates"]["mean"] for name in ("events", "torch")]
    assert counts[0] != counts[1] and counts[0] == pytest.approx(counts[1], rel=0.1)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("evaluate", ["--engine", "fast"], "no engine 'fast'; expected auto, torch, events"),
        ("energy", ["--engine", "fast"], "no engine 'fast'"),
        ("analyze", ["--engine", "events"], "analyze needs input currents, which only the torch"),
        ("evaluate", ["--engine", "events", "--half"], "integers; leave --half out"),
        ("evaluate", ["--engine", "events", "--weights", "FLOAT"], "--engine: is for spiking"),
    ],
)
def test_engines_that_cannot_be_are_one_sentence(
    runs, tmp_path, monkeypatch, capsys, name, words, told
):
    words = [weights(runs, "float") if word == "FLOAT" else word for word in words]
    out = ["--out", tmp_path / "out"] if name == "analyze" else ["--json", tmp_path / "out.json"]
    given = ["--weights", weights(runs, "snn"), "--data", runs / "data", *words, *out]
    assert command(monkeypatch, name, *given) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_classify_with_an_engine_and_early_exit(runs, tmp_path, monkeypatch, capsys):
    picture = next((runs / "data/test").rglob("*.png"))
    words = ["--weights", weights(runs, "snn"), picture, "--json", tmp_path / "found.json"]
    more = ["--engine", "integers", "--T", 12, "--patience", 2]
    assert command(monkeypatch, "classify", *words, *more) == 0
    assert capsys.readouterr().err.endswith("engine integers: integer arithmetic by torch\n")
    (entry,) = json.loads((tmp_path / "found.json").read_text())
    assert 3 <= entry["T"] <= 12
    assert command(monkeypatch, "classify", *words, "--every", 2) == 2
    assert "--every: has no effect without --patience" in capsys.readouterr().err
