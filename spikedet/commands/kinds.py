"""Parsers for option values that are not plain numbers or texts.

The sentence is that of a ValueError, as `spikedet.settings.option` takes it for its `kind`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spikedet.errors import UsageError, list_choices, shorten

MOST_STEPS = 10_000  # the slowest conversion of the literature needs some 3,500


def time_steps(text: str) -> int:
    """Parse a number of time steps, 1 to `MOST_STEPS`."""
    number = text.strip()
    steps = int(number) if number.isdecimal() and len(number) < 9 else 0
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"T is {text!r}; expected an integer from 1 to {MOST_STEPS}")
    return steps


def json_file(text: str) -> Path:
    """A name that ends in .json, for the file may be written over."""
    return _written(text, ".json")


def csv_file(text: str) -> Path:
    """A name that ends in .csv."""
    return _written(text, ".csv")


def plot_file(text: str) -> Path:
    """A name that ends in .png or .svg."""
    return _written(text, ".png", ".svg")


def _written(text: str, *endings: str) -> Path:
    if not text.endswith(endings):
        raise ValueError(
            f"cannot write to {shorten(text)!r}; "
            f"expected a name that ends in {' or '.join(endings)}"
        )
    return Path(text)


def device(text: str) -> str:
    """A device of torch's that is present on this machine: `cpu`, `cuda`, `cuda:N` or `N`.

    Raises:
        UsageError: There is no such device here.
    """
    if text == "cpu":
        return text
    from spikedet.precision import present_device

    return present_device(text)


def devices(text: str) -> str:
    """Devices to train on that are present: `cpu`, `cuda`, `cuda:N`, or several GPUs as `0,1`.

    Raises:
        UsageError: There are no such devices here.
    """
    if text != "cpu":
        from spikedet.training import check_devices

        check_devices(text)
    return text


def engine(text: str) -> str:
    """Name of an engine that is registered."""
    from spikedet.engines.registry import expect_engine

    return _known(text, expect_engine)


def _known(text: str, expect: Callable[[str], None]) -> str:
    """A name that `expect` does not refuse."""
    try:
        expect(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text


def timed_engine(text: str) -> str:
    """Name of an engine, or torch's in bfloat16."""
    from spikedet.analysis.timing import IN_BFLOAT16
    from spikedet.engines.registry import names

    if text != IN_BFLOAT16 and text not in names():
        known = [*names(), IN_BFLOAT16]
        raise ValueError(f"no engine {text!r}; expected {list_choices(text, known)}")
    return text


def export_format(text: str) -> str:
    """Name of an exporter that is registered."""
    from spikedet.exporting.registry import expect_format

    return _known(text, expect_format)


def torch_device(text: str) -> str:
    """`cuda:0` of a training command's `0`."""
    return f"cuda:{text}" if text.isdigit() else text
