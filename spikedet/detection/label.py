"""Boxes for pictures that nobody annotated: what trained detectors see there.

Detectors of others, as ultralytics loads them, teach a network that is trained on their boxes. What
several of them see, and what they see in the mirrored picture, is fused: a box that all see keeps
its score, one that a single one of n sees has an nth of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikedet.errors import DataError, TrainingError, UsageError
from spikedet.files import read_lines

LEAST_OVERLAP = 0.5  # of two boxes of a class that are of one object


@dataclass(frozen=True)
class Object:
    """One object of a picture.

    Attributes:
        name: Class name.
        score: 0..1.
        box: x1 y1 x2 y2, pixels of the picture, 0-based edges.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]


Teacher = Callable[[np.ndarray], list[Object]]  # of a picture [H, W, 3] uint8 BGR


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes x1 y1 x2 y2; 0 where one has no area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return width * height / (area - width * height)


def fuse(views: Sequence[Sequence[Object]], overlap: float = LEAST_OVERLAP) -> list[Object]:
    """What several views of one picture show together.

    Objects of one class, each of another view, whose boxes overlap are one object. Its box is their
    mean weighted by score, its score the mean over all views, 0 for those that do not show it.

    Args:
        views: Objects of each view, in pixels of the same picture.
        overlap: Least IoU with the surest of them.

    Returns:
        Objects, highest score first.
    """
    ordered = sorted(
        ((candidate, view) for view, objects in enumerate(views) for candidate in objects),
        key=lambda pair: -pair[0].score,
    )
    groups: list[dict[int, Object]] = []  # of each the surest comes first
    for candidate, view in ordered:
        best, place = overlap, None
        for group in groups:
            surest = next(iter(group.values()))
            if surest.name == candidate.name and view not in group:
                part = iou(surest.box, candidate.box)
                if part >= best:
                    best, place = part, group
        if place is None:
            groups.append({view: candidate})
        else:
            place[view] = candidate
    return sorted((_mean(list(g.values()), len(views)) for g in groups), key=lambda o: -o.score)


def _mean(objects: list[Object], views: int) -> Object:
    """One object of those that are the same."""
    if len(objects) == 1 or not any(each.score for each in objects):
        return Object(objects[0].name, objects[0].score / views, objects[0].box)
    scores = np.array([each.score for each in objects])
    box = np.average([each.box for each in objects], axis=0, weights=scores)
    return Object(objects[0].name, float(scores.sum()) / views, tuple(box.tolist()))


def without_doubles(objects: Iterable[Object], overlap: float) -> list[Object]:
    """The surest of objects that overlap more than that, whatever their classes."""
    kept: list[Object] = []
    for candidate in sorted(objects, key=lambda o: -o.score):
        if all(iou(candidate.box, other.box) <= overlap for other in kept):
            kept.append(candidate)
    return kept


def renamed(
    objects: Iterable[Object], names: Mapping[str, str], classes: Sequence[str] | None
) -> list[Object]:
    """Objects under other class names, those of some classes alone.

    Args:
        objects: Of any classes.
        names: New names of some of them.
        classes: New names that are kept; all where None.
    """
    new = (Object(names.get(o.name, o.name), o.score, o.box) for o in objects)
    return [each for each in new if classes is None or each.name in classes]


def mirrored(teacher: Teacher) -> Teacher:
    """A teacher that sees the mirrored picture; its boxes are of the picture itself."""

    def see(picture: np.ndarray) -> list[Object]:
        width = picture.shape[1]
        objects = teacher(np.ascontiguousarray(picture[:, ::-1]))
        return [
            Object(o.name, o.score, (width - o.box[2], o.box[1], width - o.box[0], o.box[3]))
            for o in objects
        ]

    return see


