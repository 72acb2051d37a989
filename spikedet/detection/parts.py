"""Run a training step on a CPU in parts of the batch, each part on its own thread.

Normally all threads share every operation, and wait for each other some hundred times in a step. If
other programs use the same cores, one thread is always late, and a step takes many times as long.
With one part of the batch for each thread, the threads wait for each other only once in a step.

The order in which the threads update the statistics of batch norm, draw the noise of quantisers,
and add gradients is not fixed. So two runs with the same seed differ a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[dict[str, Any], int], tuple[Tensor, dict[str, Tensor]]]


def split(batch: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """Split a batch with ultralytics' keys into parts of similar size. No part is empty.

    Args:
        batch: `img` [B, 3, S, S], `batch_idx` [N], `cls` [N, 1] and `bboxes` [N, 4]. `teacher`, if
            there, is passed to every part. Other keys are left out.
        parts: Number of parts.
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
        number: Number of parts.
    """

    def __init__(self, number: int):
        self.number = number
        self.pool = ThreadPoolExecutor(number)

    def step(self, loss: Loss, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and its gradients in the parameters.

        Args:
            loss: Function of a part and its number. It returns the loss, summed over the pictures,
                and items for the log.
            batch: See `split`.

        Returns:
            The sum of the losses (not connected to the parameters), and the mean of the items.
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
