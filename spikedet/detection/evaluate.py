"""Average precision (AP) in pixels of the original pictures: COCO's (pycocotools) and VOC 2007's.

`difficult` objects count neither as found nor as missed. In COCO's measure, a difficult box absorbs
one detection, like any ignored box that is not a crowd. A second detection of it is a false
positive. In VOC 2007's measure, each detection whose best match is difficult is left out, as in the
VOC devkit.

Boxes around crowds are not counted either, and absorb any number of detections. A detection that
matches no object is not a false positive if it lies in a crowd. It lies in the crowd if the
fraction of its own area in the crowd is at least the IoU threshold. COCO does this. VOC 2007 has no
crowds; its measure here treats crowds in the same way.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spikedet.detection import curves
from spikedet.detection.boxes import Detections, overlaps, shares
from spikedet.detection.data import Sample

AREAS = (32.0**2, 96.0**2)  # square pixels between small, medium and large objects
WITHIN = 0.95  # fraction of the resampled values in an interval
COUNTED = 100  # largest number of detections in a picture and class in COCO's measure


@dataclass
class Precision:
    """Average precision, 0..1. A value is nan if no such object is annotated.

    Attributes:
        AP: Mean over classes and over the IoU thresholds 0.50, 0.55 ... 0.95.
        AP50, AP75: AP at the IoU threshold 0.50 or 0.75.
        AP_small, AP_medium, AP_large: AP for objects up to 32^2 square pixels, up to 96^2, and
            larger; or for the given limits.
        VOC07_AP50: The VOC 2007 measure, with eleven recall points at IoU 0.5.
        per_class: AP of each class.
        details: Rows of the tables of `curves.details`, if requested.
        intervals: Intervals of `AP` and `AP50` (see the function `intervals`), if requested.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    VOC07_AP50: float
    per_class: dict[str, float] = field(repr=False)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def average_precision(
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    names: Sequence[str],
    areas: tuple[float, float] = AREAS,
    *,
    details: bool = False,
    bootstrap: int = 0,
) -> Precision:
    """Compute average precision from detections and annotations.

    Args:
        detections: Detections of each sample.
        samples: Annotated pictures.
        names: Class names, which the labels index.
        areas: Limits between small, medium and large objects, in square pixels.
        details: Also make tables of curves, confusion and reliability.
        bootstrap: Number of resamplings for intervals. 0 for no intervals.

    Returns:
        All measures.

    Raises:
        ValueError: The number of detections differs from the number of samples.
    """
    if len(detections) != len(samples):
        raise ValueError(f"{len(detections)} detections for {len(samples)} pictures")
    evaluation = _run_coco(detections, samples, len(names), areas)
    table = evaluation.eval["precision"]
    mean = partial(_mean, table)
    return Precision(
        AP=mean(),
        AP50=mean(iou=0),
        AP75=mean(iou=5),
        AP_small=mean(area=1),
        AP_medium=mean(area=2),
        AP_large=mean(area=3),
        VOC07_AP50=voc07_ap50(detections, samples, len(names)),
        per_class={name: mean(label=index) for index, name in enumerate(names)},
        details=curves.details(evaluation, detections, samples, names) if details else {},
        intervals=intervals(evaluation, bootstrap) if bootstrap else {},
    )


