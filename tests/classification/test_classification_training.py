"""Training of classifiers: resume, refusals, distillation, mixed precision, two processes."""

import copy
import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet import precision
from spikedet.checkpoint import load_plain
from spikedet.classification import train as training
from spikedet.classification.data import UNLABELLED, batches
from spikedet.classification.distillation import accuracy, cross_entropy, divergence
from spikedet.classification.measure import accuracies
from spikedet.errors import PictureError, TrainingError, UsageError
from spikedet.task import Run
from spikedet.training.run import epochs_done
from support.classes import add_pictures
from support.places import ROOT
from support.training import CLASSES, DESCRIPTION, described, run, samples, save, settings, toy


def same(a, b):
    """Whether two states hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def rows(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of an uninterrupted run of three epochs, and its network."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


# ---------------------------------------------------------------------- runs


def test_tensorboard_has_the_numbers_of_each_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, tensorboard=True, epochs=2)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    results = rows(tmp_path)
    assert set(board.Tags()["scalars"]) >= {"loss", "tuning_loss", "tuning_top1"}
    events = board.Scalars("tuning_loss")
    assert [event.step for event in events] == [1, 2]
    assert [event.value for event in events] == pytest.approx(
        [float(row["tuning_loss"]) for row in results]
    )


def test_tensorboard_that_is_missing_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("spikedet.training.devices.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'spikedet.tensorboard.'"):
        run(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
    run(tmp_path, epochs=1)
    assert not (tmp_path / "tensorboard").exists()


def test_a_run_learns_and_leaves_its_files(whole):
    folder, network = whole
    results = rows(folder)
    assert [row["epoch"] for row in results] == ["1", "2", "3"]
    assert float(results[-1]["loss"]) < float(results[0]["loss"]) < 2
    scores = [float(row["tuning_top1"]) for row in results]
    assert scores[-1] > 0.5  # a quarter by chance
    assert same(network.state_dict(), load_plain(folder / "last.safetensors"))
    best = toy()
    best.load_state_dict(load_plain(folder / "best.safetensors"))
    best.eval()
    (results,) = accuracies(lambda x: [best(x)], samples(32, 1), DESCRIPTION, 8)
    assert results.top1 == max(scores)
    assert epochs_done(folder) == (3, 3)
    assert not torch.equal(network[5].threshold, toy()[5].threshold)  # trained, too


def test_pictures_grow_in_three_quarters_of_the_epochs(tmp_path):
    seen = []
    network = toy()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    run(tmp_path, network, imgsz=90, grow_from=32, epochs=4, batch=64)
    trained = seen[::2]  # one batch to train on an epoch, one to judge it
    assert trained == [32, 64, 64, 90] and set(seen[1::2]) == {90}
    with pytest.raises(UsageError, match="grow_from is 40 pixels; expected a multiple of 32, at"):
        run(tmp_path / "x", imgsz=90, grow_from=40)


def test_a_resumed_run_takes_the_rate_it_is_told_and_refuses_another_batch(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="a run with batch=16; this run has batch=8"):
        run(tmp_path, resume=True, batch=8)
    run(tmp_path, resume=True, rate=0.01, decay=0.25)
    first, second, _ = (float(row["rate"]) for row in rows(tmp_path))
    part = 0.5 * (1 + math.cos(math.pi * 4 / 8))  # of three epochs of 4 steps the first is warm-up
    assert first == pytest.approx(0.1 * (1 + math.cos(0)) / 2)
    assert second == pytest.approx(0.01 * part)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["run"]["o"]["param_groups"]] == [0.25, 0, 0]


@pytest.mark.parametrize("left", ["best.safetensors", "last.safetensors"])
def test_weights_without_their_run_are_not_written_over(tmp_path, left):
    (tmp_path / left).write_bytes(b"hours of work")
    with pytest.raises(TrainingError, match="holds the weights of a run; choose another --out"):
        run(tmp_path)
    assert (tmp_path / left).read_bytes() == b"hours of work"


@pytest.mark.parametrize(
    ("follows", "order"),
    [
        (False, ["last", "best", "last", "best", "last"]),
        (True, ["last", "best", "last", "last", "best"]),
    ],
)
def test_accuracy_chooses_the_epoch_and_loss_where_a_teacher_is_followed(
    tmp_path, monkeypatch, follows, order
):
    measured = iter([(1.0, 0.5), (2.0, 0.75), (0.5, 0.25)])  # the loss of the third is the least

    def judge(*_):
        return dict(zip(("tuning_loss", "tuning_top1"), next(measured), strict=True))

    monkeypatch.setattr(training._Loop, "judge", judge)
    saved = []
    what = (samples(64), samples(32), tmp_path, settings())
    teacher = toy().eval() if follows else None
    write = lambda _, path: saved.append(path.stem)  # noqa: E731
    training.train(toy(), Run(described(), *what, write, teacher=teacher))
    assert saved == order
    assert [row["tuning_top1"] for row in rows(tmp_path)] == ["0.5", "0.75", "0.25"]


def test_the_loss_on_tuning_pictures_is_the_one_that_is_trained(tmp_path):
    teacher = toy().eval()
    network = run(tmp_path, epochs=1, teacher=teacher, distill=2.0, temperature=4.0)
    tune = samples(32, 1)
    pictures = next(batches(tune, DESCRIPTION, 8, 32))
    with torch.no_grad():
        logits, wanted = network.eval()(pictures), teacher(pictures)
    expected = F.cross_entropy(logits, torch.tensor(tune.labels))
    expected += 2 * divergence(logits, wanted, 4.0)
    assert float(rows(tmp_path)[0]["tuning_loss"]) == pytest.approx(expected.item(), rel=1e-4)


def test_a_bound_on_the_gradient_bounds_the_steps(tmp_path):
    start = dict(toy().named_parameters())

    def moved(folder, clip):
        network = run(folder, decay=0.0, clip=clip)
        return max((p - start[name]).abs().max().item() for name, p in network.named_parameters())

    assert moved(tmp_path / "free", 0.0) > 1e-2
    assert 0 < moved(tmp_path / "bound", 1e-6) < 1e-5


def test_a_seed_gives_the_run_and_another_one_another(whole, tmp_path):
    assert same(run(tmp_path / "a").state_dict(), whole[1].state_dict())
    assert not same(run(tmp_path / "b", seed=1).state_dict(), whole[1].state_dict())


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("label", [4, -1, 1.5, "cat"])
def test_labels_that_are_no_class_are_refused_before_the_work(tmp_path, monkeypatch, label):
    wrong = samples(64)
    wrong.labels[9] = label
    monkeypatch.setattr("support.training.samples", lambda *_: wrong)
    words = f"a picture has the label {label!r}; expected the number of a class, an integer from 0"
    with pytest.raises(TrainingError, match=words):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_that_cannot_start_or_go_on(whole, tmp_path, caplog):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(TrainingError, match="holds a run; add --resume, or choose another --out"):
        run(folder)
    with caplog.at_level("INFO"):
        run(folder, resume=True)
    assert "all 3 epochs are done; nothing to resume" in caplog.text
    with pytest.raises(TrainingError, match="holds a run of another network or optimizer"):
        run(folder, toy(norm=False), resume=True, epochs=4)
    with pytest.raises(TrainingError, match="another network or optimizer"):
        wide = toy()
        wide[8] = nn.Linear(8, CLASSES + 1)
        run(folder, wide, resume=True, epochs=4)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(TrainingError, match="nothing to resume here; run without --resume"):
        run(tmp_path / "new", resume=True)
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match="state.pt: this file is damaged"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"epochs": 0}, TrainingError, "epochs is 0; expected an integer of 1 or more"),
        ({"batch": 0}, TrainingError, "batch is 0; expected an integer of 1 or more"),
        ({"workers": -1}, TrainingError, "workers is -1; expected"),
        ({"clip": -1.0}, TrainingError, "clip is -1.0; expected"),
        ({"optimizer": "Adam"}, TrainingError, "optimizer is '?Adam"),
        ({"device": "99"}, UsageError, "this machine has . CUDA devices"),
        ({"batch": 65}, TrainingError, "64 pictures do not fill a batch of 65"),
        ({"augment": "mixup"}, TrainingError, "augment is 'mixup'"),
        ({"jpeg": 101}, TrainingError, "jpeg is 101"),
    ],
)
def test_settings_that_no_run_can_have(tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        run(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_processes_must_share_a_batch_and_have_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for processes, device in (("2", "0"), ("1", "0,1")):
        monkeypatch.setenv("WORLD_SIZE", processes)
        with pytest.raises(UsageError, match=f"'{device}', but torchrun started {processes} pr"):
            run(tmp_path, device=device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a batch of 15 cannot be shared by 2 processes"):
        what = (samples(64), samples(32), tmp_path, settings(batch=15), save)
        training._Loop(toy(), Run(described(), *what), 0, 2, torch.device("cpu"))


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_epoch_before(tmp_path, monkeypatch):
    original = training._Loop.epoch

    def spoil(self, number):
        if number == 1:
            self.network[8].weight.data.fill_(math.nan)
        return original(self, number)

    monkeypatch.setattr(training._Loop, "epoch", spoil)
    with pytest.raises(TrainingError, match="the loss became nan in epoch 2; lower the"):
        run(tmp_path)
    assert epochs_done(tmp_path) == (1, 3)
    kept = load_plain(tmp_path / "last.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_ends_the_run_in_one_sentence(tmp_path, workers):
    good, cut = samples(32), tmp_path / "cut.png"
    cut.write_bytes(b"no picture")
    good.sources[5] = cut
    out = tmp_path / "run"
    with pytest.raises(PictureError) as raised:
        what = (good, samples(32, 1), out, settings(workers=workers), save)
        training.train(toy(), Run(described(), *what))
    words = "is not a picture that can be read; "
    words += "expected JPEG, PNG, TIFF, WebP, AVIF, JPEG 2000 or BMP"
    assert str(raised.value) == f"{cut}: {words}" and not out.exists()


def test_only_weights_decay(tmp_path):
    network = toy()
    what = (samples(64), samples(32), tmp_path, settings(decay=0.1, threshold_rate=0.5), save)
    loop = training._Loop(network, Run(described(), *what), 0, 1, torch.device("cpu"))
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = {
        group["param_group"]: (
            {names[p] for p in group["params"]}, group["initial_lr"], group["weight_decay"]
        )
        for group in loop.optimizer.param_groups
    }  # fmt: skip
    weights = {"0.weight", "3.weight", "8.weight"}
    assert groups["weight"] == (weights, 0.1, 0.1)
    assert groups["threshold"] == ({"5.threshold"}, 0.05, 0.0)
    plain = {"0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias", "8.bias"}
    assert groups["plain"] == (plain, 0.1, 0.0)


def test_the_rate_warms_up_and_falls_like_a_cosine():
    rates = [training._rate(step, 10, 2, 0.1) for step in range(11)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.55)  # half way from 1 to 0.1
    assert rates[4] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert rates[10] == pytest.approx(0.1) and rates[3:] == sorted(rates[3:], reverse=True)
    assert training._rate(0, 10, 0, 0.0) == 1.0
    assert training._rate(1, 10, 2.5, 0.0) == pytest.approx(0.8)  # warm-up ends within an epoch


def test_rates_of_a_run_are_those_of_the_schedule(tmp_path):
    run(tmp_path, rate=0.2, warmup=1, final=0.5, epochs=2)  # 4 steps an epoch
    assert [float(row["rate"]) for row in rows(tmp_path)] == pytest.approx([0.2, 0.1])


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_norms_and_quantisers_learn_in_mixed_precision(tmp_path, optimizer, monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda: True)
    network, kinds = toy(), []
    network[3].register_forward_hook(lambda *seen: kinds.append(seen[2].dtype))
    rate = 0.1 if optimizer == "SGD" else 0.01
    run(tmp_path, network, optimizer=optimizer, rate=rate, smoothing=0.1, augment="cutout")
    assert torch.bfloat16 in kinds and torch.float32 in kinds  # training, and its measurement
    assert all(t.dtype == torch.float32 for t in network.state_dict().values()
               if t.is_floating_point())  # fmt: skip
    assert float(rows(tmp_path)[-1]["loss"]) < float(rows(tmp_path)[0]["loss"])
    assert not torch.equal(network[1].running_mean, torch.zeros(8))


def test_pictures_of_training_are_compressed(tmp_path):
    contrast = {}
    for quality in (0, 5):
        network, seen = toy(), []
        network.register_forward_pre_hook(
            lambda module, given, seen=seen: seen.append(given[0].std((2, 3)).mean().item())
        )
        run(tmp_path / str(quality), network, augment="none", jpeg=quality, epochs=1)
        contrast[quality] = sum(seen[:4]) / 4  # the batches of the epoch
    assert contrast[5] < 0.8 * contrast[0]


def test_every_epoch_has_all_pictures_in_an_order_of_its_own(tmp_path):
    network, seen = toy(), []
    network.register_forward_pre_hook(
        lambda module, given: (
            seen.extend(given[0].mean((1, 2, 3)).tolist()) if module.training else None
        )
    )
    run(tmp_path, network, augment="none", epochs=2)
    first, second = seen[:64], seen[64:]
    assert sorted(first) == sorted(second) and len(set(first)) == 64
    assert first != second and first != sorted(first)


# ---------------------------------------------------------------------- distillation


def test_labels_count_where_they_are():
    logits, labels = torch.tensor([[2.0, 0], [1, 3], [5, 0], [0, 1]]), torch.tensor([0, 0, 1, 1])
    for known in ([0, 1], [2], [0, 1, 2, 3]):
        some = torch.full((4,), UNLABELLED)
        some[known] = labels[known]
        for smoothing in (0.0, 0.2):
            wanted = F.cross_entropy(logits[known], labels[known], label_smoothing=smoothing)
            assert cross_entropy(logits, some, smoothing).item() == pytest.approx(wanted.item())
        right = {2: 0.5, 1: 0.0, 4: 0.5}[len(known)]
        assert accuracy(logits, some).item() == right
    none = torch.full((4,), UNLABELLED)
    assert cross_entropy(logits, none).item() == accuracy(logits, none).item() == 0


def test_divergence_by_hand():
    logits, wanted = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert divergence(logits, wanted).item() == pytest.approx(by_hand, abs=1e-6)
    twice = divergence(logits.repeat(2, 1), wanted.repeat(2, 1))  # a mean over the pictures
    assert twice.item() == pytest.approx(by_hand, abs=1e-6)
    assert divergence(wanted + 7, wanted).item() == pytest.approx(0, abs=1e-6)
    soft = divergence(logits / 4, wanted / 4).item()
    assert divergence(logits, wanted, 4).item() == pytest.approx(16 * soft)


def test_distillation_brings_the_network_to_its_teacher(whole, tmp_path):
    teacher = copy.deepcopy(whole[1]).eval()
    with torch.no_grad():
        teacher[8].bias += torch.tensor([0.0, 3.0, 0.0, 0.0])  # not what the labels say
    pictures = torch.stack([samples(32, 1).picture(n) for n in range(32)]) / 63.75 - 2
    before = {k: v.clone() for k, v in teacher.state_dict().items()}

    def distance(network):
        with torch.no_grad():
            return divergence(network.eval()(pictures), teacher(pictures)).item()

    alone = run(tmp_path / "alone", teacher=teacher, distill=0.0)
    taught = run(tmp_path / "taught", teacher=teacher, distill=4.0)
    soft = run(tmp_path / "soft", teacher=teacher, distill=4.0, temperature=4.0)
    assert max(distance(taught), distance(soft)) < 0.5 * distance(alone)
    assert not same(soft.state_dict(), taught.state_dict())
    assert same(alone.state_dict(), whole[1].state_dict())  # the weight 0 is no distillation
    assert same(teacher.state_dict(), before)


# ---------------------------------------------------------------------- two processes

SCRIPT = """
import sys
from pathlib import Path
from pathlib import Path
from test_classification_training import run_alike

