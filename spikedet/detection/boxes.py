"""The detections of one picture, and the VOC class names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spikedet.data.formats.voc import VOC_CLASSES
from spikedet.errors import UsageError

__all__ = ["COCO_NAMES", "VOC_CLASSES", "Detections"]
COCO_NAMES = {  # from COCO's class names to VOC's, where they differ
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "couch": "sofa",
    "tv": "tvmonitor",
}


@dataclass
class Detections:
    """Objects found in one picture, highest score first.

    Attributes:
        boxes: [N, 4] float32, x1 y1 x2 y2 in pixels of the original picture. The left edge of the
            first pixel is 0, and the right edge of the last pixel is the width of the picture.
        scores: [N] float32, 0..1.
        labels: [N] int64, indices into `names`.
        names: Class names.
        T: Time steps. None for a float or quantised network.
        picture: [H, W, 3] uint8 BGR, the original picture with its rotation tag applied, or None.
        file: File or address of the picture, or None.
        spike_rate: Spikes per neuron and time step. None if they were not counted; see
            `Predictor.steps`.
        ids: [N] int64, the same number for the same object in all frames of a video. 0 if the
            number is not known yet (see `spikedet.detection.track`). None without tracking.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    T: int | None = None
    picture: np.ndarray | None = field(default=None, repr=False)
    file: str | None = None
    spike_rate: float | None = None
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def classes(self) -> list[str]:
        """Class name of each object."""
        return [self.names[label] for label in self.labels]

    def only(self, classes: Collection[str]) -> Detections:
        """Only the objects of some classes."""
        return self.some(np.array([name in classes for name in self.classes], bool))

    def some(self, kept: np.ndarray) -> Detections:
        """Only some of the objects.

        Args:
            kept: [N] bool mask, or the indices of the objects in the wanted order.
        """
        ids = None if self.ids is None else self.ids[kept]
        return replace(
            self,
            boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], ids=ids,
        )  # fmt: skip

    def one_class_each(self, iou: float = 0.6) -> Detections:
        """Keep only the box with the highest score where boxes of any classes overlap.

        The non-maximum suppression of a detector runs for each class separately. So one animal may
        get two boxes, as a cat and as a dog. Use this method for pictures that people look at. Do
        not use it before you measure AP, which needs all boxes.

        Args:
            iou: If two boxes overlap with a larger IoU, the box with the lower score is removed.

        Raises:
            UsageError: `iou` is outside 0..1.
        """
        if not 0 <= iou <= 1:
            raise UsageError(f"iou is {iou}; expected a number between 0 and 1")
        return self.some(np.array(best_of_any_class(self.boxes, self.scores, iou), int))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values that JSON can store.

        Returns:
            A dict with `file`, `T`, `width` and `height` of the picture (None if there is no
            picture), and `objects`. Each object is a dict with `class`, `score` and `box` (x1 y1 x2
            y2 in pixels of the original picture). With tracking it also has `id`, which is None if
            the number is not known yet.
        """
        height, width = self._size()
        objects = [
            {"class": name, "score": float(score), "box": [float(x) for x in box]}
            for name, score, box in zip(self.classes, self.scores, self.boxes, strict=True)
        ]
        for entry, number in zip(objects, [] if self.ids is None else self.ids, strict=False):
            entry["id"] = int(number) or None
        return {
            "file": self.file, "T": self.T, "width": width, "height": height, "objects": objects
        }  # fmt: skip

    def to_coco(
        self, image_id: int | str = 0, categories: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Convert to the result format of the COCO evaluation.

        Args:
            image_id: Id of the picture.
            categories: COCO category id of each class of `names`. None: the index in `names`.

        Returns:
            One dict for each object, with `image_id`, `category_id`, `bbox` (x, y, width, height in
            pixels of the original picture) and `score`.
        """
        results = []
        for (x1, y1, x2, y2), score, label in zip(
            self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
        ):
            category = label if categories is None else categories[label]
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append(
                {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            )
        return results

    def to_yolo(self, scores: bool = False) -> str:
        """Convert to YOLO labels: one line for each object, `class x y width height`.

        Centre and size are fractions of the width and height of the picture.

        Args:
            scores: Add the score at the end of each line.

        Raises:
            UsageError: The detections have no picture, so its size is not known.
        """
        height, width = self._size()
        if not height or not width:
            raise UsageError(
                "YOLO labels need the size of the picture, but these detections have no picture"
            )
        lines = []
        for (x1, y1, x2, y2), score, label in zip(
            self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
        ):
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
            values += [(x2 - x1) / width, (y2 - y1) / height]
            values += [score] if scores else []
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]))
        return "".join(line + "\n" for line in lines)

    def number_of(self, index: int) -> int | None:
        """The tracking number of the object with this index. None if it is not known."""
        return None if self.ids is None else int(self.ids[index]) or None

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`. The class names are in its `data`.

        Raises:
            UsageError: The package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UsageError(
                "supervision is not installed; pip install supervision, or use to_dict()"
            ) from None
        return supervision.Detections(
            xyxy=self.boxes.reshape(-1, 4).astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            tracker_id=None if self.ids is None else self.ids.astype(int),
            data={"class_name": np.array(self.classes, dtype=str)},
        )

    def _size(self) -> tuple[int | None, int | None]:
        """Height and width of the picture in pixels, or None for both without a picture."""
        return (None, None) if self.picture is None else self.picture.shape[:2]

    def plot(self) -> np.ndarray:
        """Draw boxes, class names and scores on the picture; returns [H, W, 3] uint8 BGR."""
        from spikedet.detection.draw import draw

        return draw(self)


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, [N], of one box [4] and N other boxes [N, 4] (x1 y1 x2 y2)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(1)
    whole = areas + np.clip(box[2:] - box[:2], 0, None).prod() - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def best_of_any_class(boxes: np.ndarray, scores: np.ndarray, iou: float) -> list[int]:
    """Find the boxes to keep if the one with the highest score is kept where boxes overlap.

    Args:
        boxes: [N, 4], of objects of any classes.
        scores: [N].
        iou: Boxes with a larger IoU overlap.

    Returns:
        Indices of the boxes, highest score first.
    """
    kept: list[int] = []
    for number in np.argsort(-scores, kind="stable"):
        if not kept or overlaps(boxes[number], boxes[kept]).max() <= iou:
            kept.append(int(number))
    return kept


def shares(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share, [N, M], of the area of each box [N, 4] that lies in each of the others [M, 4]."""
    boxes, others = boxes.reshape(-1, 4), others.reshape(-1, 4)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area = np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1e-9)
    return np.prod(np.clip(high - low, 0, None), axis=2) / area[:, None]
