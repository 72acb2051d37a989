"""Measure the average precision of a network on annotated pictures, with fixed settings.

A box counts for every class whose score is above the confidence threshold. The other settings are
in `defaults.PROTOCOL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from spikedet.detection.boxes import Detections
from spikedet.detection.data import Sample
from spikedet.detection.defaults import CONFIDENCE, IOU, MOST
from spikedet.detection.evaluate import AREAS, Precision, average_precision
from spikedet.detection.loader import batches
from spikedet.detection.nms import select
from spikedet.detection.runner import Runner
from spikedet.precision import device_of


@torch.inference_mode()
def detect_all(
    runner: Runner,
    samples: Sequence[Sample],
    *,
    steps: Sequence[int] | None = None,
    batch: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Detections]]:
    """Detect objects in every sample. The boxes are in pixels of the original pictures.

    Args:
        runner: The network.
        samples: Pictures.
        steps: Numbers of time steps after which a spiking network is read out, ascending. None for
            other networks.
        batch: Batch size.
        on_batch: Function that is called with the number of pictures so far.

    Returns:
        For each of `steps` (or once, for a network without time steps): the detections of every
        sample.
    """
    device = device_of(runner.network)
    times: Sequence[int | None] = steps or [None]
    results: list[list[Detections]] = [[] for _ in times]
    done = 0
    for pictures, fitted in batches(samples, runner.imgsz, batch):
        pictures = pictures.to(device)
        outputs = runner.after(pictures, steps) if steps else [runner(pictures)]
        for T, output, detections in zip(times, outputs, results, strict=True):
            for raw, frame in zip(output.cpu(), fitted, strict=True):
                boxes, scores, labels = select(raw, CONFIDENCE, IOU, MOST)
                boxes = frame.to_original(np.asarray(boxes))
                detections.append(
                    Detections(boxes, np.asarray(scores), np.asarray(labels), runner.names, T)
                )
        done += len(fitted)
        if on_batch is not None:
            on_batch(done)
    return results


def measure(
    runner: Runner,
    samples: Sequence[Sample],
    *,
    steps: Sequence[int] | None = None,
    areas: tuple[float, float] = AREAS,
    details: bool = False,
    bootstrap: int = 0,
    **options: Any,
) -> list[tuple[Precision, float | None]]:
    """Measure average precision and spike rate (spikes per neuron and time step; None if float).

    Args:
        runner: The network.
        samples: Pictures.
        steps: See `Task.measure`.
        areas: See `average_precision`.
        details: See `average_precision`. Only for the last of `steps`.
        bootstrap: See `average_precision`.
        options: See `detect_all`.
    """
    if runner.stage != "snn":
        (detections,) = detect_all(runner, samples, **options)
        whole = average_precision(
            detections, samples, runner.names, areas, details=details, bootstrap=bootstrap
        )
        return [(whole, None)]
    if not steps:
        assert runner.T is not None  # of a spiking network
        steps = [runner.T]
    with runner.spiking.spike_rates() as rates:
        results = detect_all(runner, samples, steps=steps, **options)
    precisions = [
        average_precision(
            each,
            samples,
            runner.names,
            areas,
            details=details and steps[-1] == T,
            bootstrap=bootstrap,
        )
        for T, each in zip(steps, results, strict=True)
    ]
    return [(precision, rates.mean(T)) for T, precision in zip(steps, precisions, strict=True)]
