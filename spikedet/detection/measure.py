"""Average precision of a network on annotated pictures, with every setting fixed.

A score counts for every class that reaches the confidence; for the rest see `settings.PROTOCOL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from spikedet.detection.boxes import Detections
from spikedet.detection.data import Sample
from spikedet.detection.evaluate import Precision, average_precision
from spikedet.detection.loader import batches
from spikedet.detection.model import Runner
from spikedet.detection.predict import select
from spikedet.detection.settings import CONFIDENCE, IOU, MOST


@torch.inference_mode()
def detect_all(
    runner: Runner,
    samples: Sequence[Sample],
    *,
    T: int | None = None,
    batch: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> list[Detections]:
    """Detections of every sample, boxes in pixels of the original pictures.

    Args:
        runner: The network.
        samples: Pictures.
        T: Time steps, the network's own by default.
        batch: Pictures at a time.
        on_batch: Called with the number of pictures done.
    """
    device = next(runner.network.parameters()).device
    found: list[Detections] = []
    for pictures, fitted in batches(samples, runner.imgsz, batch):
        for raw, frame in zip(runner(pictures.to(device), T).cpu(), fitted, strict=True):
            boxes, scores, labels = select(raw, CONFIDENCE, IOU, MOST)
            boxes = frame.to_original(np.asarray(boxes))
            found.append(Detections(boxes, np.asarray(scores), np.asarray(labels), runner.names, T))
        if on_batch is not None:
            on_batch(len(found))
    return found


def measure(
    runner: Runner, samples: Sequence[Sample], *, T: int | None = None, **options: Any
) -> tuple[Precision, float | None]:
    """Average precision, and spikes per neuron and step (None without spikes)."""
    spiking = runner.stage == "snn"
    if spiking:
        runner.network.count_spikes(True)
    found = detect_all(runner, samples, T=T, **options)
    rate = runner.network.spike_rate() if spiking else None
    if spiking:
        runner.network.count_spikes(False)
    return average_precision(found, samples, runner.names), rate
