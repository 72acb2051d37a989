"""Average precision on cases worked out by hand, and against plain pycocotools."""

# ruff: noqa: SIM300  (it takes a field named AP for a constant)

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spikedet.data.formats import read_boxes
from spikedet.detection.boxes import Detections
from spikedet.detection.data import Sample
from spikedet.detection.evaluate import average_precision

NAMES = ("cat", "dog", "bus")
BOX, FAR = (10, 10, 110, 110), (200, 200, 300, 300)


def sample(*objects, size=400):
    """objects: (label, box, difficult)"""
    return Sample(
        "VOC2007/1",
        Path("1.jpg"),
        size,
        size,
        np.array([o[1] for o in objects], np.float32).reshape(-1, 4),
        np.array([o[0] for o in objects], np.int64),
        np.array([o[2] for o in objects], bool),
    )


def found(*objects):
    """objects: (label, box, score)"""
    return Detections(
        np.array([o[1] for o in objects], np.float32).reshape(-1, 4),
        np.array([o[2] for o in objects], np.float32),
        np.array([o[0] for o in objects], np.int64),
        NAMES,
    )


def measure(detections, samples):
    return average_precision(detections, samples, NAMES)


def test_perfect():
    result = measure([found((0, BOX, 0.9))], [sample((0, BOX, False))])
    values = [result.AP, result.AP50, result.AP_large, result.VOC07_AP50]
    assert values == pytest.approx([1] * 4)
    assert np.isnan(result.AP_small) and np.isnan(result.AP_medium)
    assert result.per_class["cat"] == pytest.approx(1) and np.isnan(result.per_class["dog"])


def test_false_alarm_above_the_true_one_halves_precision():
    result = measure([found((0, FAR, 0.9), (0, BOX, 0.8))], [sample((0, BOX, False))])
    assert result.AP50 == pytest.approx(0.5)
    assert result.VOC07_AP50 == pytest.approx(0.5)


def test_false_alarm_below_the_true_one_costs_nothing():
    result = measure([found((0, FAR, 0.1), (0, BOX, 0.8))], [sample((0, BOX, False))])
    assert (result.AP50, result.VOC07_AP50) == (pytest.approx(1), 1)


def test_half_found():
    # recall 1/2 at precision 1: 51 of 101 points for COCO, 6 of 11 for VOC 2007
    result = measure([found((0, BOX, 0.9))], [sample((0, BOX, False), (0, FAR, False))])
    assert result.AP50 == pytest.approx(51 / 101)
    assert result.VOC07_AP50 == pytest.approx(6 / 11)


def test_iou_thresholds():
    # 100 x 100 against 100 x 80 within it: IoU 0.8, found at 0.50 ... 0.80, seven of ten
    result = measure([found((0, (10, 10, 110, 90), 0.9))], [sample((0, BOX, False))])
    assert (result.AP, result.AP50, result.AP75) == pytest.approx((0.7, 1, 1))


