"""Annotated pictures as network inputs, without augmentation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from spikedet.detection.data import Sample
from spikedet.detection.pictures import Letterbox, letterbox, read_picture


def pick(samples: Sequence[Sample], count: int, seed: int = 0) -> list[Sample]:
    """`count` samples drawn without replacement (all of them when there are fewer)."""
    chosen = random.Random(seed).sample(range(len(samples)), min(count, len(samples)))
    return [samples[index] for index in chosen]


def batches(
    samples: Sequence[Sample], side: int, batch: int
) -> Iterator[tuple[Tensor, list[Letterbox]]]:
    """Letterboxed pictures [B, 3, side, side] float32 RGB in 0..1 and how each was fitted."""
    for start in range(0, len(samples), batch):
        fitted = [letterbox(read_picture(s.path), side) for s in samples[start : start + batch]]
        yield torch.stack([picture for picture, _ in fitted]), [box for _, box in fitted]