class Foreign:
    """A detector that ultralytics loads: ONNX, OpenVINO, TFLite and so on, or .pt, safely.

    Args:
        path: File or folder.
        conf: Least score.
        iou: IoU threshold of its non-maximum suppression, where it needs one.
        imgsz: Input side in pixels; its own where None.
        device: `cpu` or `cuda:0`.

    Raises:
        WeightsError: Missing, damaged, of another task or of a form that needs a package that is
            not installed.
    """

    def __init__(self, path: Path, conf: float, iou: float, imgsz: int | None, device: str):
        from spikedet.detection.ultra import foreign_detector

        self.detector = foreign_detector(path)
        self.names = tuple(self.detector.names.values())
        self.options = {"conf": conf, "iou": iou, "device": device, "verbose": False, "save": False}
        if imgsz:
            self.options["imgsz"] = imgsz

    def __call__(self, picture: np.ndarray) -> list[Object]:
        boxes = self.detector.predict(picture, **self.options)[0].boxes
        rows = zip(boxes.cls.tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), strict=True)
        names = self.detector.names
        return [Object(names[int(label)], score, tuple(box)) for label, score, box in rows]


class Own:
    """One of this project's detectors, of any stage. Arguments as of `Foreign`."""

    def __init__(self, path: Path, conf: float, iou: float, imgsz: int | None, device: str):
        from spikedet.detection.predict import Predictor

        self.detector = Predictor(path, device=device)
        if imgsz and imgsz != self.detector.runner.imgsz:
            own = self.detector.runner.imgsz
            raise UsageError(f"imgsz {imgsz}: {path.name} takes {own} pixels")
        self.names, self.conf, self.iou = self.detector.names, conf, iou

    def __call__(self, picture: np.ndarray) -> list[Object]:
        detections = self.detector(picture, conf=self.conf, iou=self.iou)
        assert not isinstance(detections, list)  # of one picture
        boxes = (tuple(box) for box in detections.boxes.tolist())
        return list(map(Object, detections.classes, detections.scores.tolist(), boxes))


def teacher(path: Path, *options: Any) -> Foreign | Own:
    """A detector of ours (.safetensors) or of others; arguments as of `Foreign`."""
    return (Own if path.suffix == ".safetensors" else Foreign)(path, *options)


class Journal:
    """What was found so far, a line a picture, so that a long run can go on after a kill.

    Args:
        path: The file; it is made with the first picture.
        settings: What makes the boxes what they are; a run goes on with the same alone.
        resume: Go on with what is there.

    Attributes:
        done: What was found, by the name of the picture.

    Raises:
        TrainingError: There is one and it is not to be resumed, or it has other settings.
        DataError: It is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool):
        self.path, self.settings = path, settings
        self.done: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        if not resume:
            raise TrainingError(f"{path} holds a run; add --resume, or choose another --out")
        lines = read_lines(path, "journal")
        if not path.read_bytes().endswith(b"\n"):
            lines = lines[:-1]  # the kill came while it was written
        try:
            first, *entries = map(json.loads, lines) if lines else [settings]
            self.done = {entry["file_name"]: entry for entry in entries}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: damaged; delete it to start again") from None
        if first != json.loads(json.dumps(settings)):
            differs = [key for key in {**first, **settings} if first.get(key) != settings.get(key)]
            raise TrainingError(
                f"{path}: belongs to a run with other {', '.join(sorted(differs))}; choose "
                "another --out"
            )
        whole = "".join(line + "\n" for line in lines)
        path.write_text(whole, encoding="utf-8")

    def add(self, file_name: str, width: int, height: int, objects: Sequence[Object]) -> None:
        """Note what was found in one picture."""
        rows = [[o.name, round(o.score, 4), [round(v, 2) for v in o.box]] for o in objects]
        entry = {"file_name": file_name, "width": width, "height": height, "objects": rows}
        self.done[file_name] = entry
        new = not self.path.exists() or not self.path.stat().st_size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for line in [self.settings, entry] if new else [entry]:
                file.write(json.dumps(line) + "\n")


def coco(
    entries: Sequence[Mapping[str, Any]], names: Sequence[str], info: Mapping[str, Any]
) -> dict[str, Any]:
    """What was found as a COCO data set, with a `score` an annotation.

    Args:
        entries: What `Journal.done` holds, in the order of the pictures.
        names: Class names, category 1 first.
        info: About it all.
    """
    numbers = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, 1):
        size = {key: entry[key] for key in ("file_name", "width", "height")}
        images.append({"id": number, **size})
        for name, score, (x1, y1, x2, y2) in entry["objects"]:
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[name],
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
