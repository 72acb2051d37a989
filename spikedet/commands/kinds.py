"""Parsers for option values that are not plain numbers or texts.

They raise ValueError with one sentence (see `kind` of `spikedet.options.option`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spikedet import resources
from spikedet.counts import MOST_STEPS
from spikedet.errors import UsageError, list_choices, shorten


def time_steps(text: str) -> int:
    """Parse a number of time steps, 1 to `MOST_STEPS`."""
    number = text.strip()
    steps = int(number) if number.isdecimal() and len(number) < 9 else 0
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"T is {text!r}; expected an integer from 1 to {MOST_STEPS}")
    return steps


def weights(text: str) -> Path:
    """Parse a weights file: a path, or the name of released weights."""
    return resources.weights(text)


def json_file(text: str) -> Path:
    """Parse a file name that ends in .json. This protects other files from being overwritten."""
    return _written(text, ".json")


def csv_file(text: str) -> Path:
    """Parse a file name that ends in .csv."""
    return _written(text, ".csv")


def plot_file(text: str) -> Path:
    """Parse a file name that ends in .png or .svg."""
    return _written(text, ".png", ".svg")


def _written(text: str, *endings: str) -> Path:
    if not text.endswith(endings):
        raise ValueError(
            f"cannot write to {shorten(text)!r}; "
            f"expected a name that ends in {' or '.join(endings)}"
        )
    return Path(text)


def device(text: str) -> str:
    """Parse a device that exists on this machine: `cpu`, `cuda`, `cuda:N` or `N`.

    Raises:
        UsageError: The device does not exist.
    """
    if text == "cpu":
        return text
    from spikedet.precision import present_device

    return present_device(text)


def devices(text: str) -> str:
    """Parse devices for training: `cpu`, `cuda`, `cuda:N`, or several GPUs as `0,1`.

    Raises:
        UsageError: A device does not exist.
    """
    if text != "cpu":
        from spikedet.training.devices import check_devices

        check_devices(text)
    return text


def engine(text: str) -> str:
    """Parse the name of a registered engine."""
    from spikedet.engines.registry import expect_engine

    return _known(text, expect_engine)


def _known(text: str, expect: Callable[[str], None]) -> str:
    """Return a name after `expect` has checked it."""
    try:
        expect(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text


def timed_engine(text: str) -> str:
    """Parse the name of an engine, or of torch in bfloat16."""
    from spikedet.analysis.timing import IN_BFLOAT16
    from spikedet.engines.registry import names

    if text != IN_BFLOAT16 and text not in names():
        known = [*names(), IN_BFLOAT16]
        raise ValueError(f"no engine {text!r}; expected {list_choices(text, known)}")
    return text


def export_format(text: str) -> str:
    """Parse the name of a registered exporter."""
    from spikedet.exporting.registry import expect_format

    return _known(text, expect_format)


def torch_device(text: str) -> str:
    """Convert the device of a training command to torch's name: `0` becomes `cuda:0`."""
    return f"cuda:{text}" if text.isdigit() else text
