"""Pictures with boxes, as samples of the detection task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from spikedet.checkpoint import Checkpoint
from spikedet.data.samples import Sample
from spikedet.detection.data import fingerprint, split_off_tuning, trained_on
from spikedet.detection.defaults import TUNING
from spikedet.detection.loader import augmented, batches
from spikedet.settings import EndToEnd
from spikedet.task import Samples


class BoxSamples(Samples, Sequence[Sample]):
    """Pictures with boxes.

    Args:
        samples: The pictures, all with the same class names.
    """

    def __init__(self, samples: Sequence[Sample]):
        self._samples = list(samples)
        self.names = self._samples[0].names if self._samples else ()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: Any) -> Any:
        """A sample, or a list of those of a slice."""
        return self._samples[number]

    def select(self, numbers: Sequence[int]) -> BoxSamples:
        return BoxSamples([self._samples[number] for number in numbers])

    def classes(self) -> set[int]:
        return {label for sample in self._samples for label in sample.labels.tolist()}

    def fingerprint(self) -> str:
        return fingerprint(self._samples)

    def seen_by_released(self) -> int:
        return trained_on(self._samples)

    def split_off_tuning(self, tuning: Path | None = None) -> tuple[BoxSamples, BoxSamples]:
        train, tune = split_off_tuning(self._samples, tuning or TUNING)
        return BoxSamples(train), BoxSamples(tune)

    def pictures(self, checkpoint: Checkpoint, batch: int) -> Iterator[Tensor]:
        return (pictures for pictures, _ in batches(self._samples, checkpoint.imgsz, batch))

    def augmented(
        self, checkpoint: Checkpoint, end: EndToEnd, seed: int, for_evaluation: bool = False
    ) -> Iterator[dict[str, Any]]:
        return augmented(self._samples, checkpoint.imgsz, end.batch, seed, end.workers)
