"""Average precision in pixels of the original pictures: COCO's by pycocotools, and VOC 2007's.

`difficult` objects count neither as found nor as missed. In COCO's measure a difficult box takes
up one detection, like any ignored box that is no crowd; a second detection of it is a false alarm.
In VOC 2007's every detection whose best match is difficult is left out, as its devkit does.

Boxes around a crowd count as little, and take up any number of detections: one that lies in a crowd
by the part of its own area that IoU would have to be, and matches no object, is no false alarm. So
does COCO, and VOC 2007's measure, which knows no crowds, is given the same.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spikedet.detection import curves
from spikedet.detection.boxes import Detections
from spikedet.detection.data import Sample

AREAS = (32.0**2, 96.0**2)  # square pixels between small, medium and large objects
WITHIN = 0.95  # of the resampled values lie in an interval
COUNTED = 100  # detections of one class in one picture that COCO's measure looks at


@dataclass
class Precision:
    """Average precision in 0..1; nan where nothing of that kind is annotated.

    Attributes:
        AP: Mean over classes and IoU thresholds 0.50, 0.55 ... 0.95.
        AP50, AP75: At one IoU threshold.
        AP_small, AP_medium, AP_large: For objects up to 32^2 square pixels, up to 96^2, and from
            there on, or between the limits that were given.
        VOC07_AP50: The VOC 2007 measure, eleven recall points, IoU 0.5.
        per_class: AP of each class.
        details: Rows of the tables of `curves.details`, where they were asked for.
        intervals: Of `AP` and `AP50`, where they were asked for: see `intervals`.
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
    """Measure detections against annotations.

    Args:
        detections: One for each sample; boxes and labels as in `Detections`.
        samples: Annotated pictures.
        names: Class names that the labels index.
        areas: Square pixels between small, medium and large objects.
        details: Curves, confusion and reliability as well.
        bootstrap: Resamplings for intervals, 0 for none.

    Returns:
        All measures.
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
    """Mean of COCO's precisions [IoU, recall, class, area, most], -1 where there is none."""
    values = table[iou, :, label, area, -1]
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def intervals(evaluation: COCOeval, count: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals over pictures (Efron and Tibshirani 1993, chapter 13).

    As many pictures as there are are drawn with replacement, again and again, and measured each
    time: 95 % of the values lie in the interval. Classes that a draw has no object of are left out
    of its mean, as ever.

    Args:
        evaluation: All pictures, evaluated.
        count: Resamplings.
        seed: Of the draws.

    Returns:
        Lower and upper end by measure: `AP`, `AP50`.
    """
    whole = copy.copy(evaluation)
    pictures = len(evaluation.params.imgIds)
    kinds = [
        evaluation.evalImgs[n : n + pictures] for n in range(0, len(evaluation.evalImgs), pictures)
    ]
    kinds = kinds[:: len(evaluation.params.areaRng)]  # of each class, objects of any size
    whole.params, whole._paramsEval = (copy.copy(evaluation.params) for _ in range(2))
    for params in (whole.params, whole._paramsEval):
        params.areaRng, params.maxDets = params.areaRng[:1], params.maxDets[-1:]
    generator, values = np.random.default_rng(seed), []
    for _ in range(count):
        drawn = generator.integers(0, pictures, pictures)
        whole.evalImgs = [kind[picture] for kind in kinds for picture in drawn]
        with contextlib.redirect_stdout(io.StringIO()):
            whole.accumulate()
        table = whole.eval["precision"]
        values.append((_mean(table), _mean(table, iou=0)))
    outside = 50 * (1 - WITHIN)
    low, high = np.nanpercentile(values, [outside, 100 - outside], axis=0).tolist()
    return {name: (low[n], high[n]) for n, name in enumerate(("AP", "AP50"))}


class _Evaluation(COCOeval):
    """COCOeval that ignores difficult objects, too; the base class ignores crowds alone."""

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
    """Mean over the annotated classes of the eleven-point AP at IoU 0.5; nan without any."""
    each = [_voc07_class(detections, samples, label) for label in range(classes)]
    values = [value for value in each if value is not None]
    return float(np.mean(values)) if values else float("nan")


def _voc07_class(
    detections: Sequence[Detections], samples: Sequence[Sample], label: int
) -> float | None:
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
        overlaps = _iou(box, boxes[image])
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best >= 0 and overlaps[best] >= 0.5:
            if difficult[image][best]:
                continue
            hits.append(not taken[image][best])
            taken[image][best] = True
        elif (_covered(box, crowds[image]) >= 0.5).any():
            continue
        else:
            hits.append(False)
        misses.append(not hits[-1])
    true, false = np.cumsum(hits), np.cumsum(misses)
    recall, precision = true / positives, true / np.maximum(true + false, 1)
    points = [precision[recall >= point - 1e-12] for point in np.linspace(0, 1, 11)]
    return float(np.mean([p.max() if p.size else 0.0 for p in points]))


def _shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area [N] that one box has in common with others [N, 4], square pixels."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=1)


def _covered(box: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Part [N] of a box that lies in each of the crowds [N, 4]."""
    return _shared(box, crowds) / np.maximum(np.prod(box[2:] - box[:2]), 1e-9)


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU [N] of one box with others [N, 4], edges in pixels.

    The devkit counts inclusive pixels, which is the width between edges for annotated boxes.
    """
    shared = _shared(box, others)
    area = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(area - shared, 1e-9)
