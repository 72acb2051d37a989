"""Training, its resume, and both stages of conversion, on a devkit of a few coloured squares."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch

from spikedet import networks
from spikedet.checkpoint import load, load_plain, load_plain_into, save
from spikedet.commands import calibrate, convert, kinds
from spikedet.commands.main import parsed
from spikedet.commands.training import plan
from spikedet.conversion import distill as distillation
from spikedet.conversion.stored import StoredOutputs
from spikedet.detection import loader
from spikedet.detection.data import read_voc
from spikedet.detection.defaults import Settings
from spikedet.detection.description import build, read_description
from spikedet.detection.samples import BoxSamples
from spikedet.detection.task import DETECTION
from spikedet.errors import DataError, PictureError, TrainingError, UsageError, WeightsError
from spikedet.graph.time import readouts
from spikedet.methods import label
from spikedet.networks import spiking_checkpoint
from spikedet.neurons.layers import MeanOverTime
from spikedet.precision import present_device
from spikedet.settings import EndToEnd, LayerWise, Plan
from spikedet.stages import run_files, stage_two
from spikedet.stages.calibration import Calibration
from spikedet.training.devices import check_devices
from spikedet.training.run import epochs_done, expect_same_run
from support.commands import command
from support.places import ROOT
from support.squares import converted, different, trainer


@pytest.mark.parametrize(("first", "fits"), [(None, 1), (64, 1), (96, 1), (0, 0), (9, 0), (160, 0)])
def test_pictures_grow_from_a_side_that_the_network_takes(first, fits, sides, tmp_path):
    def begin():
        trainer(sides, tmp_path / "run", imgsz=128, grow_from=first)

    if fits:
        begin()
    else:
        words = f"is {first} pixels; expected a multiple of 32, at most 128|grow_from is 0"
        with pytest.raises((UsageError, TrainingError), match=words):
            begin()


@pytest.mark.parametrize("settings", [{"imgsz": 32}, {"grow_from": 32}])
def test_pictures_with_too_few_places_for_the_loss_are_refused(settings, sides, tmp_path):
    with pytest.raises(TrainingError, match="32 pixels have 5 places .*expected 10 or more"):
        trainer(sides, tmp_path / "run", **settings)


def test_pictures_without_any_object_are_nothing_to_learn_from(sides, tmp_path, caplog):
    empty = [
        replace(
            sample, boxes=sample.boxes[:0], labels=sample.labels[:0], areas=sample.areas[:0],
            difficult=sample.difficult[:0], crowd=sample.crowd[:0],
        )
        for sample in sides[0]
    ]  # fmt: skip
    with pytest.raises(DataError, match=f"no objects in {len(empty)} training pictures"):
        trainer((empty, sides[1]), tmp_path / "run")
    trainer((sides[0], empty[:1]), tmp_path / "run")
    assert "no objects in 1 tuning pictures" in caplog.text


def test_a_last_batch_that_norms_cannot_take_is_one_sentence(sides, tmp_path, monkeypatch):
    monkeypatch.setattr("spikedet.detection.assign.CANDIDATES", 1)  # as if it had a stride of 8
    run = trainer(sides, tmp_path / "run", imgsz=32, batch=len(sides[0]) - 1)
    with pytest.raises(TrainingError, match="single value per channel; change batch"):
        run.train()


def test_memory_that_is_too_small_halves_no_batch(sides, tmp_path, monkeypatch):
    """As ultralytics would, which makes another network than was told."""

    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    run = trainer(sides, tmp_path / "run")
    run.add_callback("on_train_start", lambda r: monkeypatch.setattr(r, "preprocess_batch", full))
    with pytest.raises(TrainingError, match="the memory of cpu is too small for a batch of 8"):
        run.train()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_decoded_is_one_sentence(
    devkit, tmp_path, monkeypatch, capsys, workers
):
    shutil.copytree(devkit.parent, tmp_path / "data")
    kit = tmp_path / "data/VOCdevkit"
    picture = kit / "VOC2007/JPEGImages/000009.jpg"
    samples = BoxSamples(read_voc(kit, "VOC2007:train"))
    samples, _ = samples.split_off_tuning(devkit.parent / "tuning.txt")
    picture.write_bytes(picture.read_bytes()[:300])
    words = ["--data", kit, "--split", "VOC2007:train", "--tuning", devkit.parent / "tuning.txt"]
    words += ["--width", "n", "--imgsz", 64, "--batch", 4, "--epochs", 1, "--workers", workers]
    assert command(monkeypatch, "train", *words, "--no-cache", "--out", tmp_path / "out") == 3
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith(f"error: {picture}: ") and "Traceback" not in shown
    with pytest.raises(PictureError) as error:
        list(islice(loader.augmented(samples, 64, 4, workers=workers), 6))
    assert str(error.value).startswith(f"{picture}: ") and len(str(error.value).splitlines()) == 1


def test_processes_that_a_detector_is_not_trained_in(sides, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="on CPUs in one process; leave torchrun out"):
        trainer(sides, tmp_path / "run")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UsageError, match="'0,1,2', but torchrun started 2 processes"):
        trainer(sides, tmp_path / "run", device="0,1,2")


def killed_in(epoch, trained):
    """Train until an epoch (0-based) begins, and be interrupted."""

    def kill(running):
        if running.epoch == epoch:
            raise KeyboardInterrupt

    trained.add_callback("on_train_batch_start", kill)
    with pytest.raises(KeyboardInterrupt):
        trained.train()


def test_a_killed_run_goes_on_from_its_last_epoch(sides, tmp_path, caplog):
    folder = tmp_path / "run"
    killed_in(2, trainer(sides, folder))
    assert epochs_done(folder) == (2, 3)
    state = torch.load(folder / "state.pt", weights_only=True)
    assert all(v.dtype == torch.float32 for v in state["ema"].values() if v.is_floating_point())

    with pytest.raises(TrainingError, match="holds a run; add --resume"):
        trainer(sides, folder)
    second = trainer(sides, folder, resume=True)
    seen = {}

    def look(running):
        seen["model"] = {k: v.clone() for k, v in running.model.state_dict().items()}
        seen["ema"] = {k: v.clone() for k, v in running.ema.ema.state_dict().items()}
        seen["updates"] = running.ema.updates
        momentum = running.optimizer.state_dict()["state"]
        seen["momentum"] = [m["momentum_buffer"].clone() for m in momentum.values()]

    second.add_callback("on_train_start", look)
    second.train()
    for part in ("model", "ema"):
        assert all(torch.equal(v, state[part][k]) for k, v in seen[part].items())
    assert seen["updates"] == state["updates"] > 0
    stored = [m["momentum_buffer"] for m in state["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(stored, seen["momentum"], strict=True))

    rows = (folder / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    assert epochs_done(folder) == (3, 3)
    for name in ("best.safetensors", "last.safetensors", "results.png"):
        assert (folder / name).stat().st_size > 1000
    files = [path for path in folder.iterdir() if path.suffix != ".yaml"]
    complete = {path: path.stat().st_mtime_ns for path in files}
    with caplog.at_level("INFO"):
        trainer(sides, folder, resume=True).train()
    assert "all 3 epochs are done; nothing to resume" in caplog.text
    assert complete.items() <= {p: p.stat().st_mtime_ns for p in folder.iterdir()}.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epoch", "settings"),
    [
        (2, {"cache": False, "workers": 1}),  # where mosaic ends
        (1, {"grow_from": 64, "imgsz": 128, "optimizer": "AdamW", "mixup": 0.5}),
    ],
)
def test_a_resumed_run_ends_like_one_without_a_stop(sides, tmp_path, epoch, settings):
    settings = {"epochs": 4, "close_mosaic": 2, **settings}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer(sides, tmp_path / "whole", **settings).train()
        killed_in(epoch, trainer(sides, tmp_path / "killed", **settings))
        torch.rand(1000)  # the random numbers are not where they were
        trainer(sides, tmp_path / "killed", resume=True, **settings).train()
    finally:
        torch.set_num_threads(threads)
    whole, killed = (
        torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert_equal(whole, killed)
    one, other = (load(tmp_path / name / "best.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)


def assert_equal(one, other, place=""):
    """Compare two state files, but for the seconds in the log."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}.{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif place == ".results":
        rows = [[row.split(",") for row in text.splitlines()] for text in (one, other)]
        assert [r[:1] + r[2:] for r in rows[0]] == [r[:1] + r[2:] for r in rows[1]]
        assert rows[0][0][1].strip() == "time"
    else:
        assert one == other, place


