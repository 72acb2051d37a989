"""The tasks there are, found by the name that checkpoints and network descriptions give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from spikedet import resources
from spikedet.classification import defaults as classification
from spikedet.data.formats import recognise
from spikedet.detection import defaults as detection
from spikedet.errors import DataError, UsageError, WeightsError
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


def of(checkpoint: Checkpoint) -> Task:
    """The task of a checkpoint."""
    return named(checkpoint.task)


def of_data(folders: Sequence[Path]) -> str:
    """Name of the task that data are for; detection where none says that it is not."""
    kinds = {_kind(Path(folder)) for folder in folders}
    return "classification" if "classification" in kinds else "detection"


def expect_data(task: Task, folders: Sequence[Path]) -> None:
    """Refuse data folders that are plainly for another task.

    Raises:
        DataError: Says for which.
    """
    for folder in folders:
        kind = _kind(Path(folder))
        if kind not in (None, task.name):
            raise DataError(f"{folder}: this data is for {kind}; the network is for {task.name}")


def _kind(folder: Path) -> str | None:
    """The task that data are for, None where that cannot be seen."""
    format = recognise(folder)
    return None if format is None else format.task


def of_description(path: Path) -> Task:
    """The task of a network description: what its `task:` says, detection if it says none.

    Classification for `torchvision:NAME`, a classifier of torchvision.

    Raises:
        UsageError: It says something else.
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
