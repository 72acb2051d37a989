"""Numbers that count something."""

from __future__ import annotations

from numbers import Integral

from spikedet.errors import UsageError


def expect_counts(**values: int | None) -> None:
    """Refuse numbers that should count something; None is left to others.

    Raises:
        UsageError: One that is not a whole number of 1 or more.
    """
    for name, value in values.items():
        if value is not None and not (isinstance(value, Integral) and value >= 1):
            raise UsageError(f"{name} is {value!r}; expected a whole number of 1 or more")
