"""Detect objects in pictures: the Python interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from spikedet.counts import expect_counts
from spikedet.detection.boxes import Detections
from spikedet.detection.letterbox import Letterbox, letterbox
from spikedet.detection.nms import select
from spikedet.detection.task import DETECTION
from spikedet.errors import UsageError
from spikedet.pictures import Source, as_picture, as_pictures
from spikedet.precision import channels_last
from spikedet.predictor import BasePredictor
from spikedet.runtime.early_exit import EarlyExit


class Predictor(BasePredictor):
    """A detector with its weights. `spikedet.load` returns it."""

    task = DETECTION

    def __call__(
        self,
        pictures: Source | Sequence[Source],
        T: int | None = None,
        *,
        conf: float = 0.25,
        iou: float = 0.6,
        batch: int = 8,
        patience: int | None = None,
        every: int = 4,
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            pictures: A path, a picture [H, W, 3] uint8 BGR (or [H, W] grey), a Pillow image, or a
                list of these. Of a file with several pictures only the first is read.
            T: Time steps. None: `self.T`.
            conf: Confidence threshold.
            iou: IoU threshold of non-maximum suppression, which runs for each class separately.
            batch: Number of pictures that go through the network at once.
            patience: Early exit of a spiking network: stop when the detections agree (see `alike`)
                in this number of readouts in a row, at the latest after T steps. The pictures are
                then processed one by one. `T` of each result is the number of steps that were run.
            every: Time steps between two readouts of the early exit.

        Returns:
            Detections, or a list of them if `pictures` is a list. Each result keeps its picture in
            memory, so split long lists.

        Raises:
            PictureError: A picture cannot be read, or an array is not a picture.
            UsageError: T, `batch`, `patience` or `every` is below 1, a threshold is outside 0..1,
                or `patience` is given for weights without time steps.
        """
        _check_fractions(conf=conf, iou=iou)
        expect_counts(batch=batch, patience=patience, every=every)
        if patience is not None:
            self._expect_steps()
        T = self.T if T is None else self._time_steps(T)
        several, single = as_pictures(pictures)
        results: list[Detections] = []
        if patience is not None:
            results = [self._until(source, T, conf, iou, patience, every) for source in several]
            return results[0] if single else results
        for start in range(0, len(several), batch):
            results += self._detect(several[start : start + batch], T, conf, iou)
        return results[0] if single else results

    def steps(
        self,
        picture: Source,
        T: int | None = None,
        *,
        conf: float = 0.25,
        iou: float = 0.6,
        chunk: int | None = None,
    ) -> Iterator[Detections]:
        """Detect objects after every time step 1..T of one run (any-time readout).

        Args:
            picture: A path, a picture [H, W, 3] uint8 BGR (or [H, W] grey), or a Pillow image.
            T: Time steps. None: `self.T`.
            conf: Confidence threshold.
            iou: IoU threshold of non-maximum suppression, which runs for each class separately.
            chunk: Time steps that are computed at once. With a smaller number the first results
                come sooner, but the whole run takes longer.

        Returns:
            An iterator of `Detections` for T = 1, 2 and so on. Each has the spike rate so far. The
            last detections equal those of a call with T. Read the iterator to its end before you
            call the detector again.

        Raises:
            PictureError: The picture cannot be read, or the array is not a picture.
            UsageError: T or `chunk` is below 1, a threshold is outside 0..1, or the weights have no
                time steps.
        """
        _check_fractions(conf=conf, iou=iou)
        expect_counts(chunk=chunk)
        self._expect_steps()
        T = self.T if T is None else self._time_steps(T)
        assert T is not None  # of a network with time steps
        return self._steps(picture, as_picture(picture), T, conf, iou, chunk)

    @torch.inference_mode()
    def _steps(
        self,
        source: Source,
        array: np.ndarray,
        T: int,
        conf: float,
        iou: float,
        chunk: int | None,
    ) -> Iterator[Detections]:
        tensor, frame = letterbox(array, self.imgsz)
        for t, raws, rate in self.runner.steps(tensor[None].to(self.device), T, chunk):
            detections = self._detections(source, array, frame, raws[0].cpu(), t, conf, iou)
            yield replace(detections, spike_rate=rate)

    @torch.inference_mode()
    def _until(
        self,
        source: Source,
        T: int | None,
        conf: float,
        iou: float,
        patience: int,
        every: int,
    ) -> Detections:
        """Detections of one picture with early exit."""
        array = as_picture(source)
        tensor, frame = letterbox(array, self.imgsz)
        picture = channels_last(tensor[None]).to(self.device)

        def read(raw: Any) -> Detections:
            decoded = self.runner.decode(raw)[0].cpu()
            return self._detections(source, array, frame, decoded, T, conf, iou)

        t, detections = EarlyExit(self.runner.network, read, alike, patience, every)(picture, T)
        return replace(detections, T=t)

    def _expect_steps(self) -> None:
        if self.runner.stage != "snn":
            raise UsageError(
                f"{self.weights.name}: {self.runner.stage} weights have no time steps; expected "
                "spiking weights"
            )

    @torch.inference_mode()
    def _detect(self, sources: list, T: int | None, conf: float, iou: float) -> list[Detections]:
        arrays = [as_picture(source) for source in sources]
        fitted: list[tuple[Tensor, Letterbox]] = [letterbox(a, self.imgsz) for a in arrays]
        raws = self.runner(torch.stack([x for x, _ in fitted]).to(self.device), T).cpu()
        return [
            self._detections(source, array, frame, raw, T, conf, iou)
            for source, array, (_, frame), raw in zip(sources, arrays, fitted, raws, strict=True)
        ]

    def _detections(
        self,
        source: Source,
        array: np.ndarray,
        frame: Letterbox,
        raw: Tensor,
        T: int | None,
        conf: float,
        iou: float,
    ) -> Detections:
        """The detections of one picture from decoded outputs [4 + C, A] (A candidate boxes)."""
        boxes, scores, labels = select(raw, conf, iou)
        file = str(source) if isinstance(source, str | Path) else None
        return Detections(frame.to_original(boxes), scores, labels, self.names, T, array, file)


def alike(before: Detections, now: Detections, iou: float = 0.9, score: float = 0.05) -> bool:
    """Whether two readouts show the same objects.

    Both must have the same number of objects. Each object needs a partner of the same class in the
    other readout: their boxes overlap with an IoU of `iou` or more, and their scores differ by less
    than `score`. Two empty readouts do not count as alike, because in the first steps the spikes
    have not yet passed all layers. So a picture without objects takes all T steps.
    """
    if len(before) != len(now) or not len(now):
        return False
    overlaps = box_iou(torch.from_numpy(before.boxes), torch.from_numpy(now.boxes)).numpy()
    same = before.labels[:, None] == now.labels
    near = np.abs(before.scores[:, None] - now.scores) < score
    pairs = same & near & (overlaps >= iou)
    return bool(pairs.any(0).all() and pairs.any(1).all())


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise UsageError(f"{name} is {value!r}; expected a number between 0 and 1")
