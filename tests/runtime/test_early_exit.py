"""A picture that has settled stops."""

import numpy as np
import pytest
import torch

import spikedet
from spikedet.detection.boxes import Detections
from spikedet.detection.predict import alike
from spikedet.errors import UsageError
from spikedet.released import released
from spikedet.runtime.early_exit import EarlyExit
from spikedet.runtime.network import SpikingNetwork
from support.engines import NETWORKS, spiking


@pytest.mark.parametrize("engine", ["torch", "integers", "auto"])
def test_it_stops_after_so_many_answers_that_are_alike(engine):
    torch.manual_seed(0)
    pictures = torch.rand(1, 3, 16, 16)
    network = SpikingNetwork(spiking(NETWORKS["max_pool"], pictures), 12)
    network.use_engine(engine)
    answers, told = iter([3, 3, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5]), []

    def read(output):
        told.append(output)
        return next(answers)

    exits = EarlyExit(network, read, lambda a, b: a == b, patience=2)
    with network.spike_rates() as rates:
        assert exits(pictures) == (5, 4)  # 3, 3 is one in a row, 4, 4, 4 are two
    assert len(told) == 5
    rates.mean(5)
    with pytest.raises(UsageError, match="rates of 6 steps; expected 1 to 5"):
        rates.mean(6)  # no step was computed for nothing
    for t, output in enumerate(told, 1):
        assert torch.allclose(output, network(pictures, t), atol=1e-5)
    assert EarlyExit(network, lambda y: 0, lambda a, b: False)(pictures, 7) == (7, 0)
    assert EarlyExit(network, lambda y: 0, lambda a, b: True, 1, every=3)(pictures) == (6, 0)


def found(*rows):
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
        np.array(labels, np.int64), ("cat", "dog"),
    )  # fmt: skip


CAT, DOG = ((0, 0, 10, 10), 0.8, 0), ((20, 0, 30, 10), 0.5, 1)


@pytest.mark.parametrize(
    "before, now, wanted",
    [
        ([], [], False),
        ([CAT], [], False),
        ([], [CAT], False),
        ([CAT, DOG], [CAT, DOG], True),
        ([CAT, DOG], [DOG, CAT], True),
        ([CAT, DOG], [CAT, CAT], False),
        ([CAT], [((0, 0, 10, 10), 0.8, 1)], False),
        ([CAT], [((0, 0, 10, 9.2), 0.8, 0)], True),
        ([CAT], [((0, 0, 10, 8.8), 0.8, 0)], False),
        ([CAT], [((0, 0, 10, 10), 0.84, 0)], True),
        ([CAT], [((0, 0, 10, 10), 0.86, 0)], False),
    ],
)
def test_detections_that_are_alike(before, now, wanted):
    assert alike(found(*before), found(*now)) is wanted


def test_predictors_stop_early():
    nothing = np.full((64, 48, 3), 127, np.uint8)
    detector = spikedet.load(T=8)
    assert [one.T for one in detector([nothing, nothing], patience=1, every=3)] == [8, 8]
    everything = detector(nothing, conf=0.0, patience=1)
    assert 2 <= everything.T <= 8
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole, late = detector(picture, conf=0.01), detector(picture, conf=0.01, patience=8)
    assert (whole.T, late.T) == (8, 8)
    assert np.allclose(np.sort(whole.scores), np.sort(late.scores), atol=1e-4)
    classifier = spikedet.load(T=8, task="classification")
    early = classifier(picture, patience=2)
    assert 3 <= early.T <= 8 and len(early.names) == 5
    for weights, task in (("float", "detection"), ("qc", "classification")):
        other = spikedet.load(released(weights, 8, task) if weights == "qc"
                              else released(weights))  # fmt: skip
        with pytest.raises(UsageError, match="weights have no time steps"):
            other(picture, patience=2)
    with pytest.raises(UsageError, match="patience"):
        detector(picture, patience=0)
