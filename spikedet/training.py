"""What every training loop needs: random states to resume from, devices, how far a run has come."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedet.errors import TrainingError, UsageError
from spikedet.files import write_atomic


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


def expect_fresh(folder: Path, resume: bool) -> None:
    """Refuse to write over a run, or to resume where there is none.

    Raises:
        TrainingError: Says what to do.
    """
    state = Path(folder) / "state.pt"
    if resume and not state.is_file():
        raise TrainingError(f"{state}: nothing to resume here; run without --resume")
    if not resume and state.is_file():
        raise TrainingError(f"{folder} holds a run; add --resume, or choose another --out")


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write the side-car of a run, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def read_state(path: Path, key: str) -> dict[str, Any]:
    """What `save_state` wrote, which must hold `key`.

    Raises:
        TrainingError: Damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state[key]
    except Exception as error:
        raise TrainingError(f"{path}: damaged side-car ({error})") from None
    return state


def load_state(path: Path, epochs: int) -> dict[str, Any]:
    """The side-car of a run of so many epochs that goes on.

    Raises:
        TrainingError: Damaged, or all `epochs` are done.
    """
    state = read_state(path, "epoch")
    if state["epoch"] + 1 >= epochs:
        raise TrainingError(f"{path}: all {epochs} epochs are done already")
    return state


def expect_growth(what: str, first: int | None, last: int, stride: int) -> None:
    """Refuse pictures that cannot grow from one side to another (see `growing_side`).

    Args:
        what: Of what the pictures are.
        first: Side in pixels at the start, None if they do not grow.
        last: At the end.
        stride: Of the network.

    Raises:
        UsageError: Says what is possible.
    """
    if first is not None and (first % stride or not stride <= first <= last):
        raise UsageError(
            f"{what} was told to grow from {first} pixels; expected a multiple of {stride}, {last} "
            "at most"
        )


def growing_side(first: int, last: int, done: float, stride: int) -> int:
    """Side of the pictures in pixels when a part `done` of a training is over.

    It grows from `first` to `last` in three quarters of the training.

    Args:
        first: At the start.
        last: At the end.
        done: 0 to 1.
        stride: The side is a multiple of it.
    """
    part = min(1.0, done / 0.75)
    return round((first + (last - first) * part) / stride) * stride


def resized(pictures: Tensor, side: int) -> Tensor:
    """Square pictures [B, 3, S, S] at another side, antialiased; bytes are faster than floats."""
    if side == pictures.shape[-1]:
        return pictures
    return nn.functional.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)


def parameter_groups(
    network: nn.Module, rate: float, decay: float, threshold_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: weights decay; biases, norms and thresholds do not.

    Args:
        network: Its parameters whose name ends in `threshold` are a group of their own.
        rate: Learning rate.
        decay: Weight decay.
        threshold_rate: Learning rate of thresholds as a part of `rate`.
    """
    weights, plain, thresholds = [], [], []
    for key, parameter in network.named_parameters():
        if key.endswith("threshold"):
            thresholds.append(parameter)
        else:
            (weights if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": weights, "lr": rate, "weight_decay": decay, "param_group": "weight"},
        {"params": plain, "lr": rate, "weight_decay": 0.0, "param_group": "plain"},
    ]
    if thresholds:
        rate = rate * threshold_rate
        groups.append(
            {"params": thresholds, "lr": rate, "weight_decay": 0.0, "param_group": "threshold"}
        )
    return groups
