"""Check numbers that are counts."""

from __future__ import annotations

from numbers import Integral

from spikedet.errors import UsageError

MOST_STEPS = 10_000  # the slowest conversion of the literature needs some 3,500


def expect_counts(**values: int | None) -> None:
    """Check that values are integers of 1 or more. None is allowed.

    Raises:
        UsageError: A value is not an integer of 1 or more. The message names it.
    """
    for name, value in values.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Integral) or value < 1
        ):
            raise UsageError(f"{name} is {value!r}; expected an integer of 1 or more")


def expect_steps(T: int | None, *, optional: bool = False) -> None:
    """Check that T is a number of time steps, 1 to `MOST_STEPS`, or None if it is `optional`.

    Raises:
        UsageError: It is not.
    """
    if optional and T is None:
        return
    if isinstance(T, bool) or not isinstance(T, Integral) or not 1 <= T <= MOST_STEPS:
        raise UsageError(f"T is {T!r}; expected an integer from 1 to {MOST_STEPS}")
