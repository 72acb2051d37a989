"""The detections of one picture, and the VOC class names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spikedet.data.formats.voc import VOC_CLASSES
from spikedet.errors import UsageError

__all__ = ["COCO_NAMES", "VOC_CLASSES", "Detections"]
COCO_NAMES = {  # of VOC's classes, where COCO calls them otherwise
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
        boxes: [N, 4] float32, x1 y1 x2 y2 in pixels of the original picture, 0-based: the left
            edge of the first pixel is 0, the right edge of the last one is the picture's width.
        scores: [N] float32 in 0..1.
        labels: [N] int64, indices into `names`.
        names: Class names.
        T: Time steps, None for a float or quantised network.
        picture: [H, W, 3] uint8 BGR, the original picture as a viewer shows it, or None.
        file: Where the picture came from, or None.
        spike_rate: Spikes per neuron and step, where they were counted (`Predictor.steps`).
        ids: [N] int64, number of each object across the frames of a video, 0 while it is not
            known (`spikedet.detection.track`); None without tracking.
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
        """Those of some classes."""
        return self.some(np.array([name in classes for name in self.classes], bool))

    def some(self, kept: np.ndarray) -> Detections:
        """Some of them.

        Args:
            kept: [N] bool, or their numbers in the order that is wanted.
        """
        ids = None if self.ids is None else self.ids[kept]
        return replace(
            self,
            boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], ids=ids,
        )  # fmt: skip

    def one_class_each(self, iou: float = 0.6) -> Detections:
        """One box for each object: of boxes that overlap, whatever their classes, the best.

        Non-maximum suppression of a detector looks at one class at a time, so that one animal may
        be a cat and a dog. For people to look at; measures want all boxes.

        Args:
            iou: Intersection over union above which the box with the lower score is left out.

        Raises:
            UsageError: `iou` outside 0..1.
        """
        if not 0 <= iou <= 1:
            raise UsageError(f"iou is {iou}; expected a number between 0 and 1")
        kept: list[int] = []
        for number in np.argsort(-self.scores, kind="stable"):
            if not kept or overlaps(self.boxes[number], self.boxes[kept]).max() <= iou:
                kept.append(int(number))
        return self.some(np.array(kept, int))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them.

        Returns:
            `file`, `T`, `width` and `height` of the picture (None without one), and `objects`, a
            list of `class`, `score` and `box` (x1 y1 x2 y2 in pixels of the original picture), with
            tracking also `id` (None while it is not known).
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
        """Results as the COCO evaluation reads them.

        Args:
            image_id: Of the picture.
            categories: COCO's id of each class of `names`; their number in `names` when None.

        Returns:
            One entry an object, with `image_id`, `category_id`, `bbox` (x, y, width, height in
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
        """Labels as YOLO has them: a line an object, `class x y width height`.

        Centre and size are parts of the picture's width and height.

        Args:
            scores: Put the score behind each line.

        Raises:
            UsageError: The detections do not know their picture.
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
        """The number that the object at a place has in a film, None where it is not known."""
        return None if self.ids is None else int(self.ids[index]) or None

    def to_supervision(self) -> Any:
        """As `supervision.Detections` of the package `supervision`; class names in its `data`.

        Raises:
            UsageError: The package is not installed.
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
        """Height and width of the picture in pixels, where it is known."""
        return (None, None) if self.picture is None else self.picture.shape[:2]

    def plot(self) -> np.ndarray:
        """The picture with boxes, class names and scores drawn on it, [H, W, 3] uint8 BGR."""
        from spikedet.detection.draw import draw

        return draw(self)


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union [N] of a box [4] and others [N, 4], x1 y1 x2 y2 each."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(1)
    whole = areas + np.clip(box[2:] - box[:2], 0, None).prod() - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
