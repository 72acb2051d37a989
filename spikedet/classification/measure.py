"""Accuracy of a network on labelled pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikedet.classification.data import Samples, batches


@dataclass(frozen=True)
class Accuracy:
    """Share of the pictures, in 0..1, whose class is the first answer, or among the first five."""

    top1: float
    top5: float
    images: int


@torch.no_grad()
def accuracy(
    classify: Callable[[Tensor], Tensor],
    samples: Samples,
    description: dict[str, Any],
    imgsz: int,
    batch: int = 250,
    on_batch: Callable[[int], None] | None = None,
) -> Accuracy:
    """Accuracy of a classifier.

    Args:
        classify: Normalised pictures [B, 3, H, W] -> logits [B, C] on the CPU.
        samples: Labelled pictures.
        description: Says how they are normalised.
        imgsz: Side in pixels.
        batch: Pictures at a time.
        on_batch: Called with the number of pictures done.
    """
    first = five = done = 0
    for pictures in batches(samples, description, imgsz, batch):
        logits = classify(pictures)
        truth = torch.tensor(samples.labels[done : done + len(logits)])
        best = logits.topk(min(5, logits.shape[1])).indices == truth[:, None]
        first, five = first + int(best[:, 0].sum()), five + int(best.any(1).sum())
        done += len(logits)
        if on_batch is not None:
            on_batch(done)
    return Accuracy(first / done, five / done, done)


def measure(
    runner: Any, samples: Samples, *, T: int | None = None, **options: Any
) -> tuple[Accuracy, float | None]:
    """Accuracy, and spikes per neuron and step (None without spikes).

    Args:
        runner: `classification.task.Runner`.
        samples: Labelled pictures.
        T: Time steps, the network's own by default.
        options: As `accuracy`.
    """
    device = next(runner.network.parameters()).device
    spiking = runner.stage == "snn"
    if spiking:
        runner.network.count_spikes(True)
    found = accuracy(
        lambda pictures: runner(pictures.to(device), T).cpu(),
        samples,
        runner.description,
        runner.imgsz,
        **options,
    )
    rate = runner.network.spike_rate() if spiking else None
    if spiking:
        runner.network.count_spikes(False)
    return found, rate
