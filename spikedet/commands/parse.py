"""Parse the command line into a dataclass of options (with tyro, see `words`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from spikedet.commands import kinds
from spikedet.commands.config import with_config
from spikedet.commands.help import show_help
from spikedet.commands.option import Option, options_of
from spikedet.commands.words import COMMON, read, shown_as
from spikedet.errors import UsageError
from spikedet.files import expect_folder, expect_writable
from spikedet.options import option


def written(default: Any = MISSING, help: str = "", **more: Any) -> Any:
    """Make an option for a file to write. It is refused if the file cannot be written."""
    return option(default, help, check=expect_writable, **more)


def written_folder(default: Any = MISSING, help: str = "", **more: Any) -> Any:
    """Make an option for a folder to write to. It is refused if the folder cannot be written to."""
    return option(default, help, check=expect_folder, **more)


@dataclass(kw_only=True)
class Options:
    """Base class of the options of every command.

    Attributes:
        given: Names of the options on the command line, without those of a `--config` file.
        command: Name of the command.
        json: File for the results as JSON. Commands that write it themselves redefine this field.
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
    """Make a field with the options of a dataclass (see the module `option`)."""
    return field(default_factory=dict, metadata={"options": options})


def partial(
    name: str,
    options: Mapping[str, type],
    usual: Mapping[str, Mapping] | None = None,
    without: Sequence[str] = (),
    checks: Mapping[str, Any] | None = None,
) -> type:
    """Make a dataclass with the options of several tasks. Options that are not given are None.

    Args:
        name: Name of the new dataclass.
        options: The dataclass of each task.
        usual: Defaults of a task that differ from those in its dataclass.
        without: Names of options to leave out.
        checks: The `check` of some options.

    Returns:
        The dataclass. The help shows the defaults of all tasks.
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
    """Parse command-line arguments.

    Args:
        options: Dataclass of the options, a subclass of `Options`.
        words: Command-line arguments.
        prog: Name of the program in the help.
        description: Description of the command in the help.
        more: Further text for `--help-all`.

    Raises:
        UsageError: An option does not exist, or has an impossible value.
        SystemExit: The help was requested and is printed.
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
    """Apply the `check` of an option to its value.

    Raises:
        UsageError: The value is wrong. The message names the option.
    """
    try:
        return each.more["check"](value)
    except UsageError as error:
        raise UsageError(f"{each.word}: {error}") from None


def given_of(known: Sequence[Option], words: Sequence[str]) -> frozenset[str]:
    """Names of the options that occur in command-line arguments."""
    names = {
        word: each.name
        for each in known
        for word in (each.word, each.off, *each.more.get("aliases", ()))
    }
    firsts = {word.partition("=")[0].replace("_", "-") for word in words}
    return frozenset(names[word] for word in firsts if word and word in names)
