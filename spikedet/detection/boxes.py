"""The detections of one picture, and the VOC class names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from spikedet.data.formats.voc import VOC_CLASSES

__all__ = ["VOC_CLASSES", "Detections"]


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
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    T: int | None = None
    picture: np.ndarray | None = field(default=None, repr=False)
    file: str | None = None
    spike_rate: float | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def classes(self) -> list[str]:
        """Class name of each object."""
        return [self.names[label] for label in self.labels]

    def only(self, classes: Collection[str]) -> Detections:
        """Those of some classes."""
        kept = np.array([name in classes for name in self.classes], bool)
        return replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept]
        )

    def plot(self) -> np.ndarray:
        """The picture with boxes, class names and scores drawn on it, [H, W, 3] uint8 BGR."""
        from spikedet.detection.draw import draw

        return draw(self)
