"""Annotated pictures as network inputs, without augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spikedet.detection.data import Sample
from spikedet.detection.letterbox import Letterbox, letterbox
from spikedet.pictures import from_loader, read_picture


def batches(
    samples: Sequence[Sample], side: int, batch: int
) -> Iterator[tuple[Tensor, list[Letterbox]]]:
    """Yield batches of letterboxed pictures, [B, 3, side, side] float32 RGB in 0..1.

    Each batch comes with the letterbox of each picture.
    """
    for start in range(0, len(samples), batch):
        fitted = [letterbox(read_picture(s.path), side) for s in samples[start : start + batch]]
        yield torch.stack([picture for picture, _ in fitted]), [box for _, box in fitted]


def augmented(
    samples: Sequence[Sample], side: int, batch: int, seed: int = 0, workers: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield training batches without end, with ultralytics' augmentation except mosaic.

    `workers` is the number of loader processes. With 0, this process makes the batches.

    Yields:
        Dicts with `img` [B, 3, side, side] float32 in 0..1, and `batch_idx`, `cls` and `bboxes` for
        ultralytics' loss. B is `batch`, or the number of samples if it is smaller.
    """
    from spikedet.detection.dataset import SampleDataset
    from spikedet.detection.ultra import training_options

    data = {"names": {}, "channels": 3}
    dataset = SampleDataset(
        list(samples),
        imgsz=side,
        augment=True,
        hyp=training_options(overrides={"mosaic": 0.0}),
        batch_size=batch,
        data=data,
    )
    generator = torch.Generator().manual_seed(seed)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        dataset,
        min(batch, len(samples)),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=SampleDataset.collate_fn,
        generator=generator,
    )
    while True:
        with from_loader():
            for taken in loader:
                taken["img"] = taken["img"].float() / 255
                yield taken
