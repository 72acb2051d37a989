"""Options as fields of dataclasses.

An option is one field. It holds the default, the help text and the limits. `violated_limits` checks
values with it, and `spikedet.commands` makes an option of the command line from it. This module
imports nothing large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, field, fields
from numbers import Integral, Real
from typing import Any

from spikedet.errors import UsageError, shorten

KINDS = {  # of the fields that hold one value: a noun, and a type
    "int": ("an integer", Integral),
    "float": ("a number", Real),
    "bool": ("True or False", bool),
}


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    kind: Callable[[str], Any] | None = None,
    group: str = "",
    **shown: Any,
) -> Any:
    """Make a dataclass field that is also an option of commands.

    Args:
        default: Default value. Without it the option is required.
        help: Help text.
        least: Smallest allowed number.
        above: Numbers must be greater than this.
        most: Largest allowed number.
        choices: Allowed texts.
        kind: Function that converts the text of a command line to a value. It raises ValueError
            with a sentence if it cannot. The default is the type of the field.
        group: Heading of the option in the help. The default is the list of main options.
        shown: Further settings of the command line (see `spikedet.commands.option`).
    """
    metadata: dict[str, Any] = {"help": help, "least": least, "above": above, "most": most}
    metadata["kind"] = kind
    metadata |= {"choices": tuple(choices), "group": group, **shown}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def redefined(options: type, name: str, default: Any) -> Any:
    """Repeat an option of the base dataclass `options` with another default."""
    (original,) = (each for each in fields(options) if each.name == name)
    return field(default=default, metadata=original.metadata)


def violated_limits(value: Any, limits: Any) -> str | None:
    """Describe the allowed values if `value` is outside the limits of its option, else None.

    Args:
        value: A number or a text. None is always allowed.
        limits: Metadata of an `option`.
    """
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        return list_all(choices)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if least is above is most is None:
        return None
    low = value > above if above is not None else least is None or value >= least
    if low and value <= (math.inf if most is None else most) and value != math.inf:
        return None
    return describe_limits(limits, "a number")


def list_all(choices: Sequence[str]) -> str:
    """The choices in words, for example `count or step`."""
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)


def describe_limits(limits: Any, kind: str) -> str:
    """Describe the limits of an option in words, for example `a number between 0 and 1`."""
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if above is not None:
        return f"{kind} above {above:g}" + (f" and at most {most:g}" if most is not None else "")
    if least is None and most is None:
        return kind
    if most is None:
        return f"{kind} of {least} or more"
    return f"{kind} between {least} and {most}"


def impossible(settings: Any) -> tuple[str, Any, str] | None:
    """Name, value and allowed values of the first option that is outside its limits, or None."""
    for each in fields(settings):
        value, kind = getattr(settings, each.name), str(each.type)  # text, see `annotations` above
        if value is None and kind.endswith(" | None"):
            continue
        noun, right_kind = KINDS.get(kind.removesuffix(" | None"), ("", None))
        if right_kind is not None and not isinstance(value, right_kind):
            return each.name, value, describe_limits(each.metadata, noun)
        if value is None:
            return each.name, value, list_all(each.metadata.get("choices") or ["a value"])
        listed = isinstance(value, Iterable) and not isinstance(value, str)
        if kind.startswith("Sequence") and not listed:
            return each.name, value, "a list"
        right = violated_limits(value, each.metadata)
        if right is not None:
            return each.name, value, describe_limits(each.metadata, noun) if noun else right
    return None


def expect_limits(settings: Any, **words: str) -> None:
    """Check that all options of a dataclass are within their limits, and go together.

    Args:
        settings: A dataclass of options. If it has a method `conflict`, this returns a sentence
            about options that exclude each other, or None.
        words: Names for messages, for options that are not called as their fields.

    Raises:
        UsageError: An option is outside its limits, or excludes another one. The message says
            what is allowed.
    """
    if problem := impossible(settings):
        name, value, right = problem
        raise UsageError(f"{words.get(name, name)} is {shorten(repr(value))}; expected {right}")
    if hasattr(settings, "conflict") and (conflict := settings.conflict()):
        raise UsageError(conflict)