run_alike(Path(sys.argv[1]))
"""


def run_alike(folder):
    """A run without anything that processes would draw for themselves: noise, crops."""
    network = toy(norm=False)
    network[5].noise = 0.0
    return run(folder, network, augment="none", epochs=1, rate=0.05)


def two_processes(*words):
    """What a script ends with and says when torchrun starts it twice."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    return subprocess.run(
        [*command, "2", *map(str, words)],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Without batch norm, whose statistics are those of each process's share of a batch."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = two_processes(tmp_path / "script.py", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    two = load_plain(tmp_path / "two/last.safetensors")
    one, first = run_alike(tmp_path / "one").state_dict(), toy(norm=False).state_dict()
    moved = {name: (one[name] - first[name]).abs().max().item() for name in one}
    apart = {name: (one[name] - two[name]).abs().max().item() for name in one}
    assert max(moved.values()) > 0.02
    assert max(apart.values()) < 0.05 * max(moved.values())
    assert [row["epoch"] for row in rows(tmp_path / "two")] == ["1"]


@pytest.mark.slow
def test_what_ends_one_of_two_processes_is_said_once(tmp_path):
    """The other one says no more than that; each would have said what both are told."""
    add_pictures(tmp_path / "data", "train", 50, "ab", size=(8, 8))
    (tmp_path / "data/train/b/007.png").write_bytes(b"damaged")
    words = [ROOT / "tools/train.py", "--model", ROOT / "configs/models/cifar-resnet20.yaml"]
    words += ["--width", 0.25, "--data", tmp_path / "data", "--imgsz", 8, "--epochs", 4]
    said = two_processes(*words, "--batch", 16, "--out", tmp_path / "a").stderr
    errors = [x for x in said.split("\n") if "error: " in x]
    assert "b/007.png" in errors[0] and len(errors) <= 2
    assert errors[1:] in (
        [],
        ["error: another process of this training stopped; see its error message"],
    )
    said = two_processes(*words, "--batch", 15, "--out", tmp_path / "b").stderr
    assert said.count("error: a batch of 15 cannot be shared by 2 processes") == 1
