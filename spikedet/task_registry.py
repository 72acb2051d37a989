"""The registry of tasks. Checkpoints and network descriptions name their task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from spikedet import resources
from spikedet.classification import defaults as classification
from spikedet.data.formats import recognise
from spikedet.detection import defaults as detection
from spikedet.errors import DataError, UsageError, wrong_task
from spikedet.files import read_yaml

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.task import Task

SETTINGS: dict[str, ModuleType] = {"detection": detection, "classification": classification}


def named(name: str) -> Task:
    """Return the task with this name.

    Raises:
        WeightsError: There is no such task.
    """
    if name == "detection":
        from spikedet.detection.task import DETECTION

        return DETECTION
    if name == "classification":
        from spikedet.classification.task import CLASSIFICATION

        return CLASSIFICATION
    raise wrong_task(name, " or ".join(SETTINGS))


def of(checkpoint: Checkpoint) -> Task:
    """The task of a checkpoint."""
    return named(checkpoint.task)


def of_data(folders: Sequence[Path]) -> str:
    """The name of the task that data folders are for. It is `detection` if that is unknown."""
    kinds = {_kind(Path(folder)) for folder in folders}
    return "classification" if "classification" in kinds else "detection"


def expect_data(task: Task, folders: Sequence[Path]) -> None:
    """Check that data folders are not for another task.

    Raises:
        DataError: A folder is for another task.
    """
    for folder in folders:
        kind = _kind(Path(folder))
        if kind not in (None, task.name):
            raise DataError(f"{folder}: this data is for {kind}; the network is for {task.name}")


def _kind(folder: Path) -> str | None:
    """The task that a data folder is for, or None if it is unknown."""
    format = recognise(folder)
    return None if format is None else format.task


def of_description(path: Path) -> Task:
    """The task of a network description: its key `task`, or detection without this key.

    `torchvision:NAME` is a classifier of torchvision.

    Raises:
        UsageError: The task in the description does not exist.
    """
    if str(path).startswith(classification.SHORT):
        return named("classification")
    path = resources.config(path, "models")
    if not path.is_file():
        return named("detection")  # which knows more descriptions, by their names
    task = read_yaml(path).get("task", "detection")
    if task not in tuple(SETTINGS):
        raise UsageError(f"{path}: task: {task}; expected {' or '.join(SETTINGS)}")
    return named(task)
