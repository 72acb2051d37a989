"""Samples as a data set of ultralytics, which loads, caches and augments the pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spikedet.detection.data import Sample
from spikedet.detection.ultra import YOLODataset
from spikedet.errors import PictureError
from spikedet.pictures import is_jpeg, read_picture


class SampleDataset(YOLODataset):
    """Ultralytics' data set with our samples. It reads no label files and writes nothing."""

    def get_img_files(self, img_path: list[Sample]) -> list[str]:
        self.samples = img_path
        return [str(sample.path) for sample in img_path]

    def load_image(self, i: int, *args: Any, **options: Any):
        """Load a picture like ultralytics, but show the same picture as `read_picture`.

        OpenCV reads only JPEG files. It differs from `read_picture` in transparency and 16-bit
        values of other files, and ignores some rotation tags. Errors of pictures are reported.
        """
        self.npy_files[i] = Path(self.im_files[i]) / "none"  # a .npy beside it is none of ours
        shown = self.samples[i].height, self.samples[i].width
        if self.ims[i] is None and not is_jpeg(self.im_files[i]):
            return self._by_pillow(i, shown)
        try:
            loaded = super().load_image(i, *args, **options)
        except FileNotFoundError:  # which it raises of damaged ones, too
            loaded = None
        if loaded is not None and tuple(loaded[1]) == shown:
            return loaded
        return self._by_pillow(i, shown)

    def _by_pillow(self, i: int, shown: tuple[int, int]):
        """Read a picture with Pillow; returns the resized picture, its old and its new size."""
        picture = read_picture(self.im_files[i])
        if picture.shape[:2] != shown:
            raise PictureError(f"{self.im_files[i]}: this file has changed since it was first read")
        ratio = self.imgsz / max(shown)
        if ratio != 1:
            height, width = (min(math.ceil(side * ratio), self.imgsz) for side in shown)
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        loaded = picture, shown, picture.shape[:2]
        if self.augment and self.cache != "ram":  # as ultralytics, whose mosaics are made of these
            self.ims[i], self.im_hw0[i], self.im_hw[i] = loaded
            if i not in self.buffer:
                self.buffer.append(i)
            if 1 < len(self.buffer) >= self.max_buffer_length:
                old = self.buffer.pop(0)
                self.ims[old] = self.im_hw0[old] = self.im_hw[old] = None
        return loaded

    def forget_recent(self) -> None:
        """Clear the buffer of recent pictures for mosaics, if not all pictures are in memory."""
        if self.cache != "ram":
            for i in self.buffer:
                self.ims[i] = self.im_hw0[i] = self.im_hw[i] = None
            self.buffer.clear()

    def get_labels(self) -> list[dict[str, Any]]:
        labels: list[dict[str, Any]] = []
        for sample in self.samples:
            sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
            kept = ~sample.crowd & (sides > 0).all(1)
            size = np.array([sample.width, sample.height] * 2, np.float32)
            box = sample.boxes[kept] / size
            centre_size = np.concatenate(
                [(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1
            )
            labels.append(
                {
                    "im_file": str(sample.path),
                    "shape": (sample.height, sample.width),
                    "cls": sample.labels[kept, None].astype(np.float32),
                    "bboxes": centre_size.astype(np.float32),
                    "segments": [],
                    "keypoints": None,
                    "normalized": True,
                    "bbox_format": "xywh",
                }
            )
        return labels
