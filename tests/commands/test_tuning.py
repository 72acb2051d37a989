"""Classes that the tuning pictures do not show are named when pictures are split."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spikedet.classification.data import UNLABELLED, Samples
from spikedet.commands import shared
from spikedet.data.samples import Sample
from spikedet.detection.samples import BoxSamples

NAMES = tuple("abcdefgh")


def pictures(counts):
    """A classifier's data with so many pictures of each class."""
    labels = [number for number, count in enumerate(counts) for _ in range(count)]
    return Samples(NAMES, labels, [torch.zeros(3, 2, 2, dtype=torch.uint8)] * len(labels))


def boxes(*labels):
    """A detector's data, one picture for each list of labels."""

    def sample(number, each):
        places, easy = np.zeros((len(each), 4), np.float32), np.zeros(len(each), bool)
        return Sample(str(number), "p", 4, 4, places, np.array(each, np.int64), easy, names=NAMES)

    return BoxSamples([sample(number, each) for number, each in enumerate(labels)])


def warned(monkeypatch, samples):
    monkeypatch.setattr(shared, "read", lambda *_: samples)
    options = SimpleNamespace(limit=None, split="train", tuning=None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        shared.samples(options, SimpleNamespace(name="classification"))
    return [str(one.message) for one in seen]


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ([50, 49, 100, 3], "the 3 tuning pictures shows b, d, which"),
        ([50, 1, 1, 1, 1, 1, 1, 1], "the 1 tuning pictures shows b, c, d, e, f and 2 more classes"),
    ],
)
def test_classes_without_a_tuning_picture_are_named(monkeypatch, counts, named):
    (words,) = warned(monkeypatch, pictures(counts))
    assert named in words and words.startswith("none of the ")


def test_classes_of_objects_are_named_as_well(monkeypatch):
    (words,) = warned(monkeypatch, boxes([0, 1], [2], [0]))
    assert words.startswith("none of the 1 tuning pictures shows b, c, which therefore count in no")


def test_nothing_is_said_if_each_class_is_there(monkeypatch):
    assert not warned(monkeypatch, pictures([50, 60, 0]))
    assert not warned(monkeypatch, boxes([0], [], [0, 1]))
    assert Samples(NAMES, [0, UNLABELLED], [None] * 2).classes() == {0}
