"""One option of the command line, and the list of those that a dataclass has.

The fields of the dataclass are made by `spikedet.options.option`. These further keys of it
describe the option on the command line:

    name        name with underscores, if it differs from the name of the field
    aliases     other names, with their dashes
    positional  the value is given without the name
    metavar     name of the value in the help
    shown       text for the default in the help, if it is not the default itself
    pair        a flag also has `--no-NAME`; its value is None if neither is given
    nargs       exact number of values of a list
    check       function that checks the final value after all arguments are parsed; it returns
                the value or raises UsageError

A field made by `parse.several` has the options of another dataclass. Its value is a dict of the
options that were given.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from spikedet.errors import did_you_mean, shorten
from spikedet.options import describe_limits, violated_limits


@dataclass(frozen=True)
class Option:
    """An option on the command line.

    Attributes:
        name: Name with underscores.
        field: Name of the field in the dataclass.
        type: Type of one value.
        many: Whether the value is a list.
        default: Default value. MISSING if the option is required.
        more: Metadata of the field.
        part: Field of `several` that collects the value, or empty.
    """

    name: str
    field: str
    type: Any
    many: bool
    default: Any
    more: Mapping[str, Any]
    part: str = ""

    @property
    def word(self) -> str:
        """The option on the command line, such as `--name`."""
        return "--" + self.name.replace("_", "-")

    @property
    def off(self) -> str:
        """The argument that switches a flag off. Empty if there is none."""
        return "--no-" + self.word[2:] if self.flag and self.pair else ""

    @property
    def flag(self) -> bool:
        """Whether the option has no value."""
        return self.type is bool

    @property
    def pair(self) -> bool:
        """Whether a flag can be switched off."""
        return self.more.get("pair", self.default is not False)

    def parse(self, text: str) -> Any:
        """Parse a value.

        Raises:
            ValueError: The text is not a value of this option. The message is one sentence.
        """
        kind = self.more.get("kind")
        if kind:
            return kind(text)
        if self.type is int or self.type is float:
            try:
                value = self.type(text)
            except ValueError:
                value = float("nan")
            if violated_limits(value, self.more) or value != value or abs(value) == float("inf"):
                noun = "an integer" if self.type is int else "a number"
                raise ValueError(f"{text!r} is not {describe_limits(self.more, noun)}")
            return value
        value = self.type(text)
        if right := violated_limits(value, self.more):
            raise ValueError(
                f"{shorten(repr(text))}; expected {right}{did_you_mean(text, self.choices)}"
            )
        return value

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed texts. Empty if any text is allowed."""
        return self.more.get("choices", ())


def options_of(options: type, part: str = "") -> list[Option]:
    """List all options of a dataclass: required ones first, then its own, `--config` last."""
    all_options = []
    hints = typing.get_type_hints(options)
    own = list(vars(options).get("__annotations__", {}))
    for each in sorted(
        fields(options), key=lambda f: own.index(f.name) if f.name in own else len(own)
    ):
        if "options" in each.metadata:
            all_options += options_of(each.metadata["options"], each.name)
        elif "help" in each.metadata:
            kinds = typing.get_args(hints[each.name])
            kind = hints[each.name]
            if types.NoneType in kinds:
                (kind,) = (k for k in kinds if k is not types.NoneType)
            many = typing.get_origin(kind) in (list, Sequence)
            default = each.default
            if each.default_factory is not MISSING:
                default = each.default_factory()
            kind = typing.get_args(kind)[0] if many else kind
            name = each.metadata.get("name", each.name)
            all_options.append(Option(name, each.name, kind, many, default, each.metadata, part))

    def rank(each: Option) -> int:
        return (each.default is not MISSING) + (each.name == "config")

    return sorted(all_options, key=rank)
