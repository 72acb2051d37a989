"""Values of options that are more than a number: each refuses in one sentence what it cannot be.

The sentence is that of a ValueError, as `spikedet.settings.option` takes it for its `kind`.
"""

from __future__ import annotations

from pathlib import Path

from spikedet.errors import UsageError

MOST_STEPS = 10_000  # the slowest conversion of the literature needs some 3,500


def time_steps(text: str) -> int:
    """A whole number of time steps, 1 to `MOST_STEPS`."""
    number = text.strip()
    steps = int(number) if number.isdecimal() and len(number) < 9 else 0
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"T is {text!r}; expected a whole number from 1 to {MOST_STEPS}")
    return steps


def json_file(text: str) -> Path:
    """A name that ends in .json, for the file may be written over."""
    if not text.endswith(".json"):
        raise ValueError(f"{text!r} is to be written; expected a name in .json")
    return Path(text)


def device(text: str) -> str:
    """A device of torch's that is present on this machine: `cpu`, `cuda`, `cuda:N` or `N`."""
    from spikedet.precision import present_device

    try:
        return present_device(torch_device(text))
    except UsageError as error:
        raise ValueError(str(error)) from None


def engine(text: str) -> str:
    """Name of an engine that is registered."""
    from spikedet.engines.registry import expect_engine

    try:
        expect_engine(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text


def torch_device(text: str) -> str:
    """`cuda:0` of a training command's `0`."""
    return f"cuda:{text}" if text.isdigit() else text
