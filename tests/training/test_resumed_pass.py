"""End-to-end passes that are killed after a step and go on with a network from a file."""

import copy

import pytest
import torch

from spikedet.checkpoint import Checkpoint, load, save
from spikedet.classification.defaults import EndToEnd as ClassifierPass
from spikedet.classification.task import CLASSIFICATION
from spikedet.conversion import distill as distillation
from spikedet.detection.defaults import EndToEnd as DetectorPass
from spikedet.detection.task import DETECTION
from spikedet.errors import TrainingError
from spikedet.networks import graph_of, spiking_checkpoint
from spikedet.settings import LayerWise, Plan
from spikedet.stages import stage_one, stage_two
from support import training as classifiers

STEPS = 3
OPTIONS = [
    {},
    {"batch_norm": True, "also": [2]},
    {"int8": True, "sparsity": 0.1, "also": [1, 2]},
    {"batch_norm": True, "sparsity": 0.1, "grow_from": 32, "workers": 1},
    {"int8": True, "grow_from": 32},
]


class Killed(BaseException):
    pass


def same_when_resumed(task, checkpoint, samples, end, folder, monkeypatch):
    """Compare a pass on a network in memory with one that was killed and read from a file."""
    monkeypatch.setattr(distillation, "ROUND", 1)
    plan = Plan(LayerWise(pictures=4, held=2, steps=2, check=1, batch=2), end)
    network = stage_two.copied(task, checkpoint)
    stage_two.layer_wise(task, checkpoint, network, samples, plan)
    layers, state = folder / "layers.safetensors", folder / "state.pt"
    save(spiking_checkpoint(checkpoint, network, {}), layers)
    whole = copy.deepcopy(network)
    losses = {}

    def run(network, state=None, stop=None):
        def on_step(step, loss):
            losses.setdefault(step, []).append(loss)
            if step == stop:
                raise Killed

        if end.int8:
            stage_two.round_weights(network)
        done = stage_two.end_to_end(
            task, checkpoint, network, samples, plan, state=state, on_step=on_step
        )
        return done, network.layers.state_dict()

    first = run(whole)
    with pytest.raises(Killed):
        run(network, state, stop=1)
    assert torch.load(state, weights_only=True)["step"] == 1
    again = run(graph_of(task, load(layers)), state)
    assert {step: len(set(values)) for step, values in losses.items()} == dict.fromkeys(
        range(STEPS), 1
    ), losses
    assert again[0] == first[0]
    assert again[1].keys() == first[1].keys()
    assert [name for name in first[1] if not torch.equal(first[1][name], again[1][name])] == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_of_a_detector(sides, stages_done, tmp_path, monkeypatch, drawing, options):
    truth = 0.0 if "grow_from" in options else 1.0  # 32 pixels are too few for that loss
    end = DetectorPass(**{"steps": STEPS, "batch": 4, "workers": 0, "truth": truth, **options})
    checkpoint = load(stages_done / "qc.safetensors")
    same_when_resumed(DETECTION, checkpoint, sides[0], end, tmp_path, monkeypatch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_of_a_classifier(tmp_path, monkeypatch, options):
    if "grow_from" in options:
        options = {**options, "grow_from": 4}
    end = ClassifierPass(**{"steps": STEPS, "batch": 8, "workers": 0, **options})
    torch.manual_seed(0)
    description = CLASSIFICATION.describe("cifar-resnet20", "0.25")
    tensors = CLASSIFICATION.network(description, classifiers.CLASSES).state_dict()
    floating = Checkpoint("float", "classification", description, tuple("rgbk"), 8, tensors)
    samples = classifiers.samples(32)
    checkpoint = stage_one.untuned(CLASSIFICATION, floating, samples, 4)
    same_when_resumed(CLASSIFICATION, checkpoint, samples, end, tmp_path, monkeypatch)


def test_pictures_too_small_for_the_loss_are_refused_at_once(stages_done, sides):
    checkpoint = load(stages_done / "qc.safetensors")
    plan = Plan(LayerWise(), DetectorPass(grow_from=32))
    with pytest.raises(TrainingError, match="pictures of 32 pixels have 5 places"):
        stage_two.expect_end_size(DETECTION, checkpoint, plan, graph_of(DETECTION, checkpoint))