def _mean(table: np.ndarray, iou=slice(None), area=0, label=slice(None)) -> float:
    """The mean of COCO's precisions [IoU, recall, class, area, most]; entries of -1 are ignored."""
    values = table[iou, :, label, area, -1]
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def intervals(evaluation: COCOeval, count: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals over pictures (Efron and Tibshirani 1993, chapter 13).

    For N pictures, N pictures are drawn with replacement, and AP is computed. This is repeated
    `count` times. The interval contains 95 % of these values. If a draw has no object of a class,
    the class is left out of the mean.

    Args:
        evaluation: Evaluation of all pictures.
        count: Number of resamplings.
        seed: Seed of the random draws.

    Returns:
        Lower and upper end of the interval, by measure: `AP`, `AP50`.
    """
    pictures, sizes = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    found = evaluation.evalImgs  # by class, size of objects (any size is first) and picture
    classes = [_Matches.of(found[n : n + pictures]) for n in range(0, len(found), pictures * sizes)]
    generator, values = np.random.default_rng(seed), []
    for _ in range(count):
        drawn = np.bincount(generator.integers(0, pictures, pictures), minlength=pictures)
        each = [one.precision(drawn, evaluation.params.recThrs) for one in classes]
        each = [ap for ap in each if ap is not None]
        table = np.array(each) if each else np.full((1, 1, 1), np.nan)
        values.append((table.mean(), table[:, 0].mean()))
    outside = 50 * (1 - WITHIN)
    low, high = np.nanpercentile(values, [outside, 100 - outside], axis=0).tolist()
    return {name: (low[n], high[n]) for n, name in enumerate(("AP", "AP50"))}


@dataclass
class _Matches:
    """What COCO's evaluation found of one class, by descending score of the D detections.

    Attributes:
        picture: [D] picture of each detection.
        true, false: [IoU, D] 1 where a detection is right or wrong. Neither where it is ignored.
        objects: [pictures] number of objects that count.
    """

    picture: np.ndarray
    true: np.ndarray
    false: np.ndarray
    objects: np.ndarray

    @classmethod
    def of(cls, found: Sequence[dict[str, Any] | None]) -> _Matches:
        """Collect the entries of all pictures; an entry is None if the class is not in it."""
        some = [(number, one) for number, one in enumerate(found) if one is not None]
        objects = np.zeros(len(found), int)
        for number, one in some:
            objects[number] = np.count_nonzero(one["gtIgnore"] == 0)
        scores = [np.asarray(one["dtScores"], float)[:COUNTED] for _, one in some]
        order = np.argsort(-np.concatenate([*scores, []]), kind="stable")
        places = [np.full(len(s), n) for (n, _), s in zip(some, scores, strict=True)]
        ignored, matched = (
            np.concatenate(
                [one[key][:, :COUNTED] != 0 for _, one in some] or [np.empty((1, 0), bool)], 1
            )
            for key in ("dtIgnore", "dtMatches")
        )
        return cls(
            np.concatenate([*places, []])[order].astype(int),
            (matched & ~ignored)[:, order].astype(np.int32),
            (~matched & ~ignored)[:, order].astype(np.int32),
            objects,
        )

    def precision(self, drawn: np.ndarray, recalls: np.ndarray) -> np.ndarray | None:
        """Precision at each of `recalls` for each IoU threshold, as COCO computes it.

        Args:
            drawn: [pictures] how often each picture counts.
            recalls: [R] recalls, ascending.

        Returns:
            [IoU, R]; None if no object is drawn.
        """
        objects = int(drawn @ self.objects)
        if not objects:
            return None
        weights = drawn[self.picture].astype(np.int32)
        true, false = (np.cumsum(kind * weights, 1) for kind in (self.true, self.false))
        precision = true / (true + false + np.spacing(1))  # as COCO does
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # at this recall or more
        values = np.zeros((len(true), len(recalls)))
        for row, (hits, at) in enumerate(zip(true, best, strict=True)):
            first = np.searchsorted(hits / objects, recalls)
            reached = first < len(at)
            values[row, reached] = at[first[reached]]
        return values


class _Evaluation(COCOeval):
    """COCOeval that ignores difficult objects too. The base class ignores only crowds."""

    def _prepare(self) -> None:
        super()._prepare()
        for objects in self._gts.values():
            for annotation in objects:
                annotation["ignore"] |= annotation["difficult"]


def _run_coco(
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    classes: int,
    areas: tuple[float, float],
) -> COCOeval:
    truth, results = COCO(), COCO()
    images = [
        {"id": i, "width": sample.width, "height": sample.height}
        for i, sample in enumerate(samples)
    ]
    categories = [{"id": c, "name": str(c)} for c in range(classes)]
    wanted = [
        _annotation(i, box, label)
        | {"difficult": int(difficult), "iscrowd": int(crowd), "area": float(area)}
        for i, sample in enumerate(samples)
        for box, label, difficult, crowd, area in zip(
            sample.boxes, sample.labels, sample.difficult, sample.crowd, sample.areas, strict=True
        )
    ]
    predictions = [
        _annotation(i, box, label) | {"score": float(score)}
        for i, one in enumerate(detections)
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes refuses an empty list, so both sides are made as data sets
        for side, annotations in ((truth, wanted), (results, predictions)):
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
            side.dataset = {
                "images": images,
                "categories": categories,
                "annotations": annotations,
            }
            side.createIndex()
        evaluation = _Evaluation(truth, results, "bbox")
        evaluation.params.maxDets = [1, 10, COUNTED]
        most = evaluation.params.areaRng[0]
        edges = (most[0], *areas, most[1])
        evaluation.params.areaRng = [most, *map(list, zip(edges, edges[1:], strict=False))]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotation(image: int, box: np.ndarray, label: int) -> dict:
    x1, y1, x2, y2 = (float(v) for v in box)
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }


def voc07_ap50(detections: Sequence[Detections], samples: Sequence[Sample], classes: int) -> float:
    """Mean eleven-point AP at IoU 0.5 over the annotated classes; nan without annotated classes."""
    each = [_voc07_class(detections, samples, label) for label in range(classes)]
    values = [value for value in each if value is not None]
    return float(np.mean(values)) if values else float("nan")


def _voc07_class(
    detections: Sequence[Detections], samples: Sequence[Sample], label: int
) -> float | None:
    """AP of one class. The VOC devkit counts pixels including both edges.

    For annotated boxes this equals the width between the edges here.
    """
    chosen = [(sample.labels == label) & ~sample.crowd for sample in samples]
    crowds = [sample.boxes[(sample.labels == label) & sample.crowd] for sample in samples]
    boxes = [sample.boxes[own] for sample, own in zip(samples, chosen, strict=True)]
    difficult = [sample.difficult[own] for sample, own in zip(samples, chosen, strict=True)]
    positives = sum(int((~d).sum()) for d in difficult)
    if positives == 0:
        return None
    rows = [
        (float(score), image, box)
        for image, one in enumerate(detections)
        for box, score, own in zip(one.boxes, one.scores, one.labels, strict=True)
        if own == label
    ]
    rows.sort(key=lambda row: -row[0])
    taken = [np.zeros(len(b), bool) for b in boxes]
    hits, misses = [], []
    for _, image, box in rows:
        parts = overlaps(box, boxes[image])
        best = int(parts.argmax()) if len(parts) else -1
        if best >= 0 and parts[best] >= 0.5:
            if difficult[image][best]:
                continue
            hits.append(not taken[image][best])
            taken[image][best] = True
        elif (shares(box, crowds[image]) >= 0.5).any():
            continue
        else:
            hits.append(False)
        misses.append(not hits[-1])
    true, false = np.cumsum(hits), np.cumsum(misses)
    recall, precision = true / positives, true / np.maximum(true + false, 1)
    points = [precision[recall >= point - 1e-12] for point in np.linspace(0, 1, 11)]
    return float(np.mean([p.max() if p.size else 0.0 for p in points]))
