"""Check numbers that are counts."""

from __future__ import annotations

from numbers import Integral

from spikedet.errors import UsageError


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
