"""Checks before the work: options without effect, and outputs that would be overwritten."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.errors import UsageError

if TYPE_CHECKING:
    from spikedet.commands.parse import Options
    from spikedet.task import Samples, Task


def refuse(options: Options, names: Sequence[str], why: str) -> None:
    """Refuse options that would be ignored. Options of a `--config` file are not checked.

    Args:
        options: Parsed options.
        names: Names of the options to refuse.
        why: Reason why they would be ignored, for the message.

    Raises:
        UsageError: One of them is on the command line.
    """
    for name in names:
        if name in options.given:
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


def expect_new(path: Path) -> None:
    """Check that a file does not exist, because its content took hours to make.

    Raises:
        UsageError: The file exists.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; choose another --out")


def warn_of_training_pictures(task: Task, samples: Samples, digests: set[str]) -> None:
    """Warn if released weights are measured on pictures that they were trained on.

    Args:
        task: Task of the weights.
        samples: Samples to measure on.
        digests: SHA-256 of the weights files.
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
