"""Tables behind an average precision: curves, confusion matrix and reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from spikedet.data.samples import Sample
from spikedet.detection.boxes import Detections, shares
from spikedet.reliability import reliability

ALL = "all classes"
BACKGROUND = "background"
CONFIDENCE, OVERLAP = 0.25, 0.5  # confidence and IoU thresholds of the confusion matrix
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Matches:
    """The N detections that count at IoU 0.5, without those of difficult objects and crowds.

    Attributes:
        scores: [N], 0..1.
        labels: [N], classes of the detections.
        hits: [N] bool, whether each detection matches an object of its class.
        positives: [C], number of annotated objects of each class.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, evaluation: COCOeval, classes: int) -> Matches:
        """Make the matches from a finished evaluation."""
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        positives = np.zeros(classes, int)
        every = evaluation.params.areaRng[0]
        for one in evaluation.evalImgs:
            if one is None or list(one["aRng"]) != list(every):
                continue
            label = one["category_id"]
            positives[label] += int((~np.asarray(one["gtIgnore"], bool)).sum())
            counted = ~np.asarray(one["dtIgnore"][0], bool)
            scores = np.asarray(one["dtScores"], float)[counted]
            hits = np.asarray(one["dtMatches"][0])[counted] > 0
            parts.append((scores, np.full(len(scores), label), hits))
        empty = (np.zeros(0), np.zeros(0, int), np.zeros(0, bool))
        scores, labels, hits = map(np.concatenate, zip(empty, *parts, strict=True))
        return cls(scores, labels, hits, positives)


def details(
    evaluation: COCOeval, detections: Sequence[Detections], samples: Sequence[Sample],
    names: Sequence[str],
) -> dict[str, Rows]:  # fmt: skip
    """Make all tables by name: `precision-recall`, `f1`, `confusion`, `reliability`.

    Args:
        evaluation: Finished evaluation of these detections.
        detections: Detections of each sample.
        samples: Annotated pictures.
        names: Class names that the labels index.
    """
    matches = Matches.of(evaluation, len(names))
    return {
        "precision-recall": precision_recall(evaluation, names),
        "f1": f1(matches, names),
        "confusion": confusion(detections, samples, names),
        "reliability": reliability(matches.scores, matches.hits),
    }


def precision_recall(evaluation: COCOeval, names: Sequence[str]) -> Rows:
    """Precision at 101 recalls of each annotated class at IoU 0.5, and the mean of the classes."""
    table = evaluation.eval["precision"][0, :, :, 0, -1]  # [recall, class]
    recalls = evaluation.params.recThrs
    curves = {name: table[:, c] for c, name in enumerate(names) if (table[:, c] > -1).any()}
    if curves:
        curves[ALL] = np.mean(list(curves.values()), 0)
    return [
        {"class": name, "recall": round(float(recall), 2), "precision": float(value)}
        for name, curve in curves.items()
        for recall, value in zip(recalls, curve, strict=True)
    ]


def f1(matches: Matches, names: Sequence[str]) -> Rows:
    """Precision, recall and F1 of each annotated class at 101 confidences, and their means."""
    rows, sums = [], []
    confidences = np.linspace(0, 1, 101)
    for label, name in enumerate(names):
        if not matches.positives[label]:
            continue
        own = matches.labels == label
        scores, hits = matches.scores[own], matches.hits[own]
        above = scores >= confidences[:, None]
        true, shown = (above & hits).sum(1), above.sum(1)
        precision = true / np.maximum(shown, 1)
        recall = true / matches.positives[label]
        both = 2 * true / (shown + matches.positives[label])
        sums.append(np.stack([precision, recall, both]))
        rows += _f1_rows(name, confidences, sums[-1])
    return rows + (_f1_rows(ALL, confidences, np.mean(sums, 0)) if sums else [])


def _f1_rows(name: str, confidences: np.ndarray, values: np.ndarray) -> Rows:
    return [
        {"class": name, "confidence": round(float(c), 2), "precision": p, "recall": r, "f1": f}
        for c, (p, r, f) in zip(confidences, values.T.tolist(), strict=True)
    ]


def confusion(
    detections: Sequence[Detections], samples: Sequence[Sample], names: Sequence[str]
) -> Rows:
    """The confusion matrix at confidence 0.25 and IoU 0.5.

    Objects and detections are matched regardless of their classes, the best overlap first. Each is
    used once. An object without a detection counts as predicted `BACKGROUND`. A detection without
    an object counts as true `BACKGROUND`, unless it lies in a crowd. Difficult objects and crowds,
    and detections of them, do not count.

    Returns:
        Rows with `truth`, `predicted` and `count` for each pair of names. If there are no objects
        and detections, only pairs of classes.
    """
    from torch import from_numpy
    from torchvision.ops import box_iou

    counts = np.zeros((len(names) + 1, len(names) + 1), int)
    for detected, sample in zip(detections, samples, strict=True):
        sure = detected.scores >= CONFIDENCE
        boxes, labels = detected.boxes[sure], detected.labels[sure]
        truths = np.asarray(sample.labels)
        overlaps = box_iou(
            from_numpy(np.asarray(sample.boxes, np.float64).reshape(-1, 4)),
            from_numpy(np.asarray(boxes, np.float64).reshape(-1, 4)),
        ).numpy()
        overlaps[np.asarray(sample.crowd, bool)] = 0
        counted = ~np.asarray(sample.difficult, bool) & ~np.asarray(sample.crowd, bool)
        seen, used = np.zeros(len(truths), bool), np.zeros(len(labels), bool)
        for pair in np.argsort(-overlaps, axis=None, kind="stable"):
            truth, number = np.unravel_index(pair, overlaps.shape)
            if overlaps[truth, number] < OVERLAP:
                break
            if not seen[truth] and not used[number]:
                seen[truth] = used[number] = True
                if counted[truth]:
                    counts[truths[truth], labels[number]] += 1
        np.add.at(counts, (truths[counted & ~seen], len(names)), 1)
        crowds = np.asarray(sample.boxes)[np.asarray(sample.crowd, bool)]
        inside: np.ndarray = shares(boxes, crowds).max(1, initial=0) >= OVERLAP
        stray = ~used & ~inside
        np.add.at(counts, (len(names), labels[stray]), 1)
    return [
        {"truth": truth, "predicted": predicted, "count": int(counts[row, column])}
        for row, truth in enumerate((*names, BACKGROUND))
        for column, predicted in enumerate((*names, BACKGROUND))
        if counts[row, column] or row == column < len(names)
    ]
