"""Training steps in parts of a batch, each on a thread of its own."""

import threading
from types import SimpleNamespace

import pytest
import torch

from spikedet.detection.description import build, read_description
from spikedet.detection.parts import Parts, split
from spikedet.errors import TrainingError, UsageError
from support.places import ROOT
from support.squares import trainer


def batch_of(pictures, side=64):
    """A batch with as many objects a picture as its number says, and one of none."""
    torch.manual_seed(1)
    index = torch.arange(pictures).repeat_interleave(torch.arange(pictures))
    boxes = torch.rand(len(index), 4) * 0.3 + 0.3
    labels = torch.arange(len(index)).view(-1, 1) % 20
    pictures = torch.rand(pictures, 3, side, side)
    return {"img": pictures, "batch_idx": index, "cls": labels.float(), "bboxes": boxes}


@pytest.mark.parametrize(
    ("pictures", "parts", "sizes"), [(4, 2, [2, 2]), (5, 2, [2, 3]), (2, 4, [1, 1]), (3, 1, [3])]
)
def test_parts_of_a_batch(pictures, parts, sizes):
    batch = batch_of(pictures)
    pieces = list(split(batch, parts))
    assert [len(piece["img"]) for piece in pieces] == sizes
    for key in ("img", "cls", "bboxes"):
        assert torch.equal(torch.cat([piece[key] for piece in pieces]), batch[key])
    first = 0
    for piece in pieces:
        last = first + len(piece["img"])
        mine = (batch["batch_idx"] >= first) & (batch["batch_idx"] < last)
        assert torch.equal(piece["batch_idx"] + first, batch["batch_idx"][mine])
        first = last


@pytest.fixture
def network():
    torch.manual_seed(0)
    detector = build(read_description(ROOT / "configs/models/tiny-yolo.yaml", "n"), 20)
    detector.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    detector.autocast_cpu = False
    return detector.train()


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_gradients_are_the_sum_of_those_of_the_parts(network):
    batch = batch_of(6)
    for piece in split(batch, 2):
        network.loss(piece)[0].sum().backward()
    expected = gradients(network)
    network.zero_grad()
    network.parts = Parts(2)
    loss, items = network.loss(batch)
    summed = gradients(network)
    loss.sum().backward()  # adds nothing
    for name, gradient in expected.items():
        assert torch.allclose(summed[name], gradient, atol=1e-4), name
        assert torch.equal(summed[name], dict(network.named_parameters())[name].grad)
    assert loss.shape == (3,) and set(items) == {"box_loss", "cls_loss", "dfl_loss"}
    assert not any(value.requires_grad for value in items.values())


def test_each_part_asks_the_teacher_in_its_own_thread(network):
    asked, batch = [], batch_of(5)
    teacher = build(read_description(ROOT / "configs/models/tiny-yolo.yaml", "n"), 20)

    def taught(pictures):
        asked.append((threading.get_ident(), pictures))
        with torch.no_grad():
            return teacher(pictures), {}

    network.parts = Parts(2)
    plain = network.loss(batch)[0].sum()
    together = network.loss(batch | {"teacher": (taught, 0.5)})[0].sum()
    assert together > plain + 0.01
    threads, pieces = zip(*sorted(asked, key=lambda one: len(one[1])), strict=True)
    assert threading.get_ident() not in threads
    assert torch.equal(torch.cat(pieces), batch["img"])


def test_each_part_has_its_thread_and_one_that_fails_says_so():
    seen = []
    weight = torch.ones(1, requires_grad=True)
    together = threading.Barrier(2, timeout=60)

    def loss(piece, part):
        together.wait()  # both are there at once
        seen.append(threading.get_ident())
        return weight * len(piece["img"]), {"loss": weight}

    total, items = Parts(2).step(loss, batch_of(5))
    assert len(set(seen)) == 2 and threading.get_ident() not in seen
    assert (total.item(), weight.grad.item(), items["loss"].item()) == (5, 5, 1)

    def wrong(piece, part):
        raise UsageError("this one")

    with pytest.raises(UsageError, match="this one"):
        Parts(2).step(wrong, batch_of(4))


def test_to_measure_is_not_in_parts(network):
    network.parts = Parts(2)
    network.eval()
    with torch.no_grad():
        network.loss(batch_of(4))
    assert network.criteria is None


def test_a_run_in_parts_learns_and_goes_on(sides, tmp_path, threads):
    run = trainer(sides, tmp_path / "run", parts=2, epochs=2)
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    meanwhile = []
    run.add_callback("on_train_start", lambda _: meanwhile.append(torch.get_num_threads()))
    run.train()
    assert meanwhile == [2] and torch.get_num_threads() == 4
    assert (tmp_path / "run/state.pt").is_file()
    moved = [n for n, p in run.network.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == len(before) - 1  # all but the fixed weights of the distances
    trainer(sides, tmp_path / "run", resume=True, parts=2, epochs=3).train()
    with pytest.raises(TrainingError, match="a run with parts=2"):
        trainer(sides, tmp_path / "run", resume=True, parts=1, epochs=4).train()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_parts_that_cannot_be(sides, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="parts is 0; expected an integer of 1 or more"):
        trainer(sides, tmp_path / "run", parts=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="for CPUs only"):
        trainer(sides, tmp_path / "run", parts=2, device="0")
