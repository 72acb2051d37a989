"""A training step on a CPU in parts of a batch, each on a thread of its own.

The threads of one operation wait for each other at its end, some hundred times a step. Where other
work runs on the same cores one of them is always late, and a step takes many times as long. Threads
that have a part of the batch each meet once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[dict[str, Any], int], tuple[Tensor, dict[str, Tensor]]]


def split(batch: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """Parts of a batch of ultralytics' keys, as even as can be; none is empty.

    Args:
        batch: `img` [B, 3, S, S], `batch_idx` [N], `cls` [N, 1], `bboxes` [N, 4]; `teacher`, if
            there, goes to every part. Other keys are left out.
        parts: How many.
    """
    size = len(batch["img"])
    parts = min(parts, size)
    for part in range(parts):
        first, last = size * part // parts, size * (part + 1) // parts
        index = batch["batch_idx"]
        own = (index >= first) & (index < last)
        piece = {"img": batch["img"][first:last], "batch_idx": index[own] - first}
        piece |= {key: batch[key][own] for key in ("cls", "bboxes")}
        if "teacher" in batch:
            piece["teacher"] = batch["teacher"]
        yield piece


class Parts:
    """Threads for the parts of every batch.

    Args:
        number: Of parts.
    """

    def __init__(self, number: int):
        self.number = number
        self.pool = ThreadPoolExecutor(number)

    def step(self, loss: Loss, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, whose gradients are in the parameters already.

        Args:
            loss: Loss of a part, summed over its pictures, and items for show; it is told which.
            batch: As of `split`.

        Returns:
            The sum of the losses, which ends in no parameter, and the mean of the items.
        """

        def work(part: int, piece: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.enable_grad():  # which is of the thread
                losses, items = loss(piece, part)
                losses.sum().backward()
            return losses.detach(), {key: value.detach() for key, value in items.items()}

        pieces = list(split(batch, self.number))
        losses, items = zip(*self.pool.map(work, range(len(pieces)), pieces), strict=True)
        mean = {key: torch.stack([one[key] for one in items]).mean(0) for key in items[0]}
        return torch.stack(losses).sum(0).requires_grad_(), mean
