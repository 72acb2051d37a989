"""Classify pictures: the Python interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from spikedet.classification import transforms
from spikedet.classification.task import CLASSIFICATION
from spikedet.counts import expect_counts
from spikedet.errors import UsageError
from spikedet.pictures import Source, as_picture, as_pictures
from spikedet.precision import channels_last
from spikedet.predictor import BasePredictor
from spikedet.runtime.early_exit import EarlyExit


@dataclass(frozen=True)
class Classes:
    """The classes of one picture, most probable first.

    Attributes:
        names: Class names.
        probabilities: [top] float32, 0..1, soft-max of the mean outputs.
        T: Time steps. None for a float or quantised network.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    T: int | None


class Classifier(BasePredictor):
    """A classifier with its weights. `spikedet.load` returns it."""

    task = CLASSIFICATION

    @torch.inference_mode()
    def __call__(
        self,
        pictures: Source | Sequence[Source],
        T: int | None = None,
        *,
        top: int = 5,
        batch: int = 64,
        patience: int | None = None,
        every: int = 1,
    ) -> Classes | list[Classes]:
        """Classify pictures.

        Args:
            pictures: A path, a picture [H, W, 3] uint8 BGR (or [H, W] grey), a Pillow image, or a
                list of these. Of a file with several pictures only the first is read.
            T: Time steps. None: `self.T`.
            top: Number of classes in each result.
            batch: Number of pictures that go through the network at once.
            patience: Early exit of a spiking network: stop when the most probable class is the same
                in this number of readouts in a row, at the latest after T steps. The pictures are
                then processed one by one. `T` of each result is the number of steps that were run.
            every: Time steps between two readouts of the early exit.

        Returns:
            Classes, or a list of them if `pictures` is a list.

        Raises:
            PictureError: A picture cannot be read, or an array is not a picture.
            UsageError: T, `top`, `batch`, `patience` or `every` is below 1, or `patience` is given
                for weights without time steps.
        """
        expect_counts(top=top, batch=batch, patience=patience, every=every)
        if patience is not None and self.runner.stage != "snn":
            raise UsageError(
                f"{self.weights.name}: {self.runner.stage} weights have no time steps, so they "
                "cannot stop early; expected spiking weights"
            )
        T = self.T if T is None else self._time_steps(T)
        several, single = as_pictures(pictures)
        answers: list[Classes] = []
        if patience is not None:
            answers = [self._until(source, T, top, patience, every) for source in several]
            return answers[0] if single else answers
        for start in range(0, len(several), batch):
            arrays = [as_picture(source)[..., ::-1] for source in several[start : start + batch]]
            fitted = [self._fitted(array) for array in arrays]
            logits = self.runner(torch.stack(fitted).to(self.device), T).cpu()
            answers += [self._classes(values, top, T) for values in logits.softmax(1)]
        return answers[0] if single else answers

    def _classes(self, probabilities: torch.Tensor, top: int, T: int | None) -> Classes:
        best = probabilities.topk(min(top, len(self.names)))
        names = tuple(self.names[i] for i in best.indices.tolist())
        return Classes(names, best.values.numpy(), T)

    def _until(self, source: Source, T: int | None, top: int, patience: int, every: int) -> Classes:
        """The classes of one picture with early exit."""
        fitted = self._fitted(as_picture(source)[..., ::-1])[None].to(self.device)
        picture = channels_last(fitted)

        def read(logits: torch.Tensor) -> Classes:
            return self._classes(logits.float().cpu().softmax(1)[0], top, T)

        def alike(before: Classes, now: Classes) -> bool:
            return before.names[0] == now.names[0]

        t, answer = EarlyExit(self.runner.network, read, alike, patience, every)(picture, T)
        return replace(answer, T=t)

    def _fitted(self, rgb: np.ndarray) -> torch.Tensor:
        """Convert a picture [H, W, 3] uint8 RGB to the input of the network, [3, S, S]."""
        picture = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
        return transforms.view(self.runner.description, self.imgsz)(picture)
