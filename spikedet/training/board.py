"""Curves of a training for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from spikedet.settings import TrainingSettings


@cache
def _board(folder: Path) -> Any:
    """The TensorBoard writer of a run."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard")


def log_epoch(folder: Path, settings: TrainingSettings, epoch: int, row: Mapping[str, Any]) -> None:
    """Write the numbers of an epoch for TensorBoard, if the settings say so.

    Args:
        folder: Folder of the run.
        settings: Settings of the run.
        epoch: Number of the epoch, from 1 on.
        row: Row of `results.csv`.
    """
    if not settings.tensorboard:
        return
    board = _board(Path(folder))
    for name, value in row.items():
        if isinstance(value, float) or hasattr(value, "item"):
            board.add_scalar(name, float(value), epoch)
    board.flush()
