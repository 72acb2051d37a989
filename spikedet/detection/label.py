"""Label pictures with trained detectors.

A network can then be trained on these boxes. The detectors are ours, or those that ultralytics
loads. Each detector gives one view of a picture, and a second view of the mirrored picture. The
boxes of all views are fused. A box in all views keeps its score. A box in only one of n views gets
1/n of its score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikedet.detection.boxes import best_of_any_class, overlaps
from spikedet.errors import DataError, TrainingError, UsageError
from spikedet.files import read_lines, write_atomic

LEAST_OVERLAP = 0.5  # smallest IoU of two boxes of a class that are the same object


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


def fuse(views: Sequence[Sequence[Object]], overlap: float = LEAST_OVERLAP) -> list[Object]:
    """Fuse the objects of several views of one picture.

    Objects of the same class in different views, whose boxes overlap, become one object. Its box is
    the mean of their boxes, weighted by the scores. Its score is the mean over all views. Views
    without the object count as 0.

    Args:
        views: Objects of each view, in pixels of the same picture.
        overlap: Smallest IoU with the object that has the highest score.

    Returns:
        Objects, highest score first.
    """
    ordered = sorted(
        ((candidate, view) for view, objects in enumerate(views) for candidate in objects),
        key=lambda pair: -pair[0].score,
    )
    groups: list[dict[int, Object]] = []  # of each the surest comes first
    for candidate, view in ordered:
        possible = [
            group
            for group in groups
            if view not in group and next(iter(group.values())).name == candidate.name
        ]
        surest = [next(iter(group.values())).box for group in possible]
        parts = overlaps(np.array(candidate.box), np.array(surest).reshape(-1, 4))
        best = max(range(len(parts)), key=lambda n: (parts[n], n), default=None)
        if best is None or parts[best] < overlap:
            groups.append({view: candidate})
        else:
            possible[best][view] = candidate
    return sorted((_mean(list(g.values()), len(views)) for g in groups), key=lambda o: -o.score)


def _mean(objects: list[Object], views: int) -> Object:
    """Fuse objects that are the same to one object."""
    if len(objects) == 1 or not any(each.score for each in objects):
        return Object(objects[0].name, objects[0].score / views, objects[0].box)
    scores = np.array([each.score for each in objects])
    box = np.average([each.box for each in objects], axis=0, weights=scores)
    return Object(objects[0].name, float(scores.sum()) / views, tuple(box.tolist()))


def remove_duplicates(objects: Iterable[Object], overlap: float) -> list[Object]:
    """Keep only the object with the highest score where objects of any classes overlap more."""
    objects = list(objects)
    boxes = np.array([each.box for each in objects], np.float64).reshape(-1, 4)
    scores = np.array([each.score for each in objects])
    return [objects[number] for number in best_of_any_class(boxes, scores, overlap)]


def rename_classes(
    objects: Iterable[Object], names: Mapping[str, str], classes: Sequence[str] | None
) -> list[Object]:
    """Rename the classes of objects, and keep only some classes.

    Args:
        objects: Objects of any classes.
        names: New names of some classes.
        classes: New names of the classes to keep. None: all.
    """
    new = (Object(names.get(o.name, o.name), o.score, o.box) for o in objects)
    return [each for each in new if classes is None or each.name in classes]


def mirrored(teacher: Teacher) -> Teacher:
    """A detector for the mirrored picture. Its boxes are in pixels of the original picture."""

    def see(picture: np.ndarray) -> list[Object]:
        width = picture.shape[1]
        objects = teacher(np.ascontiguousarray(picture[:, ::-1]))
        return [
            Object(o.name, o.score, (width - o.box[2], o.box[1], width - o.box[0], o.box[3]))
            for o in objects
        ]

    return see


class Foreign:
    """A detector that ultralytics loads: ONNX, OpenVINO, TFLite and so on, or .pt (read safely).

    Args:
        path: File or folder.
        conf: Confidence threshold.
        iou: IoU threshold of non-maximum suppression, if the detector needs it.
        imgsz: Input side in pixels. None: that of the detector.
        device: `cpu` or `cuda:0`.

    Raises:
        WeightsError: The detector is missing, damaged, or of another task, or needs a package that
            is not installed.
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
    """A detector of this package, of any stage. The arguments are those of `Foreign`."""

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
    """Load a detector of this package (.safetensors) or of ultralytics; see `Foreign`."""
    return (Own if path.suffix == ".safetensors" else Foreign)(path, *options)


class Journal:
    """The results so far, one line for each picture, so that an interrupted run can continue.

    Args:
        path: The file. It is made with the first picture.
        settings: Settings that the boxes depend on. A run can only continue with the same settings.
        resume: Continue with an existing file.

    Attributes:
        done: Results by the name of the picture.

    Raises:
        TrainingError: The file exists but `resume` is False, or its settings differ.
        DataError: The file is damaged.
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
        write_atomic(path, whole.encode())

    def forget_changed(self, sizes: Mapping[str, int]) -> None:
        """Forget the results of pictures that are not there, or whose files have other sizes now.

        Args:
            sizes: Bytes of each picture file, by the name of the picture.
        """
        known = {name: entry for name, entry in self.done.items() if name in sizes}
        self.done = {n: e for n, e in known.items() if e.get("bytes", sizes[n]) == sizes[n]}

    def add(
        self, file_name: str, width: int, height: int, objects: Sequence[Object], size: int
    ) -> None:
        """Store the results of one picture, whose file has `size` bytes."""
        rows = [[o.name, round(o.score, 4), [round(v, 2) for v in o.box]] for o in objects]
        entry = {"file_name": file_name, "width": width, "height": height, "bytes": size}
        entry["objects"] = rows
        self.done[file_name] = entry
        new = not self.path.exists() or not self.path.stat().st_size
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for line in [self.settings, entry] if new else [entry]:
                file.write(json.dumps(line) + "\n")


def coco(
    entries: Sequence[Mapping[str, Any]], names: Sequence[str], info: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert the results to a COCO data set, with a `score` for each annotation.

    Args:
        entries: Entries of `Journal.done`, in the order of the pictures.
        names: Class names; the first has category id 1.
        info: Content of the field `info`.
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