def test_nothing_to_resume(sides, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        trainer(sides, tmp_path / "new", resume=True)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"epochs": 0}, "epochs is 0; expected an integer of 1 or more"),
        ({"batch": -1}, "batch is -1; expected an integer of 1 or more"),
        ({"mosaic": 2.0}, "mosaic is 2.0; expected a number between 0 and 1"),
        ({"optimizer": "Adam"}, "optimizer is 'Adam'; expected SGD or AdamW"),
    ],
)
def test_settings_that_no_run_can_have(sides, tmp_path, setting, words):
    with pytest.raises(TrainingError, match=words):
        trainer(sides, tmp_path / "run", **setting)
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_here(sides, tmp_path):
    with pytest.raises(UsageError, match="'mps': this machine has .* expected cpu"):
        trainer(sides, tmp_path / "run", device="mps")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_is_not_resumed(sides, tmp_path):
    folder = tmp_path / "run"
    trainer(sides, folder, epochs=1).train()
    files = ("last.safetensors", "best.safetensors", "results.csv", "state.pt")
    kept = [(folder / name).read_bytes() for name in files]
    for other, words in (
        ({"width": "s"}, "holds a run of another network or optimizer"),
        (
            {"optimizer": "AdamW"},
            "a run with optimizer=SGD; this run has optimizer=AdamW",
        ),
        ({"mosaic": 0.5}, "a run with mosaic=.*; this run has mosaic=0.5"),
    ):
        with pytest.raises(TrainingError, match=words):
            trainer(sides, folder, resume=True, epochs=2, **other).train()
    assert kept == [(folder / name).read_bytes() for name in files]
    checkpoint = load(folder / "last.safetensors")
    expect_same_run(folder, checkpoint)
    with pytest.raises(TrainingError, match="a run with scale=None; this run has scale='s'"):
        expect_same_run(folder, replace(checkpoint, model={"scale": "s"}))


