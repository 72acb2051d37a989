"""What every training loop needs: random states to resume from, devices, how far a run has come."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikedet.errors import TrainingError


def check_devices(device: str) -> None:
    """Refuse devices that are not there, and several GPUs in one process.

    Raises:
        TrainingError: Says what is there, or how to start.
    """
    if device == "cpu":
        return
    numbers = device.split(",")
    there = torch.cuda.device_count()
    if not all(n.isdigit() and int(n) < there for n in numbers):
        raise TrainingError(
            f"device {device!r}: this machine has {there} CUDA devices; expected cpu, or numbers "
            "of such devices as in 0 or 0,1"
        )
    if len(numbers) > 1 and "LOCAL_RANK" not in os.environ:
        raise TrainingError(
            f"device {device!r} needs one process a GPU: start the same command with "
            f"torchrun --nproc_per_node {len(numbers)}"
        )


def random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators, as values safe to load."""
    name, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo `random_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def epochs_done(folder: Path) -> tuple[int, int]:
    """Epochs done and wanted of the run in `folder`; (0, 0) when there is none."""
    path = Path(folder) / "state.pt"
    if not path.is_file():
        return 0, 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state["epoch"] + 1, state["epochs"]
