"""The tasks there are, found by the name that checkpoints and network descriptions give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from spikedet.classification import settings as classification
from spikedet.detection import settings as detection
from spikedet.errors import WeightsError
from spikedet.files import read_yaml

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.task import Task

SETTINGS: dict[str, ModuleType] = {"detection": detection, "classification": classification}


def named(name: str) -> Task:
    """A task by its name.

    Raises:
        WeightsError: There is none of that name.
    """
    if name == "detection":
        from spikedet.detection.task import DETECTION

        return DETECTION
    if name == "classification":
        from spikedet.classification.task import CLASSIFICATION

        return CLASSIFICATION
    raise WeightsError(f"these weights are for {name}; expected {' or '.join(SETTINGS)}")


def of(made: Checkpoint) -> Task:
    """The task of a checkpoint."""
    return named(made.task)


def of_data(folders: Sequence[Path]) -> str:
    """Name of the task that data folders are for: class folders or CIFAR's files, or VOCdevkits."""
    cifar = classification.CIFAR
    for folder in map(Path, folders):
        inside = any((folder / name).is_dir() for name in ("train", "val", "test", *cifar))
        inside |= any((folder / name).is_file() for name in cifar.values())
        if folder.name in cifar or (inside and not any(folder.glob("VOC*"))):
            return "classification"
    return "detection"


def of_description(path: Path) -> Task:
    """The task of a network description: what its `task:` says, detection if it does not."""
    if not Path(path).is_file():
        return named("detection")  # which knows more descriptions, by their names
    task = read_yaml(path).get("task")
    return named(task if task in tuple(SETTINGS) else "detection")
