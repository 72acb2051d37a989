"""Types of arguments, for argparse: each refuses in one sentence what it cannot be."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from spikedet.errors import UsageError


def time_steps(text: str) -> int:
    """Type of `--T`: a whole number of time steps, at least 1."""
    steps = _integer(text)
    if steps < 1:
        raise argparse.ArgumentTypeError(f"T is {text!r}; expected a whole number of 1 or more")
    return steps


def count(text: str) -> int:
    """Type of `--limit`: a whole number of 1 or more."""
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def seed(text: str) -> int:
    """Type of `--seed`: a whole number that every generator takes."""
    number = whole(text)
    if number >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is too large; expected less than 2 ** 31")
    return number


def whole(text: str) -> int:
    """Type of numbers of steps that may be none: a whole number of 0 or more."""
    return 0 if text.strip() == "0" else count(text)


def quality(text: str) -> int:
    """Type of a quality of JPEG: a whole number of 0 (no compression) to 100."""
    number = whole(text)
    if number > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 to 100")
    return number


def json_file(text: str) -> Path:
    """Type of `--json`: a name that ends so, for the file may be written over."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} is to be written; expected a name in .json")
    return Path(text)


def positive(text: str) -> float:
    """Type of rates and prices: a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def temperature(text: str) -> float:
    """Type of what is divided by before a soft-max: a number of 1 or more."""
    value = _number(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return value


def weight(text: str) -> float:
    """Type of what a part of a loss counts: a number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def fraction(text: str) -> float:
    """Type of confidences and IoU thresholds: a number in 0..1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def _integer(text: str) -> int:
    """A whole number; 0, which counts nothing, for what is none."""
    try:
        return int(text)
    except ValueError:
        return 0


def _number(text: str) -> float:
    """A number; NaN, which lies in no range, for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def device(text: str) -> str:
    """Type of `--device`: `cpu`, `cuda`, `cuda:N` or `N`, present on this machine."""
    from spikedet.precision import present_device

    try:
        return present_device(torch_device(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def torch_device(text: str) -> str:
    """`cuda:0` of a training command's `0`."""
    return f"cuda:{text}" if text.isdigit() else text


def devices(text: str) -> str:
    """Type of a training command's `--device`: `0,1` in place of `cuda:0,cuda:1`."""
    return text.replace("cuda:", "").replace("cuda", "0")
