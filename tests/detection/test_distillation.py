"""Distillation from a teacher's raw outputs."""

from types import SimpleNamespace

import pytest
import torch

from spikedet import networks
from spikedet.checkpoint import Checkpoint
from spikedet.detection.description import build, read_description
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.task import DETECTION
from spikedet.errors import WeightsError
from support.places import ROOT


def outputs(seed, anchors=5, classes=3, bins=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "boxes": torch.randn(2, 4 * bins, anchors, generator=generator),
        "scores": torch.randn(2, classes, anchors, generator=generator),
    }


def test_it_is_nothing_for_equal_outputs_and_grows_with_the_distance():
    wanted, other = outputs(0), outputs(1)
    near = {k: torch.lerp(wanted[k], other[k], 0.1) for k in wanted}
    assert distillation_loss(wanted, wanted).item() == pytest.approx(0, abs=1e-5)
    assert 0 < distillation_loss(near, wanted) < distillation_loss(other, wanted)


def test_box_edges_count_in_proportion_to_the_best_score():
    """By hand: one anchor, one class, two bins; the scores agree, so only the edges are apart."""
    wanted = {"scores": torch.zeros(1, 1, 1), "boxes": torch.zeros(1, 8, 1)}
    outputs = {"scores": torch.zeros(1, 1, 1), "boxes": torch.zeros(1, 8, 1)}
    outputs["boxes"][0, 0] = 2.0  # first edge: softmax (0.8808, 0.1192) against (1/2, 1/2)
    by_hand = 0.5 * (0.5 * torch.log(torch.tensor(0.5 / 0.8808))) + 0.5 * (
        0.5 * torch.log(torch.tensor(0.5 / 0.1192))
    )  # weight sigmoid(0) = 1/2 over a mass of at least 1
    assert distillation_loss(outputs, wanted).item() == pytest.approx(by_hand.item(), rel=1e-3)


def test_the_training_loss_adds_it_with_its_weight():
    torch.manual_seed(0)
    description = read_description(ROOT / "configs/models/tiny-yolo.yaml", "n")
    network = build(description, 3)
    network.autocast_cpu = False
    network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[1.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.4, 0.5, 0.3, 0.3]]),
    }
    network.train()
    raw = {k: v.detach() for k, v in network(batch["img"]).items() if k != "feats"}
    plain = network.loss(batch)[0].sum()
    own = network.loss({**batch, "teacher": (lambda pictures: (raw, {}), 1.0)})[0].sum()
    wanted = {k: v + 1 for k, v in raw.items()}
    apart = distillation_loss(raw, wanted)
    taught = network.loss({**batch, "teacher": (lambda pictures: (wanted, {}), 0.5)})[0].sum()
    assert own.item() == pytest.approx(plain.item(), rel=1e-4)
    assert (taught - plain).item() == pytest.approx(2 * 0.5 * apart.item(), rel=1e-3)
    network.eval()
    network.model[-1].training = True
    unmoved = network.loss({**batch, "teacher": (lambda pictures: (wanted, {}), 0.5)})[0].sum()
    assert unmoved.item() == pytest.approx(network.loss(batch)[0].sum().item())


@pytest.mark.parametrize(
    ("stage", "names", "words"),
    [
        ("qc", ("cat", "dog"), "these are qc weights; expected float weights"),
        ("float", ("cat", "cow"), "the teacher has 2 classes, cat, cow, ...; expected the 2"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(stage, names, words):
    description = read_description(ROOT / "configs/models/tiny-yolo.yaml", "n")
    T = None if stage == "float" else 8
    checkpoint = Checkpoint("float", "detection", description, ("cat", "dog"), 64, {})
    teacher = Checkpoint(stage, "detection", description, names, 64, {}, T)
    with pytest.raises(WeightsError, match=words):
        networks.teacher_of(DETECTION, checkpoint, teacher)
