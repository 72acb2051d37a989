"""Parse the command line into a dataclass of options (with tyro, see `words`).

A command's options are a dataclass whose fields are made by `spikedet.settings.option`; further
keys of that say how the command line has them:

    name        what it is called, where not as its field, with underscores
    aliases     other names, with their dashes
    positional  it is given without its name
    metavar     what the help calls its value
    shown       what the help says of its default, where that is not the default itself
    pair        a boolean is switched off as well, by `--no-NAME`; None where it may be either
    nargs       a list has exactly so many values
    check       called with the value that counts, once all words are read; returns it, or raises
                UsageError: of devices, and of what is to be written

A field made by `several` stands for the options of another dataclass; its value is a dict of those
that were given.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

from spikedet.commands import kinds
from spikedet.commands.config import with_config
from spikedet.commands.help import show_help
from spikedet.commands.words import COMMON, read, shown_as
from spikedet.errors import UsageError, did_you_mean, shorten
from spikedet.files import expect_folder, expect_writable
from spikedet.settings import describe_limits, option, violated_limits


def written(default: Any = MISSING, help: str = "", **more: Any) -> Any:
    """An option that names a file to write, which is refused where none can be."""
    return option(default, help, check=expect_writable, **more)


def written_folder(default: Any = MISSING, help: str = "", **more: Any) -> Any:
    """An option that names a folder to write to, which is refused where nothing can be in it."""
    return option(default, help, check=expect_folder, **more)


@dataclass(kw_only=True)
class Options:
    """Base of the options of every command.

    Attributes:
        given: Names of those that stand on the command line, not in a `--config` file.
        command: Name of the command.
        json: A command with results of its own defines it anew, and writes them itself.
    """

    quiet: bool = option(
        False, "print no progress and no tables, only warnings and errors", group=COMMON
    )
    json: Path | None = written(
        None,
        "write a summary of the run to this file (see docs/json.md)",
        kind=kinds.json_file,
        group=COMMON,
    )
    config: Path | None = option(
        None,
        "YAML file with options (examples: configs/experiments)",
        metavar="FILE",
        group=COMMON,
    )
    given: frozenset[str] = field(default=frozenset(), repr=False)
    command: str = field(default="", repr=False)


def several(options: type) -> Any:
    """A field that stands for the options of a dataclass, see there."""
    return field(default_factory=dict, metadata={"options": options})


@dataclass(frozen=True)
class Option:
    """An option as the command line has it.

    Attributes:
        name: What it is called, with underscores.
        field: Of the dataclass.
        type: Of one value.
        many: Whether it is a list.
        default: MISSING where it must be given.
        more: Metadata of its field.
        part: The field that it is collected in, see `several`.
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
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def off(self) -> str:
        """What switches it off; empty where nothing does."""
        return "--no-" + self.word[2:] if self.flag and self.pair else ""

    @property
    def flag(self) -> bool:
        """Whether it has no value."""
        return self.type is bool

    @property
    def pair(self) -> bool:
        """Whether a flag can be switched off."""
        return self.more.get("pair", self.default is not False)

    def parse(self, text: str) -> Any:
        """A value.

        Raises:
            ValueError: In one sentence.
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
        """The texts that it may be, where that is a matter of choice."""
        return self.more.get("choices", ())


def options_of(options: type, part: str = "") -> list[Option]:
    """All options of a dataclass: those that must be given first, then its own, `--config` last."""
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


def partial(
    name: str,
    options: Mapping[str, type],
    usual: Mapping[str, Mapping] | None = None,
    without: Sequence[str] = (),
    checks: Mapping[str, Any] | None = None,
) -> type:
    """The options of one task or another, each None until it is given.

    Args:
        name: Of the dataclass that is made.
        options: The dataclass of each task.
        usual: Defaults of each task that are not as there.
        without: Names that are left out.
        checks: The `check` of some.

    Returns:
        A dataclass; the help shows the defaults of all tasks.
    """
    by_field: dict[str, dict[str, Option]] = {}
    for task, kind in options.items():
        for each in options_of(kind):
            by_field.setdefault(each.field, {})[task] = each
    members = []
    for key, of_tasks in by_field.items():
        if key in without:
            continue
        first = next(iter(of_tasks.values()))
        values = {
            task: shown_as((usual or {}).get(task, {}).get(key, one.default))
            for task, one in of_tasks.items()
        }
        shown = "; ".join(f"{value} for {task}" for task, value in values.items())
        if len(set(values.values())) == 1 and len(values) == len(options):
            shown = first.more.get("shown") or next(iter(values.values()))
        more = {**first.more, "shown": shown, "pair": first.flag}
        more["check"] = (checks or {}).get(key)
        value: Any = list[first.type] if first.many else first.type  # type: ignore[name-defined]
        members.append((key, value | None, field(default=None, metadata=more)))
    return make_dataclass(name, members, kw_only=True)


def parse(
    options: type, words: Sequence[str], prog: str, description: str = "", more: str = ""
) -> Any:
    """The options that some words give.

    Args:
        options: The dataclass, based on `Options`.
        words: Of the command line.
        prog: What the help calls the command.
        description: What the help says of it.
        more: What `--help-all` says besides.

    Raises:
        UsageError: Words that are none of its options, a value that one cannot have.
        SystemExit: The help was asked for, and is printed.
    """
    known = options_of(options)
    for help in ("-h", "--help", "--help-all"):
        if help in words:
            everything = help == "--help-all"
            show_help(known, prog, [description, *([more] if everything else [])], everything)
    before = with_config(known, list(words), prog.rpartition(" ")[2])
    values = vars(read(known, [*before, *words], prog))
    for group in [v for v in values.values() if hasattr(v, "in_group")]:
        values = {**values, **vars(group)}
    named = given_of(known, [*before, *words])
    settings: dict[str, Any] = {}
    for each in known:
        value = values[each.name]
        if each.flag and each.name not in named:
            value = each.default
        if value is not None and each.more.get("check"):
            value = _checked(each, value)
        if not each.part:
            settings[each.field] = value
        elif value is not None:
            settings.setdefault(each.part, {})[each.field] = value
    command = prog.rpartition(" ")[2]
    return options(**settings, given=given_of(known, words), command=command)


def _checked(each: Option, value: Any) -> Any:
    """A value as the `check` of its option returns it.

    Raises:
        UsageError: As there, with the option.
    """
    try:
        return each.more["check"](value)
    except UsageError as error:
        raise UsageError(f"{each.word}: {error}") from None


def given_of(known: Sequence[Option], words: Sequence[str]) -> frozenset[str]:
    """Names of the options among some words."""
    names = {
        word: each.name
        for each in known
        for word in (each.word, each.off, *each.more.get("aliases", ()))
    }
    firsts = {word.partition("=")[0].replace("_", "-") for word in words}
    return frozenset(names[word] for word in firsts if word and word in names)
