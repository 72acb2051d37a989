"""What is refused before the work begins: options without effect, outputs that would be lost."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.errors import TrainingError, UsageError, cut

if TYPE_CHECKING:
    from spikedet.commands.parse import Options
    from spikedet.task import Samples, Task


LONGEST_NAME = 255  # bytes of the name of a file, on most file systems


def refuse(options: Options, names: Sequence[str], why: str) -> None:
    """Refuse options that would be ignored; those of a `--config` file may be for other methods.

    Args:
        options: Those that were parsed.
        names: Of options.
        why: They would be ignored.

    Raises:
        UsageError: One of them is on the command line.
    """
    for name in names:
        if name in options.given:
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


def expect_new(path: Path) -> None:
    """Refuse to write over what took hours to make.

    Raises:
        TrainingError: There is such a file.
    """
    if path.exists():
        raise TrainingError(f"{path} is there already; choose another --out")


def expect_writable(path: Path) -> Path:
    """Refuse a file that cannot be written, before the work for it is done.

    Returns:
        The path.

    Raises:
        UsageError: It is a folder, or none can be where it shall be.
    """
    if os.path.isdir(path):
        raise UsageError(f"{cut(path)}: is a folder; expected the name of a file to write")
    _expect_room(path, path.absolute().parent)
    return path


def expect_folder(path: Path) -> Path:
    """Refuse a folder that nothing can be written to, before the work for it is done.

    Returns:
        The path.

    Raises:
        UsageError: It is a file, or there can be no file in it.
    """
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(f"{cut(path)}: is a file; expected the name of a folder to write to")
    _expect_room(path, path.absolute())
    return path


def _expect_room(path: Path, folder: Path) -> None:
    """Refuse a folder in which no file can be made, by making one that has no name."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UsageError(f"{cut(path)}: has a name of more than {LONGEST_NAME} bytes")
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except NotADirectoryError:
        why = "is not a folder"
    except OSError as error:  # root may write to all folders, but not where there are no files
        why = f"cannot be written to ({(error.strerror or 'no files there').lower()})"
    raise UsageError(f"{cut(path)}: {cut(folder)} {why}")


def warn_of_training_pictures(task: Task, samples: Samples, digests: set[str]) -> None:
    """Say so where released weights are measured on what they were trained on.

    Args:
        task: Of the weights.
        samples: What they are measured on.
        digests: SHA-256 of the weights.
    """
    from spikedet.checkpoint import identity
    from spikedet.released import all_released

    seen = samples.seen_by_released()
    if seen and digests & set(map(identity, all_released(task.name))):
        print(
            f"warning: the released networks were trained on {seen} of these pictures; measure on "
            "VOC2007:spikedet-val or VOC2007:test",
            file=sys.stderr,
        )
