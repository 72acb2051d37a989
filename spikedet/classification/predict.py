"""From pictures to class names: the Python interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spikedet.classification import transforms
from spikedet.classification.task import CLASSIFICATION
from spikedet.counts import expect_counts
from spikedet.pictures import as_picture
from spikedet.predictor import BasePredictor


@dataclass(frozen=True)
class Classes:
    """The classes of one picture, most probable first.

    Attributes:
        names: Class names.
        probabilities: Soft-max of the mean outputs, in 0..1.
        T: Time steps, None for a network without.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    T: int | None


class Classifier(BasePredictor):
    """A classifier ready for pictures; made by `spikedet.load`."""

    task = CLASSIFICATION

    @torch.inference_mode()
    def __call__(
        self,
        pictures: str | Path | np.ndarray | Sequence[str | Path | np.ndarray],
        T: int | None = None,
        *,
        top: int = 5,
        batch: int = 64,
    ) -> Classes | list[Classes]:
        """Classify pictures.

        Args:
            pictures: A path, a picture [H, W, 3] uint8 BGR (or [H, W] grey), or a list of them.
            T: Time steps, `self.T` by default.
            top: How many classes each answer names.
            batch: Pictures that go through the network at once.

        Returns:
            Classes, or a list of them for a list.

        Raises:
            PictureError: A picture that cannot be read, or an array that is no picture.
            UsageError: T, `top` or `batch` below 1.
        """
        expect_counts(top=top, batch=batch)
        T = self.T if T is None else self._time_steps(T)
        single = isinstance(pictures, str | Path | np.ndarray)
        several = [pictures] if isinstance(pictures, str | Path | np.ndarray) else list(pictures)
        found: list[Classes] = []
        for start in range(0, len(several), batch):
            arrays = [as_picture(source)[..., ::-1] for source in several[start : start + batch]]
            fitted = [self._fitted(array) for array in arrays]
            logits = self.runner(torch.stack(fitted).to(self.device), T).cpu()
            for values in logits.softmax(1):
                best = values.topk(min(top, len(self.names)))
                names = tuple(self.names[i] for i in best.indices.tolist())
                found.append(Classes(names, best.values.numpy(), T))
        return found[0] if single else found

    def _fitted(self, rgb: np.ndarray) -> torch.Tensor:
        """[H, W, 3] uint8 -> [3, S, S] as the network takes it."""
        picture = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
        return transforms.view(self.runner.description, self.imgsz)(picture)
