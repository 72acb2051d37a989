"""Accuracy of a network on labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikedet.classification.data import Samples, batches
from spikedet.precision import device_of


@dataclass(frozen=True)
class Accuracy:
    """Share of the pictures, in 0..1, whose class is the first answer, or among the first five."""

    top1: float
    top5: float


@torch.no_grad()
def accuracies(
    classify: Callable[[Tensor], list[Tensor]],
    samples: Samples,
    description: dict[str, Any],
    imgsz: int,
    batch: int = 250,
    on_batch: Callable[[int], None] | None = None,
) -> list[Accuracy]:
    """Accuracy of every answer of a classifier that gives several.

    Args:
        classify: Normalised pictures [B, 3, H, W] -> logits [B, C] of each answer.
        samples: Labelled pictures.
        description: Says how they are normalised.
        imgsz: Side in pixels.
        batch: Pictures at a time.
        on_batch: Called with the number of pictures done.
    """
    hits: Any = 0  # [answers, 2]: first, among the first five
    done = 0
    for pictures in batches(samples, description, imgsz, batch):
        logits = torch.stack(classify(pictures)).cpu()  # [answers, B, C]
        now = logits.shape[1]
        truth = torch.tensor(samples.labels[done : done + now])
        best = logits.topk(min(5, logits.shape[2])).indices == truth[:, None]
        hits = hits + torch.stack([best[..., 0], best.any(2)], 2).sum(1)
        done += now
        if on_batch is not None:
            on_batch(done)
    return [Accuracy(first / done, five / done) for first, five in hits.tolist()]


def measure(
    runner: Any, samples: Samples, *, steps: Sequence[int] | None = None, **options: Any
) -> list[tuple[Accuracy, float | None]]:
    """Accuracy, and spikes per neuron and step (None without spikes).

    Args:
        runner: `classification.task.Runner`.
        samples: Labelled pictures.
        steps: As of `Task.measure`.
        options: As of `accuracies`.
    """
    device = device_of(runner.network)
    side = runner.imgsz
    if runner.stage != "snn":
        measured = accuracies(
            lambda x: [runner(x.to(device))], samples, runner.description, side, **options
        )
        return [(one, None) for one in measured]
    steps = steps or [runner.T]
    with runner.network.spike_rates() as rates:
        measured = accuracies(
            lambda x: runner.after(x.to(device), steps),
            samples,
            runner.description,
            side,
            **options,
        )
    return [(one, rates.mean(T)) for T, one in zip(steps, measured, strict=True)]