def test_thresholds_and_norms_do_not_decay(sides, tmp_path):
    network = torch.nn.Module()
    network.conv = torch.nn.Conv2d(3, 4, 3)
    network.norm = torch.nn.BatchNorm2d(4)
    network.act = torch.nn.Module()
    network.act.threshold = torch.nn.Parameter(torch.ones(4, 1, 1))
    running = trainer(sides, tmp_path / "run")
    running.settings.threshold_rate = 0.1
    groups = running.build_optimizer(network, "SGD", 0.01, 0.9, 5e-4).param_groups
    by_group = {g["param_group"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in groups}
    assert by_group == {
        "weight": (0.01, 5e-4, 1),
        "plain": (0.01, 0.0, 3),
        "threshold": (pytest.approx(0.001), 0.0, 1),
    }


def run(tool, *arguments, cache):
    command = [sys.executable, "-m", "spikedet", tool, *map(str, arguments)]
    environment = {**os.environ, "SPIKEDET_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
def test_commands_from_pictures_to_spikes(devkit, tmp_path):
    data = ["--data", devkit, "--split", "VOC2007:train", "--tuning", devkit.parent / "tuning.txt"]
    small = ["--epochs", 1, "--batch", 8, "--workers", 0]
    done = run("train", *data, *small, "--width", "n", "--imgsz", 64, "--out", tmp_path / "f",
               cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    floating = tmp_path / "f" / "best.safetensors"
    assert load(floating).stage == "float"

    stage2 = ["--pictures", 8, "--held", 8, "--layer-steps", 4, "--end-to-end", 2]
    stage2 += ["--per-channel", "--per-neuron", "--loss", "kl", "--layers", "model.[1-9].*"]
    done = run("convert", "--weights", floating, "--T", 4, *data, *small, *stage2, "--out",
               tmp_path / "snn.safetensors", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoint = load(tmp_path / "snn.safetensors")
    assert (checkpoint.stage, checkpoint.T, checkpoint.imgsz) == ("snn", 4, 64)
    assert "error per layer on held-out pictures" in done.stdout
    assert checkpoint.tensors["model.3.act.threshold"].shape == (32,)  # of each channel
    assert checkpoint.tensors["model.3.act.initial"].shape == (32, 8, 8)  # of each neuron
    assert checkpoint.tensors["model.0.act.initial"].shape == (8,)  # not named, left alone

    one = tmp_path / "snn.safetensors.stage1" / "best.safetensors"
    assert load(one).stage == "qc"
    again = ["convert", "--weights", floating, "--T", 6, *data, *small, "--resume", "--out",
             tmp_path / "snn.safetensors"]  # fmt: skip
    done = run(*again, cache=tmp_path)
    assert done.returncode == 2 and "exists already; choose another --out" in done.stderr
    kept = (tmp_path / "snn.safetensors").rename(tmp_path / "kept.safetensors")
    done = run(*again, cache=tmp_path)
    assert done.returncode == 6 and "a run with T=4; this run has T=6" in done.stderr
    for option, words in (
        (["--noise", 0.3], "a run with noise=0.1; this run has noise=0.3"),
        (["--qcfs"], "a run with clips_rounded=False; this run has clips_rounded=True"),
        (["--limit", 16], "a run with data="),
        (["--teacher", kept], "a run with teacher=None"),
        (["--mosaic", 0.5], "a run with mosaic=1.0; this run has"),
    ):
        done = run(*again[:4], 4, *again[5:], "--per-channel", *option, cache=tmp_path)
        assert done.returncode == 6 and words in done.stderr, option
    done = run("finetune", "--weights", floating, "--T", 6, *data, *small, "--resume", "--out",
               one.parent, cache=tmp_path)  # fmt: skip
    assert done.returncode == 6 and "a run with T=4; this run has T=6" in done.stderr
    done = run("train", *data, *small, "--imgsz", 80, "--out", tmp_path / "g", cache=tmp_path)
    assert done.returncode == 2 and "imgsz is 80; expected a multiple of 32" in done.stderr
    done = run("calibrate", "--weights", floating, *data, "--out", tmp_path / "x",
               cache=tmp_path)  # fmt: skip
    assert done.returncode == 4
    assert "these are float weights; expected qc or snn weights" in done.stderr
    done = run("finetune", "--weights", kept, "--T", 4, *data, "--out",
               tmp_path / "y", cache=tmp_path)  # fmt: skip
    assert done.returncode == 4 and "expected float or qc weights" in done.stderr
    done = run("finetune", "--weights", floating, "--T", 4, *data, *small, "--no-fold-first",
               "--out", tmp_path / "beside", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    beside = load(tmp_path / "beside/best.safetensors")
    assert beside.origin["run"]["fold_first"] is False
    assert not any("running_mean" in name for name in beside.tensors)
    done = run("finetune", "--weights", floating, "--T", 4, *data, *small, "--no-fold-first",
               "--parts", 2, "--stage1-sparsity", 500, "--stage1-features", 3,
               "--out", tmp_path / "sparse",
               cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    sparse = load(tmp_path / "sparse/best.safetensors")
    assert sparse.origin["run"]["features"] == 3 and "features" not in beside.origin["run"]
    assert sparse.origin["run"]["sparsity"] == 500 and "sparsity" not in beside.origin["run"]
    assert 0 < sparse.origin["operations"] < 1 and "operations" not in beside.origin
    assert "operations" in (tmp_path / "sparse/results.csv").read_text()
    done = run("finetune", "--weights", one, "--T", 6, *data, *small, "--out", tmp_path / "z",
               cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "z" / "best.safetensors").T == 6
    done = run("evaluate", "--data", devkit, "--split", "VOC2007:train", "--compare",
               "--weights", floating, one, kept, "--threshold-split",
               "VOC2007:train", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    methods = [line[:20].strip() for line in done.stdout.splitlines()[3:]]
    assert methods == [
        "float", "copied weights", "stage I, quantised", "stage I alone", "stages I + II",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "words", "refusal"),
    [
        ("copy", ["--pictures", 7], "--pictures: copy calibrates no layers"),
        ("copy", ["--epochs", 3], "--epochs: copy has no stage I"),
        ("rmp", ["--noise", 0.5], "--noise: rmp has no stage I"),
        ("stage2", ["--stage1-sparsity", 3], "--stage1-sparsity: stage2 has no stage I"),
        ("copy", ["--margin", 0.25], "only neurons that take back spikes have a margin"),
        ("opi", ["--per-neuron"], "--per-neuron: opi calibrates no layers"),
        ("cap", ["--layer-steps", 5], "--layer-steps: cap has no fine calibration"),
        ("stage1", ["--stage1", "qc", "--epochs", 3], "--epochs: stage I does not run"),
        ("stage1", ["--stage1", "qc", "--end-to-end", 5], "--end-to-end: stage1 has no end-to-end"),
        ("stage1-coarse", ["--no-coarse"], "--no-coarse: the method stage1-coarse already"),
        ("stage1-coarse", ["--loss", "kl"], "--loss: stage1-coarse has no fine calibration"),
        ("stage2", ["--end-rate", 0.1], "--end-rate: there is no end-to-end pass"),
        ("two-stage", ["--no-fine", "--layer-steps", 3], "--layer-steps: has no effect with"),
        ("spiking-yolo", ["--noise", 0.3], "--noise: spiking-yolo has neither stage"),
    ],
)
def test_options_that_a_method_would_ignore_are_refused(stages_done, method, words, refusal):
    given = ["--model", stages_done / "float.safetensors", "--method", method, "--T", 4, "--data",
             "nowhere", "--out", stages_done / "none.safetensors", *words]  # fmt: skip
    with pytest.raises(UsageError, match=refusal):
        convert.run(parsed("convert", given))


def test_options_of_a_configuration_may_be_for_other_methods(stages_done, tmp_path):
    (tmp_path / "x.yaml").write_text("convert: {epochs: 3, end-to-end: 5}")
    given = ["--config", tmp_path / "x.yaml", "--model", stages_done / "float.safetensors",
             "--method", "copy", "--T", 4, "--data", "nowhere",
             "--out", tmp_path / "o"]  # fmt: skip
    with pytest.raises(DataError, match="nowhere"):  # no earlier refusal
        convert.run(parsed("convert", given))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("classes", "list of classes"),
        ("network", "network description"),
        ("pixels", "input size"),
    ],
)
def test_stage_one_of_another_network_is_refused(stages_done, devkit, change, words):
    other = load(stages_done / "qc.safetensors")
    if change == "classes":
        other.names = other.names[::-1]
    elif change == "network":
        other.model["scale"] = "s"
    else:
        other.imgsz = 96
    save(other, stages_done / f"{change}.safetensors")
    with pytest.raises(WeightsError, match=f"its {words} differs from .*; expected the same"):
        converted(stages_done, devkit, "stage1", "--stage1", stages_done / f"{change}.safetensors")


@pytest.mark.parametrize(
    ("words", "called"),
    [
        ([], "stages I + II"),
        (["--end-to-end", 0], "stages I + II, layer by layer"),
        (["--end-to-end", 0, "--no-coarse"], "stage I + fine"),
    ],
)
def test_tables_call_a_network_what_was_done_to_it(stages_done, devkit, monkeypatch, words, called):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    monkeypatch.setattr(stage_two, "tuning_loss", lambda *_: next(falling))
    falling = iter([2.0, 1.0])
    ready = ["--stage1", stages_done / "qc.safetensors"]
    checkpoint = converted(stages_done, devkit, "two-stage", *ready, *words)
    assert label(checkpoint.stage, checkpoint.origin) == called
    assert checkpoint.origin["calibration_pictures"] == 8


def test_each_method_trains_what_it_says(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    ready = ["--stage1", stages_done / "qc.safetensors"]
    copied = converted(stages_done, devkit, "copy")
    # the stage-I weights of this test are the float ones, so copies of both are the same
    alone = converted(stages_done, devkit, "stage1", *ready)
    assert different(copied, alone) == set()
    coarse = converted(stages_done, devkit, "stage1-coarse", *ready)
    assert different(coarse, alone) == {"initial"}
    fine = converted(stages_done, devkit, "stage1-fine", *ready)
    assert {"weight", "bias", "initial"} >= different(fine, alone) >= {"weight"}
    second = converted(stages_done, devkit, "stage2")
    assert different(second, alone) >= {"weight"} and "layer_wise_gain" in second.origin
    assert not second.origin["end_to_end"] and "tuning_loss" not in second.origin
    both = converted(stages_done, devkit, "two-stage", *ready)
    assert "tuning_loss" in both.origin  # the end-to-end pass was tried, and judged by it


def test_the_end_to_end_pass_goes_on_from_spiking_weights(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    before = converted(stages_done, devkit, "copy")
    out = stages_done / "on.safetensors"
    words = ["--weights", stages_done / "copy.safetensors", "--data", devkit, "--split",
             "VOC2007:train", "--tuning", devkit.parent / "tuning.txt", "--end-to-end", 2,
             "--out", out]  # fmt: skip
    with pytest.raises(UsageError, match="name their float network with --teacher"):
        calibrate.run(parsed("calibrate", words))
    words += ["--teacher", stages_done / "float.safetensors"]
    monkeypatch.setattr(stage_two, "tuning_loss", lambda *_: next(falling))
    falling = iter([2.0, 1.0])
    calibrate.run(parsed("calibrate", words))
    after = load(out)
    assert after.T == before.T and "layer_wise_gain" not in after.origin
    assert after.origin["end_to_end"] is True and after.origin["end_to_end_steps"] == 2
    assert after.origin["tuning_loss"] == 1.0 and different(before, after) >= {"weight"}
    assert after.origin["method"] == "copy" and after.origin["calibration_pictures"] == 0


@pytest.mark.slow
def test_a_killed_end_to_end_pass_is_resumed(stages_done, devkit, monkeypatch, capsys):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    monkeypatch.setattr(distillation, "ROUND", 1)
    converted(stages_done, devkit, "copy")
    floating, out = stages_done / "float.safetensors", stages_done / "killed.safetensors"

    def calibrated(*words):
        given = ["--weights", stages_done / "copy.safetensors", "--teacher", floating, "--data",
                 devkit, "--split", "VOC2007:train", "--tuning", devkit.parent / "tuning.txt",
                 "--end-to-end", 3, *words]  # fmt: skip
        calibrate.run(parsed("calibrate", given))

    def trained(path):
        rejected = path.with_suffix(".last.safetensors")
        return load(rejected if rejected.exists() else path).tensors

    with pytest.raises(TrainingError, match="no end-to-end pass to resume here"):
        calibrated("--out", out, "--resume")
    steps = []

    def killed(self, count):
        steps.append(count)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("spikedet.terminal.Bar.update", killed)
        calibrated("--out", out)
    state, begun = (out.with_suffix(ending) for ending in (".state.pt", ".layers.safetensors"))
    assert begun.exists() and not out.exists()
    assert torch.load(state, weights_only=True)["step"] == 2
    with pytest.raises(
        TrainingError, match="belongs to an interrupted run; add --resume, or choose"
    ):
        calibrated("--out", out)
    with pytest.raises(TrainingError, match="a run with rate=0.004; this run has rate=0.1"):
        calibrated("--out", out, "--resume", "--end-rate", 0.1)
    damaged, kept = state.read_bytes()[:100], state.read_bytes()
    state.write_bytes(damaged)
    with pytest.raises(TrainingError, match="this file is damaged"):
        calibrated("--out", out, "--resume")
    state.write_bytes(kept)
    for words, other in (
        (["--weights", stages_done / "qc.safetensors"], "weights, .*pictures"),
        (["--T", 8], "T;"),
        (["--pooling", "step"], "network;"),
        (["--limit", 12], "data;"),
        (["--seed", 1], "seed;"),
    ):
        with pytest.raises(TrainingError, match=f"a run with other {other}"):
            calibrated("--out", out, "--resume", *words)
    older = torch.load(state, weights_only=True)  # of a version that had fewer options
    del older["about"]["also"]
    torch.save(older, state)
    layers = begun.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "command_line", lambda: "calibrate.py --resume")
        calibrated("--out", out, "--resume")
    assert out.exists() and not state.exists() and not begun.exists()
    assert load(out).origin["command"] == "calibrate.py --resume"
    kept = out.with_name("kept.safetensors")
    begun = kept.with_suffix(".layers.safetensors")
    begun.write_bytes(layers)
    calibrated("--out", kept, "--resume", "--end-to-end", 0)  # what was done is enough
    assert kept.read_bytes() == layers and not begun.exists()
    other = [
        "--out",
        stages_done / "other.safetensors",
        "--weights",
        stages_done / "qc.safetensors",
    ]
    other += ["--held", 1, "--layer-steps", 1, "--pictures"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Calibration, "_end_to_end", Mock(side_effect=KeyboardInterrupt))
        calibrated(*other, 2)
    with pytest.raises(TrainingError, match="a run with other pictures; choose another --out"):
        calibrated(*other, 3, "--resume")
    calibrated("--out", stages_done / "whole.safetensors")
    resumed, whole = trained(out), trained(stages_done / "whole.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_a_pass_killed_after_its_layers_is_resumed(stages_done, devkit, monkeypatch):
    """It goes on with a network from a file, which lists its layers in another order."""
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    monkeypatch.setattr(distillation, "ROUND", 1)
    killed, whole = (stages_done / f"layers-{name}.safetensors" for name in ("killed", "whole"))

    def calibrated(*words):
        given = ["--weights", stages_done / "qc.safetensors", "--data", devkit, "--split",
                 "VOC2007:train", "--tuning", devkit.parent / "tuning.txt", "--pictures", 2,
                 "--held", 1, "--layer-steps", 1, "--end-to-end", 3, *words]  # fmt: skip
        calibrate.run(parsed("calibrate", given))

    def stop(*counts):
        if (killed.with_suffix(".state.pt")).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("spikedet.terminal.Bar.update", stop)
        calibrated("--out", killed)
    assert torch.load(killed.with_suffix(".state.pt"), weights_only=True)["step"] == 1
    with pytest.raises(TrainingError, match="a run with other neuron; choose another --out"):
        calibrated("--out", killed, "--resume", "--neuron", "correcting")
    calibrated("--out", killed, "--resume")
    calibrated("--out", whole)
    last = ".last.safetensors"
    rejected = [path.with_suffix(last).exists() for path in (killed, whole)]
    assert rejected[0] == rejected[1]
    resumed, uninterrupted = (
        load(path.with_suffix(last) if rejected[0] else path).tensors for path in (killed, whole)
    )
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_step_weights_of_the_readouts_are_kept(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    checkpoint = converted(stages_done, devkit, "copy")
    network = networks.graph_of(DETECTION, checkpoint)
    plain = networks.restore(DETECTION, checkpoint).raw(torch.ones(1, 3, 64, 64) / 2)["scores"]
    means = network.of((MeanOverTime,))
    weights = torch.linspace(-3, 3, checkpoint.T)
    for node in means:
        network.replace(node.name, MeanOverTime(checkpoint.T))
        network.module(node.name).log_weights.data.copy_(weights)
    path = stages_done / "weighed.safetensors"
    save(spiking_checkpoint(checkpoint, network, {}), path, half=True)
    again = networks.graph_of(DETECTION, load(path))
    kept = [node.module.log_weights for node in again.of((MeanOverTime,))]
    assert len(kept) == len(means) > 1
    assert all(torch.equal(each, weights) for each in kept)
    weighed = networks.restore(DETECTION, load(path)).raw(torch.ones(1, 3, 64, 64) / 2)["scores"]
    assert not torch.equal(plain, weighed)
    damaged = load(path)
    name = next(name for name in damaged.tensors if name.endswith("log_weights"))
    damaged.tensors[name] = torch.tensor(0.0)
    with pytest.raises(WeightsError, match="log_weights"):
        networks.graph_of(DETECTION, damaged)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--end-grow-from", 50], "grow_from is 50 pixels; expected a multiple of 32, at most 64"),
        (["--end-grow-from", 96], "grow_from is 96 pixels; expected a multiple of 32, at most 64"),
        (["--end-grow-from", 32, "--per-neuron"], "per neuron takes 64 pixels"),
        (["--end-temperature", 4], "--end-temperature is no option of detection"),
        (["--end-jpeg", 75], "--end-jpeg is no option of detection"),
        (["--unlabelled", "x"], "--unlabelled: expected a classifier"),
    ],
)
def test_what_the_end_to_end_pass_of_a_detector_cannot_take(
    stages_done, devkit, tmp_path, monkeypatch, options, reason
):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    with pytest.raises(UsageError, match=reason):
        converted(stages_done, devkit, "two-stage", "--stage1", stages_done / "qc.safetensors",
                  "--out", tmp_path / "out", *options)  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_layers_are_known_by_name_before_stage_one(sides, stages_done):
    floating = load(stages_done / "float.safetensors")
    network = stage_two.copied(DETECTION, load(stages_done / "qc.safetensors"))
    names = StoredOutputs(network, [torch.zeros(1, 3, 64, 64)], 4).names
    assert len(set(names)) == len(names) > 9

    def expect(name):
        plan = Plan(LayerWise(layers=[name]))
        stage_two.expect_layers(DETECTION, floating, sides[0], plan)

    for name in names:
        expect(name)
    with pytest.raises(UsageError, match=f"no layer is named 'x'; there are {', '.join(names)}"):
        expect("x")


def test_pictures_of_the_end_to_end_pass_grow(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    sizes = []

    def watched(checkpoint, network, outputs, batch, end):
        sizes.append(tuple(batch["img"].shape))
        return outputs[0]["scores"].square().mean()  # the detector's own loss wants more anchors

    monkeypatch.setattr(DETECTION, "loss", watched)
    monkeypatch.setattr("spikedet.detection.assign.CANDIDATES", 1)
    converted(stages_done, devkit, "two-stage", "--stage1", stages_done / "qc.safetensors",
              "--end-grow-from", 32, "--end-batch", 3, "--end-to-end", 4)  # fmt: skip
    sides = (64, 32, 32, 64, 64, 64)  # of the batch that judges before, of four steps, after
    assert sizes == [(3, 3, side, side) for side in sides]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loss_that_judges_the_end_to_end_pass(sides, stages_done, workers):
    floating = load(stages_done / "float.safetensors")
    checkpoint = load(stages_done / "qc.safetensors")
    network = stage_two.copied(DETECTION, checkpoint)

    def judged(truth):
        plan = Plan(end=EndToEnd(truth=truth, workers=workers))
        return stage_two.tuning_loss(DETECTION, checkpoint, network, sides[1], plan, floating)

    assert judged(1.0) == judged(1.0) > judged(0.0)  # the same pictures, augmented alike
    counts = [stage_two.tuning_count(range(n), Plan(end=EndToEnd(batch=8))) for n in (3, 8, 12, 16)]
    assert counts == [3, 8, 8, 16]
    near = judged(0.0)
    for name in readouts(network):
        for parameter in network.module(name).parameters():
            parameter += 5
    assert judged(0.0) > near + 1


def test_what_the_end_to_end_pass_made_is_not_lost(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    losses = iter([0.4, 0.5])
    monkeypatch.setattr(stage_two, "tuning_loss", lambda *_: next(losses))
    options = ["--stage1", stages_done / "qc.safetensors", "--end-to-end", 1]
    checkpoint = converted(stages_done, devkit, "two-stage", *options)
    rejected = load(stages_done / "two-stage.last.safetensors")
    assert not checkpoint.origin["end_to_end"] and rejected.origin["end_to_end"]
    for each in (checkpoint, rejected):
        assert (each.origin["tuning_loss_before"], each.origin["tuning_loss"]) == (0.4, 0.5)
    assert any(name.endswith("log_weights") for name in rejected.tensors)
    assert not any(name.endswith("log_weights") for name in checkpoint.tensors)


def test_runs_beside_names_with_a_dot_are_apart():
    folder = Path("runs")
    assert run_files.layers_file(folder / "a0.1") != run_files.layers_file(folder / "a0.2")
    assert run_files.state_file(folder / "a.safetensors") == folder / "a.state.pt"


def test_spiking_yolo_normalises_channels_and_starts_at_zero(stages_done, devkit, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(stages_done))
    checkpoint = converted(stages_done, devkit, "spiking-yolo")
    thresholds = [v for k, v in checkpoint.tensors.items() if k.endswith("threshold")]
    assert all(v.ndim == 1 and bool((v > 0).all()) for v in thresholds)
    assert any(v.unique().numel() > 1 for v in thresholds)
    assert all(bool((v == 0).all()) for k, v in checkpoint.tensors.items() if k.endswith("initial"))


def test_convert_wants_float_weights(stages_done, devkit):
    one = ["--model", str(stages_done / "qc.safetensors"), "--T", "4", "--data", str(devkit)]
    with pytest.raises(WeightsError, match="these are qc weights; expected float weights"):
        convert.run(parsed("convert", [*one, "--out", str(stages_done / "x")]))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of fifty small pictures, as Tiny-ImageNet has them: in a folder of each class."""
    root = tmp_path_factory.mktemp("classes")
    for which, name in enumerate("ab"):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for number in range(50):
            picture = np.full((32, 32, 3), 40 + 120 * which + number, np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), picture)
    (root / "val/images").mkdir(parents=True)
    return root


def pretrained(monkeypatch, classes, out, *words):
    given = ["--data", classes, "--out", out, "--width", "n", "--imgsz", 64, "--grow-from", 32]
    return command(monkeypatch, "pretrain", *given, "--batch", 49, "--epochs", *words)


def test_a_detector_begins_with_a_backbone(monkeypatch, classes, tmp_path, capsys):
    assert pretrained(monkeypatch, classes, tmp_path / "b", 2) == 0
    path = tmp_path / "b/best.safetensors"

    def detector(width):
        description = read_description(ROOT / "configs/models/tiny-yolo.yaml", width)
        return build(description, 20)

    network = detector("n")
    load_plain_into(network, path)
    tensors, state = load_plain(path), network.state_dict()
    layers = len(network.yaml["backbone"])
    assert {int(name.split(".")[1]) for name in tensors} == set(range(layers))
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(WeightsError, match="expected layers of the same description and width"):
        load_plain_into(detector("s"), path)
    words = ["--weights", path, "--data", classes, "--split", "train"]
    assert command(monkeypatch, "evaluate", *words) == 4
    assert "arch: backbone; there are resnet20" in capsys.readouterr().err


def test_a_backbone_is_not_written_over(monkeypatch, classes, tmp_path, capsys):
    assert pretrained(monkeypatch, classes, tmp_path / "b", 1) == 0
    assert pretrained(monkeypatch, classes, tmp_path / "b", 2, "--resume", "--limit", 99) == 6
    assert "this run has data=" in capsys.readouterr().err
    first = (tmp_path / "b/last.safetensors").read_bytes()
    assert pretrained(monkeypatch, classes, tmp_path / "b", 2) == 6
    assert "holds a run; add --resume" in capsys.readouterr().err
    assert (tmp_path / "b/last.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("damage", "words"), [(b"", "1.png: is empty"), (None, "1.png: truncated or damaged")]
)
def test_pictures_that_no_backbone_is_trained_on(
    classes, tmp_path, monkeypatch, capsys, damage, words
):
    shutil.copytree(classes, tmp_path / "c")
    picture = tmp_path / "c/train/a/images/1.png"
    picture.write_bytes(picture.read_bytes()[:-30] if damage is None else damage)
    assert pretrained(monkeypatch, tmp_path / "c", tmp_path / "b", 1) == 3
    assert words in capsys.readouterr().err
    shutil.rmtree(tmp_path / "c/train/a/images")
    assert pretrained(monkeypatch, tmp_path / "c", tmp_path / "b", 1) == 3
    assert "a: no pictures of this class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "there", "words"),
    [
        ("0", 0, "this machine has 0 CUDA devices"),
        ("gpu", 2, "this machine has 2 CUDA devices"),
        ("0,2", 2, "this machine has 2 CUDA devices"),
        ("0,1", 2, "torchrun --nproc_per_node 2"),
    ],
)
def test_devices_that_cannot_be_used(monkeypatch, device, there, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UsageError, match=words):
        check_devices(device)


def test_both_spellings_of_devices_are_taken_everywhere(monkeypatch):
    """Numbers, as trainings have them, and torch's names."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 12)
    monkeypatch.setenv("LOCAL_RANK", "0")
    same = {"0": "cuda:0", "cuda": "cuda:0", "cuda:11": "cuda:11", "cpu": "cpu"}
    for text, device in same.items():
        assert present_device(text) == device == kinds.device(text)
        number = device.removeprefix("cuda:")
        assert Settings(device=text).device == number
        check_devices(text)
    for text in ("0,1", "cuda:0,cuda:1", "0,cuda:1", "cuda,cuda:1"):
        assert Settings(device=text).device == "0,1"
        check_devices(text)
    for text in ("\N{SUPERSCRIPT TWO}", "", "cuda:", "-1", "cpu,0", "cuda:0,"):
        with pytest.raises(UsageError, match="12 CUDA devices"):
            check_devices(text)
        with pytest.raises(UsageError):
            present_device(text)
    with pytest.raises(UsageError, match="names a device twice"):
        check_devices("0,cuda:0")


def test_the_batch_of_stage_one_is_not_that_of_stage_two():
    words = ["--model", "f", "--T", "4", "--data", "d", "--out", "o", "--batch", "128"]
    args = parsed("convert", [*words, "--pictures", "32"])
    planned = plan(args, "detection")
    layers = planned.layers
    assert (layers.batch, layers.pictures, layers.held) == (8, 32, 64)
