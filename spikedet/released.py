"""The weights that come with the package, found by task, stage and time steps."""

from __future__ import annotations

import re
from pathlib import Path

from spikedet import resources
from spikedet.errors import WeightsError

NAMES = {"detection": "tiny-yolo-s", "classification": "cifar10-resnet20"}


def weights_folder() -> Path:
    """The folder of the released weights: in the installed package, or beside it in a clone.

    Raises:
        WeightsError: There is no such folder.
    """
    folder = resources.folder("weights")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder}: no released weights in this folder; use --weights")
    return folder


def released(stage: str, T: int | None = None, task: str = "detection") -> Path | None:
    """Released weights of a stage (`float`, `qc`, `snn`) for exactly T, or None."""
    end = stage if T is None else f"{stage}-T{T}"
    path = weights_folder() / f"{NAMES[task]}-{end}.safetensors"
    return path if path.is_file() else None


def released_leaky() -> Path | None:
    """The released float detector with leaky ReLU, for the Spiking-YOLO baseline, or None."""
    path = weights_folder() / "tiny-yolo-leaky-s-float.safetensors"
    return path if path.is_file() else None


def all_released(task: str = "detection") -> list[Path]:
    """All released weights of a task, of all stages."""
    return sorted(weights_folder().glob(f"{NAMES[task]}-*.safetensors"))


def default_weights(T: int | None = None, task: str = "detection") -> Path:
    """The released spiking weights for T.

    These are the weights made for T. If there are none, it is the next larger T, else the largest
    T. With T = None it is the largest T.

    Raises:
        WeightsError: There are no released weights for this task.
    """
    paths = {}
    if task not in NAMES:
        raise WeightsError(
            f"there are no released weights for {task}; expected {' or '.join(NAMES)}"
        )
    for path in all_released(task):
        match = re.search(r"-snn-T(\d+)$", path.stem)
        if match:
            paths[int(match[1])] = path
    if not paths:
        raise WeightsError(f"{weights_folder()}: no spiking weights in this folder; use --weights")
    greater = [t for t in paths if T is not None and t >= T]
    return paths[min(greater) if greater else max(paths)]