def grid(count):
    """Boxes of 30 x 30 pixels side by side, 12 in a row."""
    corners = [(40 * (n % 12), 40 * (n // 12)) for n in range(count)]
    return [(x, y, x + 30, y + 30) for x, y in corners]


@pytest.mark.parametrize(
    ("count", "AP50"),
    [(51, 1.0), (80, 1.0), (100, 1.0), (101, 1.0 * 100 / 101), (110, 91 / 101)],
)
def test_a_hundred_detections_of_a_class_in_a_picture_count(count, AP50):
    """Of 110 objects 100 can be found, recall 0.909: 91 of 101 points. VOC 2007 counts them all."""
    boxes, scores = grid(count), np.linspace(0.9, 0.1, count)
    truth = sample(*((0, box, False) for box in boxes), size=500)
    result = measure([found(*((0, *pair) for pair in zip(boxes, scores, strict=True)))], [truth])
    assert result.AP50 == pytest.approx(AP50) and result.AP == pytest.approx(AP50)
    assert result.VOC07_AP50 == 1


@pytest.mark.parametrize("alarms", [49, 50, 99])
def test_the_last_of_many_detections_counts(alarms):
    """False alarms above a true detection: precision 1 of so many and one more."""
    boxes = grid(alarms + 1)
    scores = np.linspace(0.9, 0.1, alarms + 1)
    truth = sample((0, boxes[-1], False), size=500)
    result = measure([found(*((0, *pair) for pair in zip(boxes, scores, strict=True)))], [truth])
    assert [result.AP50, result.VOC07_AP50] == pytest.approx([1 / (alarms + 1)] * 2)


def test_detections_of_each_class_are_counted_apart():
    boxes = grid(60)
    objects = [(label, box) for label in (0, 1) for box in boxes]
    truth = sample(*((label, box, False) for label, box in objects), size=500)
    result = measure([found(*((label, box, 0.5) for label, box in objects))], [truth])
    assert result.AP50 == pytest.approx(1) and result.per_class["dog"] == pytest.approx(1)


@pytest.mark.parametrize("scores", [(0.9, 0.8), (0.8, 0.9)])
def test_difficult_found_or_missed_changes_nothing(scores):
    truth = sample((0, BOX, False), (0, FAR, True))
    with_it = measure([found((0, BOX, scores[0]), (0, FAR, scores[1]))], [truth])
    without = measure([found((0, BOX, scores[0]))], [truth])
    assert with_it.AP == without.AP == pytest.approx(1)
    assert with_it.VOC07_AP50 == without.VOC07_AP50 == 1


def test_second_detection_of_a_difficult_object():
    # COCO: a difficult box is no crowd and takes one detection, the other is a false alarm above
    # the true one. VOC 2007: both are left out.
    truth = sample((0, BOX, False), (0, FAR, True))
    result = measure([found((0, FAR, 0.9), (0, FAR, 0.8), (0, BOX, 0.7))], [truth])
    assert result.AP50 == pytest.approx(0.5)
    assert result.VOC07_AP50 == 1


def test_difficult_overlap_is_the_ordinary_iou_not_the_crowd_one():
    # a small box inside a large difficult one: crowd IoU would be 1 and hide this false alarm
    truth = sample((0, BOX, False), (0, (150, 150, 390, 390), True))
    result = measure([found((0, (200, 200, 240, 240), 0.9), (0, BOX, 0.8))], [truth])
    assert result.AP50 == pytest.approx(0.5)
    assert result.VOC07_AP50 == pytest.approx(0.5)


def test_an_ordinary_object_is_matched_before_a_difficult_one():
    # IoU 0.8 with the ordinary object, 1 with the difficult one. COCO prefers ordinary objects
    # where both overlap enough; VOC 2007 takes the best overlap, so the object stays missed.
    truth = sample((0, BOX, False), (0, (10, 10, 110, 90), True))
    result = measure([found((0, (10, 10, 110, 90), 0.9))], [truth])
    assert result.AP50 == pytest.approx(1)
    assert result.VOC07_AP50 == 0


def test_only_difficult_objects_of_a_class_leave_it_out():
    truth = sample((0, BOX, False), (1, FAR, True))
    result = measure([found((0, BOX, 0.9), (1, BOX, 0.9))], [truth])
    assert result.AP == pytest.approx(1) and np.isnan(result.per_class["dog"])


def test_second_detection_of_an_object_is_a_false_alarm():
    truth = sample((0, BOX, False), (0, FAR, False))
    result = measure([found((0, BOX, 0.9), (0, BOX, 0.8), (0, FAR, 0.7))], [truth])
    # precision 1 up to recall 1/2, then 2/3
    assert result.AP50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.VOC07_AP50 == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_voc07_looks_at_the_best_overlap_only():
    # the second detection overlaps the first object by 0.8 and the free second one by 0.6
    first, second = (0, 0, 100, 100), (0, 40, 100, 140)
    between = (0, 20, 100, 100)
    truth = sample((0, first, False), (0, second, False))
    result = measure([found((0, first, 0.9), (0, between, 0.8))], [truth])
    assert result.VOC07_AP50 == pytest.approx(6 / 11)


def test_voc07_overlap_counts_inclusive_pixels():
    # pixels 1..10 against 1..5 of ten rows: 50 of 100 pixels, exactly the threshold. With widths
    # xmax - xmin it would be 4 / 9.
    truth = sample((0, (0, 0, 10, 10), False))
    assert measure([found((0, (0, 0, 5, 10), 0.9))], [truth]).VOC07_AP50 == 1
    assert measure([found((0, (0, 0, 4.9, 10), 0.9))], [truth]).VOC07_AP50 == 0


def test_nothing_detected():
    result = measure([found(), found()], [sample((0, BOX, False)), sample()])
    assert result.AP == result.AP50 == result.VOC07_AP50 == 0


def test_nothing_annotated():
    result = measure([found((0, BOX, 0.9))], [sample()])
    assert np.isnan(result.AP) and np.isnan(result.VOC07_AP50)


def test_picture_without_boxes_brings_false_alarms():
    result = measure(
        [found((0, BOX, 0.5)), found((0, BOX, 0.9))], [sample((0, BOX, False)), sample()]
    )
    assert result.AP50 == pytest.approx(0.5)


def test_mean_over_the_annotated_classes():
    truth = sample((0, BOX, False), (1, FAR, False))
    result = measure([found((0, BOX, 0.9), (2, FAR, 0.9))], [truth])
    assert result.AP == pytest.approx(0.5) and result.VOC07_AP50 == pytest.approx(0.5)


def test_sizes():
    small, medium = (0, 0, 31, 31), (0, 0, 95, 95)
    truth = [sample((0, small, False)), sample((0, medium, False)), sample((0, BOX, False))]
    result = measure([found((0, small, 0.9)), found(), found((0, BOX, 0.9))], truth)
    assert (result.AP_small, result.AP_medium, result.AP_large) == pytest.approx((1, 0, 1))


def test_size_limits_belong_to_both_sides():
    result = measure([found((0, (0, 0, 32, 32), 0.9))], [sample((0, (0, 0, 32, 32), False))])
    assert (result.AP_small, result.AP_medium) == pytest.approx((1, 1))
    assert np.isnan(result.AP_large)


def test_at_most_a_hundred_boxes_a_picture():
    wrong = [(0, (x, 300, x + 40, 340), 0.9) for x in range(100)]
    result = measure([found(*wrong, (0, BOX, 0.1))], [sample((0, BOX, False))])
    assert result.AP50 == 0


def test_wrong_number_of_pictures():
    with pytest.raises(ValueError, match="1 detections for 2"):
        measure([found()], [sample(), sample()])


def random_case(pictures=30):
    rng = np.random.default_rng(0)

    def box():
        low = rng.uniform(0, 300, 2)
        return (*low, *(low + rng.uniform(10, 160, 2)))

    samples, detections = [], []
    for _ in range(pictures):
        objects = [(int(rng.integers(3)), box(), False) for _ in range(rng.integers(0, 6))]
        samples.append(sample(*objects))
        near = [
            (label, tuple(np.array(b) + rng.normal(0, 6, 4)), rng.uniform())
            for label, b, _ in objects
        ]
        rest = [(int(rng.integers(3)), box(), rng.uniform()) for _ in range(5)]
        detections.append(found(*near, *rest))
    return detections, samples


def plain_coco(detections, samples):
    """pycocotools as its documentation shows it."""
    truth = COCO()
    annotations = [
        {
            "image_id": i,
            "category_id": int(label) + 1,
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "area": float((b[2] - b[0]) * (b[3] - b[1])),
            "iscrowd": 0,
        }
        for i, s in enumerate(samples)
        for b, label in zip(s.boxes, s.labels, strict=True)
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    results = [
        {
            "image_id": i,
            "category_id": int(label) + 1,
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": float(score),
        }
        for i, d in enumerate(detections)
        for b, label, score in zip(d.boxes, d.labels, d.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(samples))],
            "categories": [{"id": c + 1} for c in range(3)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_equal_to_plain_pycocotools_without_difficult_objects():
    case = random_case()
    ours, theirs = measure(*case), plain_coco(*case)
    values = [ours.AP, ours.AP50, ours.AP75, ours.AP_small, ours.AP_medium, ours.AP_large]
    assert values == pytest.approx(list(theirs[:6]), abs=1e-9)
    assert 0.1 < ours.AP < 0.9


# ---------------------------------------------------------------------- crowds and areas


def with_crowds(sample, crowd, areas=None):
    areas = None if areas is None else np.array(areas, np.float64)
    return replace(sample, crowd=np.array(crowd, bool), areas=areas)


def test_what_lies_in_a_crowd_is_no_false_alarm():
    """However many they are, and though their IoU with its box is small: all lie in it."""
    truth = sample((0, BOX, False), (0, (150, 150, 390, 390), False))
    inside = [(0, (200 + 20 * n, 200, 240 + 20 * n, 240), 0.9) for n in range(4)]
    detections = [found(*inside, (0, BOX, 0.8))]
    crowded = measure(detections, [with_crowds(truth, [False, True])])
    assert (crowded.AP50, crowded.VOC07_AP50) == (pytest.approx(1), 1)
    plain = measure(detections, [truth])
    assert plain.AP50 < 0.5 and plain.VOC07_AP50 < 0.5
    difficult = measure(detections, [sample((0, BOX, False), (0, (150, 150, 390, 390), True))])
    assert difficult.AP50 == pytest.approx(0.2)  # whose overlap is the ordinary one


def test_half_in_a_crowd_is_in_it_at_half():
    """Its part in the crowd takes the place of IoU: 0.6 of it is enough at 0.50 to 0.60."""
    truth = with_crowds(sample((0, BOX, False), (0, (200, 200, 300, 300), False)), [False, True])
    result = measure([found((0, (260, 200, 360, 240), 0.9), (0, BOX, 0.8))], [truth])
    assert result.AP50 == pytest.approx(0.5) and result.VOC07_AP50 == pytest.approx(0.5)
    result = measure([found((0, (240, 200, 340, 240), 0.9), (0, BOX, 0.8))], [truth])
    assert result.AP50 == pytest.approx(1) and result.VOC07_AP50 == 1
    assert result.AP == pytest.approx((3 * 1 + 7 * 0.5) / 10)


def test_a_missed_crowd_is_not_missed():
    truth = with_crowds(sample((0, BOX, False), (0, FAR, False)), [False, True])
    result = measure([found((0, BOX, 0.9))], [truth])
    assert (result.AP, result.VOC07_AP50) == (pytest.approx(1), 1)
    alone = measure([found((0, BOX, 0.9))], [with_crowds(sample((0, FAR, False)), [True])])
    assert np.isnan(alone.AP) and np.isnan(alone.VOC07_AP50)


def test_the_area_that_is_annotated_says_how_large_an_object_is():
    truth = sample((0, BOX, False))
    result = measure([found((0, BOX, 0.9))], [with_crowds(truth, [False], [900])])
    assert result.AP_small == pytest.approx(1) and np.isnan(result.AP_large)


def test_limits_of_areas():
    truth = [sample((0, (0, 0, 31, 31), False)), sample((0, BOX, False))]
    detections = [found((0, (0, 0, 31, 31), 0.9)), found()]
    result = average_precision(detections, truth, NAMES, (100.0, 20_000.0))
    assert np.isnan(result.AP_small) and np.isnan(result.AP_large)
    assert result.AP_medium == result.AP == pytest.approx(51 / 101)


def test_equal_to_plain_pycocotools_on_a_file_with_crowds(tmp_path):
    """Boxes, areas and crowds as the file has them, measured as COCO's documentation does."""
    rng = np.random.default_rng(3)
    detections, samples = random_case()
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 10 + i, "name": name} for i, name in enumerate(NAMES)]
    results = []
    for number, (one, truth) in enumerate(zip(detections, samples, strict=True)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((400, 400, 3), np.uint8))
        image = {"id": number + 5, "file_name": f"{number}.png", "width": 400, "height": 400}
        content["images"].append(image)

        def row(box, label, image=image["id"]):
            x1, y1, x2, y2 = map(float, box)
            box = [x1, y1, x2 - x1, y2 - y1]
            return {"image_id": image, "category_id": 10 + int(label), "bbox": box}

        for box, label in zip(truth.boxes, truth.labels, strict=True):
            crowd = int(rng.random() < 0.3)
            area = float(np.prod(box[2:] - box[:2]) * rng.uniform(0.4, 1))
            more = {"id": len(content["annotations"]) + 1, "iscrowd": crowd, "area": area}
            content["annotations"].append(row(box, label) | more)
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True):
            results.append(row(box, label) | {"score": float(score)})
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        plain = COCO(str(path))
        evaluation = COCOeval(plain, plain.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    read = read_boxes([path], "val")
    assert sum(int(s.crowd.sum()) for s in read) > 10
    ours = measure(detections, read)
    values = [ours.AP, ours.AP50, ours.AP75, ours.AP_small, ours.AP_medium, ours.AP_large]
    assert values == pytest.approx(list(evaluation.stats[:6]), abs=1e-9)
    assert 0.1 < ours.AP < 0.9 and not np.isnan(values).any()


def test_intervals_of_resampled_pictures():
    """Of 40 pictures half are found: AP of a draw is the share of found ones in it, to a step."""
    samples = [sample((0, BOX, False)) for _ in range(40)]
    detections = [found((0, BOX, 0.9)) if n % 2 else found() for n in range(40)]
    whole = average_precision(detections, samples, NAMES, bootstrap=400)
    assert whole.AP == pytest.approx(0.5, abs=0.01)
    generator, drawn = np.random.default_rng(0), []
    for _ in range(400):
        share = (generator.integers(0, 40, 40) % 2).mean()
        recalls = np.linspace(0, 1, 101)
        drawn.append((recalls <= share).mean())  # precision 1 up to that recall
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert whole.intervals["AP"] == pytest.approx((low, high), abs=1e-6)
    assert whole.intervals["AP50"] == whole.intervals["AP"] and 0.3 < low < 0.4 < 0.6 < high < 0.7
    assert average_precision(detections, samples, NAMES).intervals == {}


def test_the_interval_of_what_is_always_found_is_a_point():
    samples = [sample((0, BOX, False), (1, FAR, False)) for _ in range(5)]
    detections = [found((0, BOX, 0.9), (1, FAR, 0.8)) for _ in range(5)]
    assert average_precision(detections, samples, NAMES, bootstrap=20).intervals == {
        "AP": (1.0, 1.0), "AP50": (1.0, 1.0)
    }  # fmt: skip


def test_the_interval_contains_the_value():
    detections, samples = random_case()
    whole = average_precision(detections, samples, NAMES, bootstrap=200)
    for name, (low, high) in whole.intervals.items():
        assert low < getattr(whole, name) < high


def test_a_draw_is_measured_as_coco_measures_it():
    """Pictures drawn twice are two pictures, in an evaluation of their own."""
    detections, samples = random_case()
    whole = average_precision(detections, samples, NAMES, bootstrap=3)
    generator, values = np.random.default_rng(0), []
    for _ in range(3):
        drawn = generator.integers(0, len(samples), len(samples))
        one = average_precision([detections[n] for n in drawn], [samples[n] for n in drawn], NAMES)
        values.append((one.AP, one.AP50))
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    for n, name in enumerate(("AP", "AP50")):
        assert whole.intervals[name] == pytest.approx((low[n], high[n]), abs=1e-9)
