"""The weights that come with the package, found by task, stage and time steps."""

from __future__ import annotations

import re
from pathlib import Path

from spikedet import resources
from spikedet.errors import WeightsError

NAMES = {"detection": "tiny-yolo-s", "classification": "cifar10-resnet20"}


def weights_folder() -> Path:
    """Where the released weights lie: inside the installed package, or beside it in a clone.

    Raises:
        WeightsError: In neither place.
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
    """The released leaky ReLU detector, a float network that Spiking-YOLO starts from, or None."""
    path = weights_folder() / "tiny-yolo-leaky-s-float.safetensors"
    return path if path.is_file() else None


def all_released(task: str = "detection") -> list[Path]:
    """Released weights of all stages."""
    return sorted(weights_folder().glob(f"{NAMES[task]}-*.safetensors"))


def default_weights(T: int | None = None, task: str = "detection") -> Path:
    """Released spiking weights for T: those made for it, else the next greater, else the greatest.

    Without T: those with the most steps.

    Raises:
        WeightsError: There are none, of this task or at all.
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
