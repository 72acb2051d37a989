"""Checks before the work: options without effect, and outputs that would be overwritten."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from spikedet.commands.parse import Options
    from spikedet.task import Samples, Task


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
        raise TrainingError(f"{path} exists already; choose another --out")


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
            f"warning: the released networks were trained on {seen} of these pictures, so the "
            "result is too good; use VOC2007:spikedet-val or VOC2007:test",
            file=sys.stderr,
        )
