"""Measure the accuracy of a network on labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedet.classification.data import Samples, batches
from spikedet.precision import device_of
from spikedet.reliability import reliability


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a classifier, 0..1.

    Attributes:
        top1: Share of the pictures whose true class is the most probable class.
        top5: Share of the pictures whose true class is among the five most probable classes.
        details: Rows of the tables `classes`, `confusion` and `reliability`, if requested.
    """

    top1: float
    top5: float
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)


@torch.no_grad()
def accuracies(
    classify: Callable[[Tensor], list[Tensor]],
    samples: Samples,
    description: dict[str, Any],
    imgsz: int,
    batch: int = 250,
    on_batch: Callable[[int], None] | None = None,
    details: bool = False,
) -> list[Accuracy]:
    """Measure the accuracy of a classifier that gives several answers (one for each T).

    Args:
        classify: Function from normalised pictures [B, 3, H, W] to a list of logits [B, C], one for
            each answer.
        samples: Labelled pictures.
        description: Network description with the normalisation.
        imgsz: Side of the pictures in pixels.
        batch: Batch size.
        on_batch: Function that is called with the number of pictures so far.
        details: Also make the tables for the last answer.
    """
    hits: Any = 0  # [answers, 2]: first, among the first five
    sure: list[Tensor] = []  # [2, B] of each batch: probability and class of the last answer
    done = 0
    for pictures in batches(samples, description, imgsz, batch):
        logits = torch.stack(classify(pictures)).cpu()  # [answers, B, C]
        now = logits.shape[1]
        truth = torch.tensor(samples.labels[done : done + now])
        best = logits.topk(min(5, logits.shape[2])).indices == truth[:, None]
        hits = hits + torch.stack([best[..., 0], best.any(2)], 2).sum(1)
        if details:
            sure.append(torch.stack(list(logits[-1].double().softmax(1).max(1))))
        done += now
        if on_batch is not None:
            on_batch(done)
    values = [Accuracy(first / done, five / done) for first, five in hits.tolist()]
    if details:
        scores, answers = torch.cat(sure, 1).numpy()
        tables = tables_of(scores, answers, samples.labels, samples.names)
        values[-1] = replace(values[-1], details=tables)
    return values


def tables_of(
    scores: np.ndarray, answers: np.ndarray, labels: Sequence[int], names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Make the tables of accuracy by class, of confusion and of reliability.

    Args:
        scores: [N], probability of the predicted class.
        answers: [N], number of the predicted class.
        labels: [N], number of the true class.
        names: Class names.

    Returns:
        Rows of `classes` (`class`, `top1`, `count`), `confusion` (`truth`, `predicted`, `count`)
        and `reliability` (see `spikedet.reliability`).
    """
    answers, truth = answers.astype(int), np.asarray(labels)
    pairs, counts = np.unique(np.stack([truth, answers]), axis=1, return_counts=True)
    right = answers == truth
    there = {label: truth == label for label in range(len(names))}
    return {
        "classes": [
            {"class": names[label], "top1": float(right[own].mean()), "count": int(own.sum())}
            for label, own in there.items()
            if own.any()
        ],
        "confusion": [
            {"truth": names[a], "predicted": names[b], "count": int(count)}
            for a, b, count in zip(*pairs, counts, strict=True)
        ],
        "reliability": reliability(scores, right),
    }


def measure(
    runner: Any, samples: Samples, *, steps: Sequence[int] | None = None, **options: Any
) -> list[tuple[Accuracy, float | None]]:
    """Measure accuracy and spike rate (spikes per neuron and time step; None if float).

    Args:
        runner: A `classification.task.Runner`.
        samples: Labelled pictures.
        steps: See `Task.measure`.
        options: See `accuracies`.
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
