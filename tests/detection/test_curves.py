"""Curves, confusion and reliability on cases worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spikedet.detection.boxes import Detections
from spikedet.detection.curves import ALL
from spikedet.detection.data import Sample
from spikedet.detection.evaluate import average_precision
from spikedet.reliability import reliability

NAMES = ("cat", "dog", "bus")
BOX, FAR, THIRD = (10, 10, 110, 110), (200, 200, 300, 300), (10, 200, 110, 300)


def sample(*objects):
    """objects: (label, box, difficult)"""
    boxes = np.array([o[1] for o in objects], np.float32).reshape(-1, 4)
    labels = np.array([o[0] for o in objects], np.int64)
    difficult = np.array([o[2] for o in objects], bool)
    return Sample("VOC2007/1", Path("1.jpg"), 400, 400, boxes, labels, difficult)


def found(*objects):
    """objects: (label, box, score)"""
    boxes = np.array([o[1] for o in objects], np.float32).reshape(-1, 4)
    scores = np.array([o[2] for o in objects], np.float32)
    return Detections(boxes, scores, np.array([o[0] for o in objects], np.int64), NAMES)


def tables(detections, samples):
    return average_precision(detections, samples, NAMES, details=True).details


def pairs(rows):
    return {(r["truth"], r["predicted"]): r["count"] for r in rows if r["count"]}


def test_nothing_unless_it_is_asked_for():
    assert average_precision([found((0, BOX, 0.9))], [sample((0, BOX, False))], NAMES).details == {}


def test_f1_over_confidence():
    """Two cats: one found with 0.8, one missed; a false cat with 0.5."""
    truth = sample((0, BOX, False), (0, THIRD, False))
    rows = tables([found((0, BOX, 0.8), (0, FAR, 0.5))], [truth])["f1"]
    cat = {row["confidence"]: row for row in rows if row["class"] == "cat"}
    assert (cat[0.4]["precision"], cat[0.4]["recall"], cat[0.4]["f1"]) == (0.5, 0.5, 0.5)
    assert (cat[0.6]["precision"], cat[0.6]["recall"]) == (1, 0.5)
    assert cat[0.6]["f1"] == pytest.approx(2 / 3) and cat[0.9]["f1"] == 0
    assert {row["class"] for row in rows} == {"cat", ALL}  # nothing else is annotated
    assert [r["f1"] for r in rows if r["class"] == ALL] == [r["f1"] for r in cat.values()]


def test_precision_over_recall_is_that_of_the_average():
    truth = sample((0, BOX, False), (0, THIRD, False), (1, FAR, False))
    detections = found((0, BOX, 0.8), (0, FAR, 0.7), (0, THIRD, 0.5), (1, FAR, 0.9))
    result = average_precision([detections], [truth], NAMES, details=True)
    rows = result.details["precision-recall"]
    assert len(rows) == 3 * 101
    mean = np.mean([row["precision"] for row in rows if row["class"] == ALL])
    assert mean == pytest.approx(result.AP50)
    cat = {row["recall"]: row["precision"] for row in rows if row["class"] == "cat"}
    assert cat[0.5] == pytest.approx(1) and cat[0.51] == pytest.approx(2 / 3)


def test_confusion_by_hand():
    truth = sample((0, BOX, False), (1, FAR, False), (2, THIRD, False))
    detections = found((1, BOX, 0.9), (1, FAR, 0.8), (0, (300, 10, 390, 90), 0.7), (2, THIRD, 0.1))
    assert pairs(tables([detections], [truth])["confusion"]) == {
        ("cat", "dog"): 1, ("dog", "dog"): 1, ("background", "cat"): 1, ("bus", "background"): 1,
    }  # fmt: skip


def test_an_object_is_confused_once_with_what_overlaps_it_most():
    near = (12, 10, 112, 110)
    detections = found((1, near, 0.9), (0, BOX, 0.5))
    assert pairs(tables([detections], [sample((0, BOX, False))])["confusion"]) == {
        ("cat", "cat"): 1, ("background", "dog"): 1,
    }  # fmt: skip


def test_difficult_objects_and_crowds_count_nowhere():
    truth = sample((0, BOX, True), (1, FAR, False))
    truth = replace(truth, crowd=np.array([False, True]))
    inside = (210, 210, 250, 250)
    found_there = found((0, BOX, 0.9), (1, inside, 0.8), (1, (220, 220, 260, 290), 0.7))
    details = tables([found_there], [truth])
    assert pairs(details["confusion"]) == {}
    assert sum(row["count"] for row in details["reliability"]) == 0
    assert details["f1"] == details["precision-recall"] == []


def test_pictures_without_objects_or_detections():
    assert pairs(tables([found()], [sample()])["confusion"]) == {}
    assert pairs(tables([found((0, BOX, 0.9))], [sample()])["confusion"]) == {
        ("background", "cat"): 1
    }


def test_reliability_by_hand():
    scores, right = np.array([0.05, 0.95, 0.91, 1.0]), np.array([False, True, False, True])
    rows = reliability(scores, right)
    assert len(rows) == 10 and [row["count"] for row in rows] == [1, *[0] * 8, 3]
    assert rows[-1]["right"] == pytest.approx(2 / 3)
    assert rows[-1]["score"] == pytest.approx(2.86 / 3) and rows[1]["score"] is None
